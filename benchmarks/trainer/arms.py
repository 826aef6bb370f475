"""Training loops that take turns, a few steps each, so that what disturbs the machine disturbs all of them alike.

Each loop is its author's own, in a thread of its own, and stands still where it calls `turn`: between two steps, the
next batch at hand. Two arms A and B are compared in blocks A B B A: a drift of the machine cancels, and each begins
once after its own steps and once after the other's, so that caches favour neither. What a loop does once in some steps
counts where a turn has as many; and what its other threads do behind a step falls into its own turn, but for the last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from statistics import median
from types import TracebackType
from typing import NamedTuple, Self

import torch.distributed as dist
from trainingjob_trainer.parallel import World

from benchmarks.trainer.figures import Figure

Turn = Callable[[], None]
WARM_UP = 4  # turns of each arm
TRIES = 3
NULL_WITHIN = 0.01


class TooNoisy(Exception):
    """By the clock a loop is not as fast as itself: nothing can be said about others. `figures`: what is not of it."""

    def __init__(self, figures: Sequence[Figure] = ()) -> None:
        super().__init__()
        self.figures = figures


class Over(Exception):
    """Raised in a loop that is to end."""


class Spent(NamedTuple):
    """What a step takes, by the clock and of the CPU by the loop's own thread; the mean over a turn. Seconds."""

    clock: float
    cpu: float

    @classmethod
    def now(cls) -> Self:
        """What the clocks show."""
        return cls(time.perf_counter(), time.thread_time())


class Arm:
    """A loop, `loop(turn)`, that takes some steps at each call of `steps`."""

    def __init__(self, name: str, loop: Callable[[Turn], None]) -> None:
        self.name, self._loop = name, loop
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._stands: SimpleQueue[Exception | None] = SimpleQueue()
        self._left = 0
        self._begun = self._stood = Spent(0.0, 0.0)

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

    def steps(self, number: int) -> Spent:
        """Take so many, until the batch after them is at hand."""
        self._left = number
        self._go.put(True)
        self._wait()
        return Spent(*((end - begin) / number for begin, end in zip(self._begun, self._stood, strict=True)))

    def _wait(self) -> None:
        failure = self._stands.get()
        if failure is not None:
            raise RuntimeError(f"the loop {self.name} ended") from failure

    def _turn(self) -> None:
        self._left -= 1
        if self._left > 0:
            return
        self._stood = Spent.now()
        self._stands.put(None)
        if not self._go.get():
            raise Over
        self._begun = Spent.now()

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
    """What a step of two arms takes, by block."""

    one: Arm
    other: Arm
    blocks: list[tuple[Spent, Spent]] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as `one` the `other` is."""
        return [one.clock / other.clock for one, other in self.blocks]

    @property
    def differences(self) -> list[Spent]:
        """What a step of the `other` takes more."""
        return [Spent(other.clock - one.clock, other.cpu - one.cpu) for one, other in self.blocks]


def compare(pairs: Sequence[Pair], blocks: int, turn: int, world: World, say: Callable[[str], None]) -> bool:
    """Fill the pairs with `blocks` blocks or, until the first pair, a loop and its twin, are equally fast, with more.

    turn: the steps of one. Whether they are in the end. Collective; rank 0 judges.
    """
    arms = list(dict.fromkeys(arm for pair in pairs for arm in (pair.one, pair.other)))
    for _ in range(WARM_UP):
        for arm in arms:
            _steps(arm, turn, world)
    for number in range(TRIES):
        for _ in range(blocks << number):
            for pair in pairs:
                one, other, again, last = (
                    _steps(arm, turn, world) for arm in (pair.one, pair.other, pair.other, pair.one)
                )
                pair.blocks.append((_mean(one, last), _mean(other, again)))
        null = world.from_first(median(pairs[0].ratios))
        say(f"{len(pairs[0].blocks)} blocks: {pairs[0].one.name} against itself {null:.4f}")
        if abs(null - 1) <= NULL_WITHIN:
            return True
    return False


def most_steps(blocks: int, turn: int, pairs: int) -> int:
    """That `compare` has an arm take, if it is in all of the pairs; and the batch that is at hand then."""
    return turn * (WARM_UP + 2 * pairs * blocks * ((1 << TRIES) - 1)) + 1


def _mean(one: Spent, other: Spent) -> Spent:
    return Spent((one.clock + other.clock) / 2, (one.cpu + other.cpu) / 2)


def _steps(arm: Arm, number: int, world: World) -> Spent:
    """Steps that all ranks begin together."""
    if world.control is not None:
        dist.barrier(group=world.control)
    return arm.steps(number)
