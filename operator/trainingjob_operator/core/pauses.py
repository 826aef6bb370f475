"""Pauses between tries."""

DOUBLINGS = 32
"""More are no number any more, after a thousand: who waits for days counts as many."""


def doubled(first: float, times: int, longest: float) -> float:
    """Seconds: `first`, doubled so many times, up to `longest`."""
    return min(first * 2.0 ** min(times, DOUBLINGS), longest)
