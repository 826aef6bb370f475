"""Training loops that take turns, step by step, so that what disturbs the machine disturbs all of them alike.

Each loop is its author's own, in a thread of its own, and stands still where it calls `turn`: between two steps, the
next batch at hand. Two arms A and B are compared in blocks A B B A: a drift of the machine cancels, and each takes one
step after its own and one after the other's, so that caches favour neither.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from statistics import median
from types import TracebackType
from typing import Self

import torch.distributed as dist
from trainingjob_trainer.parallel import World

Turn = Callable[[], None]
WARM_UP = 8  # steps of each arm
TRIES = 3
NULL_WITHIN = 0.01


class TooNoisy(Exception):
    """A loop is not as fast as itself: nothing can be said about others."""


class Over(Exception):
    """Raised in a loop that is to end."""


class Arm:
    """A loop, `loop(turn)`, that takes a step at each call of `step`."""

    def __init__(self, name: str, loop: Callable[[Turn], None]) -> None:
        self.name, self._loop = name, loop
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._stands: SimpleQueue[Exception | None] = SimpleQueue()
        self._begun = self._seconds = 0.0

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()
        self._wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._go.put(False)
        self._thread.join()

    def step(self) -> float:
        """Seconds of a step, until the next batch is at hand."""
        self._go.put(True)
        self._wait()
        return self._seconds

    def _wait(self) -> None:
        failure = self._stands.get()
        if failure is not None:
            raise RuntimeError(f"the loop {self.name} ended") from failure

    def _turn(self) -> None:
        self._seconds = time.perf_counter() - self._begun
        self._stands.put(None)
        if not self._go.get():
            raise Over
        self._begun = time.perf_counter()

    def _run(self) -> None:
        try:
            self._loop(self._turn)
            self._stands.put(RuntimeError("it has no step left"))
        except Over:
            pass
        except Exception as error:
            self._stands.put(error)


@dataclass(frozen=True)
class Pair:
    """Seconds a step of two arms, by block."""

    one: Arm
    other: Arm
    seconds: list[tuple[float, float]] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as `one` the `other` is."""
        return [one / other for one, other in self.seconds]

    @property
    def differences(self) -> list[float]:
        """Seconds that a step of the `other` takes longer."""
        return [other - one for one, other in self.seconds]


def compare(pairs: Sequence[Pair], blocks: int, world: World, say: Callable[[str], None]) -> None:
    """Fill the pairs with `blocks` blocks or, until the first pair, a loop and its twin, are equally fast, with more.

    Raises `TooNoisy`. Collective; rank 0 judges.
    """
    arms = list(dict.fromkeys(arm for pair in pairs for arm in (pair.one, pair.other)))
    for _ in range(WARM_UP):
        for arm in arms:
            _step(arm, world)
    for number in range(TRIES):
        for _ in range(blocks << number):
            for pair in pairs:
                one, other, again, last = (_step(arm, world) for arm in (pair.one, pair.other, pair.other, pair.one))
                pair.seconds.append(((one + last) / 2, (other + again) / 2))
        null = world.from_first(median(pairs[0].ratios))
        say(f"{len(pairs[0].seconds)} blocks: {pairs[0].one.name} against itself {null:.4f}")
        if abs(null - 1) <= NULL_WITHIN:
            return
    raise TooNoisy


def most_steps(blocks: int, pairs: int) -> int:
    """That `compare` has an arm take, if it is in all of the pairs; and the batch that is at hand then."""
    return WARM_UP + 2 * pairs * blocks * ((1 << TRIES) - 1) + 1


def _step(arm: Arm, world: World) -> float:
    """A step that all ranks begin together."""
    if world.control is not None:
        dist.barrier(group=world.control)
    return arm.step()
