"""What the ranks agree on at step boundaries."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist

from trainingjob_trainer.parallel.world import World
from trainingjob_trainer.stop import Stop


class Ballot(NamedTuple):
    """What a rank votes on, and what all agree on: of different votes the highest counts."""

    stop: Stop = Stop.NO
    save_failed: bool = False  # the one in the background
    save_due: bool = False  # by the clock


class Vote:
    """Asked at one step and answered at the next, so that no step waits for it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ballot = torch.zeros(len(Ballot._fields), dtype=torch.int32)
        self._work: dist.Work | None = None

    def cast(self, ballot: Ballot) -> None:
        """Send this rank's vote off. Every rank calls it at the same step."""
        self._ballot = torch.tensor(ballot, dtype=torch.int32)
        if self._world.control is not None:
            self._work = dist.all_reduce(self._ballot, op=dist.ReduceOp.MAX, group=self._world.control, async_op=True)

    def result(self) -> Ballot:
        """The verdict of the last vote, the same on every rank; all `NO` before the first."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        stop, save_failed, save_due = self._ballot.tolist()
        return Ballot(Stop(stop), bool(save_failed), bool(save_due))
