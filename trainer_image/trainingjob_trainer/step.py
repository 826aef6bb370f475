"""One optimizer step: passes over the rank's rows, the gradient of the step's mean loss, the update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from trainingjob_trainer.config import Training
from trainingjob_trainer.data.batches import share
from trainingjob_trainer.data.reader import Batch
from trainingjob_trainer.optim import OptimizerGroup, WeightAverage, add_penalties, learning_rate
from trainingjob_trainer.parallel import (
    StepSums,
    World,
    keep_where,
    local_part,
    loss_over_parts,
    pass_precision,
    scale_and_clip,
    sync_gradients,
)
from trainingjob_trainer.seeding import seed_generators
from trainingjob_trainer.tasks import Task, weightless


@dataclass(frozen=True)
class Dealing:
    """How a rank's rows of a step are cut into passes; every rank makes the same number of passes."""

    rows: int  # of this rank, may be 0
    micro_batch: int
    passes: int

    @classmethod
    def of(cls, training: Training, world: World) -> Dealing:
        """Derived from the global batch and the world size, anew at each attempt."""
        most = -(-training.global_batch_size // world.data_size)
        micro_batch = training.rows_a_pass(most)
        rows = share(training.global_batch_size, world.data_size, world.data_rank)
        return cls(len(rows), micro_batch, -(-most // micro_batch))

    def cut(self, batch: Batch) -> Iterator[Batch]:
        """The passes of a step; where a rank has no row left, one row without weight (FSDP's collectives need it)."""
        for start in range(0, self.passes * self.micro_batch, self.micro_batch):
            end = min(start + self.micro_batch, self.rows)
            if end - start == len(batch.targets):
                yield batch
            elif start < end:
                yield Batch(batch.inputs[start:end], batch.targets[start:end])
            else:
                yield Batch(batch.inputs[:1], weightless(batch.targets[:1]))


@dataclass(frozen=True)
class Stepper:
    """Everything a step needs. Calling it is collective."""

    model: nn.Module
    optimizer: OptimizerGroup
    task: Task
    training: Training
    world: World
    dealing: Dealing
    dtype: torch.dtype
    average: WeightAverage | None = None
    statistics: Sequence[Tensor] = ()  # of BatchNorm

    def __call__(self, step: int, batch: Batch) -> StepSums:
        """Take optimizer step `step` (from 0) on this rank's rows of the global batch.

        A step whose global loss or gradient is not finite changes nothing, on any rank: the verdict is of numbers that
        all ranks share, and stays on the device.
        """
        before = [buffer.clone() for buffer in self.statistics]
        sums = self.backward(step, batch)
        finite = torch.isfinite(sums.loss + sums.grad_norm)
        self.optimizer.step(learning_rate(step, self.training), finite)
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(finite)
        keep_where(finite, self.statistics, before)
        return sums

    def backward(self, step: int, batch: Batch) -> StepSums:
        """Leave in `.grad` the clipped gradient of the global batch's loss: the sum over targets by their count."""
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.world.device)
        count = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for number, part in enumerate(self.dealing.cut(batch)):
            part = part.to(self.world.device)
            sync_gradients(self.model, number == self.dealing.passes - 1)
            seed_generators(self.training.seed, step, self.world.data_rank, number)
            with loss_over_parts(self.world):
                with pass_precision(self.world, self.dtype):
                    loss, targets = self.task.loss_sum(self.model, part.inputs, part.targets)
                torch.autograd.backward(loss)
            loss_sum += local_part(loss.detach())
            count += targets
        if self.training.optimizer.l1 or self.training.optimizer.l2:
            targets = self.world.once(count).clone()
            self.world.sum(targets)
            add_penalties(self._parameters, self.training.optimizer, targets.clamp(min=1))
        return scale_and_clip(self._parameters, loss_sum, count, self.training.clip_norm, self.world)

    @cached_property
    def _parameters(self) -> list[nn.Parameter]:
        """Those of the model; a walk over the modules takes as long as all else that is done between two passes."""
        return list(self.model.parameters())
