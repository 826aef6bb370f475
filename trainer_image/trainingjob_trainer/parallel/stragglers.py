"""Which rank the others wait for."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

import torch
import torch.distributed as dist

from trainingjob_trainer.parallel.world import World


class Straggler(NamedTuple):
    """The slowest rank, and the seconds by which it is behind the median of all."""

    rank: int
    seconds: float


class Stragglers:
    """Compares what the ranks need by themselves: asked at one report and answered at the next, so that none waits."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._own = torch.zeros(1, dtype=torch.float64)
        self._all = torch.zeros(world.size, dtype=torch.float64)
        self._work: dist.Work | None = None

    def exchange(self, seconds: float) -> Straggler | None:
        """Send this rank's seconds off; the verdict on what was sent the last time. Every rank calls it at the same
        step. None before the second call, and where there is one rank."""
        found = None
        if self._work is not None:
            self._work.wait()
            all_ranks = self._all.tolist()
            slowest = max(range(len(all_ranks)), key=all_ranks.__getitem__)
            found = Straggler(slowest, all_ranks[slowest] - median(all_ranks))
        if self._world.control is not None:
            self._own.fill_(seconds)
            self._work = dist.all_gather_into_tensor(self._all, self._own, group=self._world.control, async_op=True)
        return found
