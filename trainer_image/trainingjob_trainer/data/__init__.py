"""Prepared data: the manifest that names it, the order it is read in, and the reader."""
