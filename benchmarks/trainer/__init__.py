"""Measure the trainer against what it is built on, on one machine.

A module for each subject: `measure(lab)` gives its figures. `__main__` runs them and leaves the JSON.
"""
