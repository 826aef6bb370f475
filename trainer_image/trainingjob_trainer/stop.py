"""Whether training is to stop, and when."""

from enum import IntEnum


class Stop(IntEnum):
    """A rank's wish at a step boundary. Of different wishes the highest counts."""

    NO = 0
    TO_RESIZE = 1  # to go on with other ranks: after the last step there is nothing to go on with
    NOW = 2
