"""Python's cyclic garbage collector, at steps that the ranks agree on.

By itself it runs after so many allocations, so on each rank at another moment, and a step takes as long as its slowest
rank. nanoGPT's successor (nanochat) and torchtitan take it in hand the same way.
"""

from __future__ import annotations

import gc
from types import TracebackType
from typing import Self

EVERY = 100
"""Steps between two collections. One takes less than a millisecond, since it looks only at what the steps have made."""


class AgreedCollections:
    """Where steps are taken. What an attempt's first step leaves behind is never looked at again; from then on the
    collector runs at multiples of `EVERY`, and never by itself. Behind it the collector is what it was.

    It is one for the whole process, and all threads.
    """

    def __enter__(self) -> Self:
        self._enabled, self._begun = gc.isenabled(), False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._begun:
            gc.unfreeze()
        if self._enabled:
            gc.enable()

    def step_done(self, step: int) -> None:
        """Step `step` of the run is over, the same one on every rank."""
        if not self._begun:
            self._begun = True
            gc.disable()
            gc.collect()
            gc.freeze()
        elif step % EVERY == 0:
            gc.collect()
