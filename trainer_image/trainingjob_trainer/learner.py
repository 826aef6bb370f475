"""What learns: the model, its optimizer and average, as a rank holds them, and what is done with them as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from trainingjob_trainer.checkpoint.state import state_tensors
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.evaluation.evaluate import evaluate
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.optim import WeightAverage, build_optimizer
from trainingjob_trainer.parallel import (
    Layout,
    World,
    compiles,
    full_state,
    layout_of,
    parallelize,
    pass_dtype,
    pass_precision,
    reshard,
    statistics,
)
from trainingjob_trainer.step import Dealing, Stepper
from trainingjob_trainer.tasks import TaskMetrics, build_task


@dataclass(frozen=True)
class Learner:
    """A model and all that moves its weights, spread over the ranks. Calls are collective."""

    config: JobConfig
    manifest: Manifest
    world: World  # in the groups of `layout`
    layout: Layout
    compiled: bool
    stepper: Stepper

    @classmethod
    def of(cls, config: JobConfig, manifest: Manifest, world: World) -> Self:
        """As the configuration has it, without weights: they are begun with, or loaded. Makes groups."""
        training = config.training
        dtype = world.on_first(lambda: pass_dtype(training.precision, world.device))
        with torch.device("meta"):
            model = build_model(config, manifest)
        layout = world.on_first(lambda: layout_of(config, model, world.size, world.device))
        world = world.arranged(layout)
        compiled = compiles(training, world.device)
        model = parallelize(model, world, training, dtype, compiled).to_empty(device=world.device)
        average = WeightAverage(model, training.ema_decay) if training.ema_decay else None
        stepper = Stepper(
            model,
            build_optimizer(model, training.optimizer),
            build_task(config, manifest, compiled),
            training,
            world,
            Dealing.of(training, world),
            dtype,
            average,
            statistics(model),
        )
        return cls(config, manifest, world, layout, compiled, stepper)

    def __str__(self) -> str:
        return f"{self.world.size} rank(s) in {str(self.stepper.dtype).removeprefix('torch.')}: {self.layout}"

    @property
    def model(self) -> nn.Module:
        """Parallelized."""
        return self.stepper.model

    def begin(self) -> None:
        """Have the weights before the first step: random ones, or those of another model."""
        if self.config.model.init_from is None:
            init_weights(self.model, self.config.training.seed)
        else:
            from trainingjob_trainer.beginning import begin

            begin(self.model, self.config, self.manifest, self.world)
        if self.stepper.average is not None:
            self.stepper.average.restart()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, live."""
        self._share_statistics()
        return state_tensors(self.model, self.stepper.optimizer, self.stepper.average)

    def evaluate(
        self, reader: Reader, max_samples: int | None = None, before_pass: Callable[[], None] = lambda: None
    ) -> TaskMetrics:
        """Metrics of the evaluated weights on a split, the same on every rank. See `evaluate`."""
        self._share_statistics()
        try:
            with self._evaluated_weights(), pass_precision(self.world, self.stepper.dtype):
                return evaluate(
                    self.model,
                    self.stepper.task,
                    reader,
                    self.world.device,
                    self.stepper.dealing.micro_batch,  # what there is room for in training, there is here
                    max_samples=max_samples,
                    group=self.world.data_group,
                    before_pass=before_pass,
                )
        finally:
            reshard(self.model)

    def weights(self) -> Mapping[str, Tensor]:
        """The evaluated weights, whole: on rank 0's CPU, nothing on the others."""
        with self._evaluated_weights():
            return full_state(self.model, self.world)

    def _share_statistics(self) -> None:
        """Have those of BatchNorm that count, the first rank's, on every rank."""
        average = self.stepper.average
        self.world.share([*self.stepper.statistics, *(() if average is None else average.statistics)])

    def _evaluated_weights(self) -> AbstractContextManager[None]:
        """Those that are evaluated and exported: the average, if there is one, in place of the last ones."""
        return nullcontext() if self.stepper.average is None else self.stepper.average.in_place()
