"""Whether training is to stop, and when."""

from enum import IntEnum


class Stop(IntEnum):
    """A rank's wish at a step boundary. Of different wishes the highest counts."""

    NO = 0
    AT_CHECKPOINT = 1
    NOW = 2
