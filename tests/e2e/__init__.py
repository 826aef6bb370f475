"""Whole runs. A package, so that its operator, which works in all namespaces, ends with the last of its tests."""
