"""How long, in what batches, what is saved and what is evaluated."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainingjob_trainer.config.base import Config
from trainingjob_trainer.config.optimizer import EarlyStopping, Optimizer, Schedule
from trainingjob_trainer.config.parallelism import Parallelism


class Profile(Config):
    """A window of steps that torch.profiler records."""

    from_step: Annotated[int, Field(ge=1, le=100_000_000)] = Field(
        description="First step that is recorded. The first ones of an attempt are slower than what follows."
    )
    steps: Annotated[int, Field(ge=1, le=100)] = Field(3, description="How many are recorded.")


class Training(Config):
    """How long, in what batches, with what optimizer."""

    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = Field(
        None, description="Optimizer steps of the whole run. Or give epochs, or tokens."
    )
    epochs: Annotated[float, Field(gt=0, le=100_000)] | None = Field(
        None, description="Length of the run in passes over the training samples, rounded up to whole steps."
    )
    tokens: Annotated[int, Field(ge=1, le=10**18)] | None = Field(
        None, description="Length of the run in tokens of its samples, rounded up to whole steps (language-modeling)."
    )
    global_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        64, description="Samples an optimizer step, over all ranks; never changes with the world size."
    )
    sequence_length: Annotated[int, Field(ge=8, le=1_048_576)] = Field(1024, description="Tokens a sample.")
    micro_batch_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = Field(
        "auto",
        description="Rows a rank holds in one pass, of training or evaluation. auto: its whole share of the batch, at "
        "most 8.",
    )
    optimizer: Optimizer = Field(default_factory=Optimizer, description="Optimizer.")
    schedule: Schedule = Field(default_factory=Schedule, description="Learning-rate schedule.")
    clip_norm: Annotated[float, Field(ge=0, le=1e6)] = Field(
        1.0, description="Global gradient norm, clipped to this. 0: not clipped."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the target's weight that is spread over all classes, in the training loss only."
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Decay of a moving average of the weights, which is evaluated and exported. 0: none."
    )
    early_stopping: EarlyStopping | None = Field(None, description="Ends the run before its last step. Absent: never.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of the passes; weights, moments and reductions are float32. auto: bfloat16 on CUDA, and on CPUs "
        "with instructions for it (avx512_bf16, AMX).",
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="Whether the blocks of the model are compiled (torch.compile). auto: on CUDA."
    )
    parallelism: Parallelism = Field(default_factory=Parallelism, description="How the model is spread over the ranks.")
    deterministic: bool = Field(False, description="Deterministic kernels only: the same run gives the same bits.")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(1, description="Of weights, data order and dropout.")
    hang_seconds: Annotated[int, Field(ge=10, le=86_400)] = Field(
        300,
        description="Seconds in which no rank begins a pass through the model after which the attempt ends with class "
        "Hang, the stacks of all ranks in their logs. Checkpoints and the export do not count; four times as long for "
        "the first step and the first evaluation of an attempt that compiles.",
    )
    profile: Profile | None = Field(
        None,
        description="Steps whose trace each rank writes below `profiles/` in the run directory, for Perfetto. Absent: "
        "none. Changes neither the run nor its result.",
    )
    log_every: Annotated[int, Field(ge=1, le=1_000_000)] = Field(10, description="Steps between two logged losses.")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        lengths = sum(length is not None for length in (self.steps, self.epochs, self.tokens))
        if lengths != 1:
            raise ValueError(f"exactly one of steps, epochs and tokens must be set, not {lengths}")
        return self

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, once they are known (see `in_steps`)."""
        if self.steps is None:
            raise ValueError("the length is not in steps yet")
        return self.steps

    def rows_a_pass(self, share: int) -> int:
        """Rows that a rank holds in one pass, whose share of a step's rows is so large."""
        return min(8 if self.micro_batch_size == "auto" else self.micro_batch_size, share)

    def in_steps(self, samples: int) -> Training:
        """The same with its length in steps, for a training split of `samples` samples."""
        if self.steps is not None:
            return self
        wanted = samples * (self.epochs or 0) if self.tokens is None else self.tokens / self.sequence_length
        steps = max(1, math.ceil(wanted / self.global_batch_size))
        return self.model_copy(update={"steps": steps, "epochs": None, "tokens": None})

    @property
    def collective_timeout(self) -> timedelta:
        """Of torch's process groups. The watchdog, which has more to tell, comes first."""
        return timedelta(seconds=max(600, 2 * self.hang_seconds))


class Checkpoint(Config):
    """When state is committed to the run directory and what is kept of it."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        None, description="Steps between two checkpoints."
    )
    every_minutes: Annotated[float, Field(ge=0.01, le=10_080)] | None = Field(
        None, description="Minutes between two checkpoints. Absent, with everySteps absent too: 10."
    )
    keep_last: Annotated[int, Field(ge=1, le=1000)] = Field(2, description="Newest checkpoints that are kept.")
    keep_every: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        None, description="Steps between two checkpoints that are kept for good. Absent: none is."
    )
    keep_best: Annotated[int, Field(ge=0, le=1000)] = Field(
        1,
        description="Best checkpoints by an evaluated metric that are kept. Unless 0, a step whose evaluation is the "
        "best so far is committed, and the best one, not the last, is tested and exported at the end.",
    )
    best_metric: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        "loss", description="Metric of the validation split that keepBest goes by."
    )
    best_mode: Literal["min", "max"] = Field("min", description="Whether less or more of it is better.")
    drain_seconds: Annotated[int, Field(ge=5, le=86_400)] = Field(
        120, description="Grace period of the pods: time to commit a checkpoint after SIGTERM."
    )

    @model_validator(mode="after")
    def _one_cadence(self) -> Self:
        if self.every_steps is not None and self.every_minutes is not None:
            raise ValueError(
                f"everySteps ({self.every_steps}) and everyMinutes ({self.every_minutes:.2f}) exclude each other: "
                "remove one"
            )
        return self


class Evaluation(Config):
    """Evaluation on the validation split while training; the test split is evaluated once, at the end."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] = Field(500, description="Steps between two evaluations.")
    max_samples: Annotated[int, Field(ge=1, le=100_000_000)] | None = Field(
        None, description="Validation samples of a periodic evaluation. Absent: all. The final one is always whole."
    )
