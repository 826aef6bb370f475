"""What a rank does in the tests of garbage collection."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from typing import NamedTuple
from unittest import mock

from trainingjob_trainer import garbage
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.errors import Drained
from trainingjob_trainer.loop import train
from trainingjob_trainer.stop import Stop

from support.training import Hooks, between_steps, store_of

LITTER = 2000
"""Objects in cycles that are left at each step: more than the collector lets pass by itself."""


class Collected(NamedTuple):
    """Of one rank: the steps at which the collector ran, the most litter that lay about, and how it ended."""

    steps: list[int]
    most_alive: int
    as_before: bool
    drained: bool


class Cycle:
    """Refers to itself."""

    def __init__(self) -> None:
        self.own = self


class Litter(Hooks):
    """Hooks that leave cycles behind at each step, and note at which one the collector runs (1: until it is done)."""

    def __init__(self, stop_after: int | None) -> None:
        super().__init__(stop_after)
        self.step, self.most_alive = 0, 0
        self.collected: list[int] = []
        self._alive: weakref.WeakSet[Cycle] = weakref.WeakSet()

    def stop_requested(self) -> Stop:
        if between_steps():
            self.step += 1
            for _ in range(LITTER):
                self._alive.add(Cycle())
        self.most_alive = max(self.most_alive, len(self._alive))
        return super().stop_requested()

    def note(self, phase: str, _: Mapping[str, int]) -> None:
        """Called by the collector."""
        if phase == "start":
            self.collected.append(self.step)


def train_littering(config: JobConfig, every: int, stop_after: int | None) -> Collected:
    """The whole loop, with a collection in `every` steps."""
    hooks, drained = Litter(stop_after), False
    enabled = gc.isenabled()
    gc.callbacks.append(hooks.note)
    try:
        with mock.patch.object(garbage, "EVERY", every):
            train(config, Attempt(1, store_of(config)), hooks)
    except Drained:
        drained = True
    finally:
        gc.callbacks.remove(hooks.note)
    as_before = gc.isenabled() == enabled and gc.get_freeze_count() == 0
    return Collected(hooks.collected, hooks.most_alive, as_before, drained)
