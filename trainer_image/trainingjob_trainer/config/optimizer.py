"""Optimizer, learning-rate schedule and early stopping."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainingjob_trainer.config.base import Config


class Optimizer(Config):
    """From gradients to weights. Decay and penalties are for matrices; norms and biases are spared."""

    name: Literal["adamw", "adam", "sgd", "rmsprop", "adagrad", "muon"] = Field(
        "adamw", description="Optimizer. muon: for the matrices inside the blocks, with AdamW for the rest."
    )
    lr: Annotated[float, Field(gt=0, le=10)] = Field(6e-4, description="Peak learning rate.")
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.95], description="Decay of the first and second moment (adamw, adam, muon)."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Momentum (sgd, rmsprop, muon). Absent: 0.9 for sgd, 0.95 for muon, 0 for rmsprop."
    )
    nesterov: bool = Field(False, description="Nesterov's momentum (sgd; muon always has it).")
    alpha: Annotated[float, Field(ge=0, lt=1)] = Field(0.99, description="Decay of the mean square (rmsprop).")
    eps: Annotated[float, Field(gt=0, le=1)] = Field(1e-8, description="Added to the denominator.")
    weight_decay: Annotated[float, Field(ge=0, le=10)] | None = Field(
        None, description="Decoupled weight decay. Absent: 0.1 for adamw and muon unless l2 is set, else 0."
    )
    l2: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="Weight of the penalty sum(w^2)/2 in the loss: the coupled kind of weight decay."
    )
    l1: Annotated[float, Field(ge=0, le=10)] = Field(0.0, description="Weight of the penalty sum(|w|) in the loss.")

    @model_validator(mode="after")
    def _one_kind_of_decay(self) -> Self:
        if self.l2 and self.weight_decay:
            both = f"l2 ({self.l2:.3f}) is coupled and weightDecay ({self.weight_decay:.3f}) decoupled decay"
            raise ValueError(f"{both}: set one of them")
        return self

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            momentum = "its default" if self.momentum is None else f"{self.momentum:g}"
            raise ValueError(f"nesterov is for name sgd with a momentum above 0, not {self.name} with {momentum}")
        return self

    @property
    def decay(self) -> float:
        """Decoupled weight decay, after the default."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.1 if self.name in ("adamw", "muon") and not self.l2 else 0.0

    @property
    def inertia(self) -> float:
        """Momentum, after the default."""
        return self.momentum if self.momentum is not None else self._usual_inertia

    @property
    def _usual_inertia(self) -> float:
        return {"sgd": 0.9, "muon": 0.95}.get(self.name, 0.0)

    def identity(self) -> dict[str, str | float]:
        """What decides which moments there are: the name, and momentum where there is some and usually none, or none.

        Muon has its momentum even if that is 0.
        """
        if self.name == "muon" or (self.inertia > 0) == (self._usual_inertia > 0):
            return {"name": self.name}
        return {"name": self.name, "momentum": "above 0" if self.inertia else 0}


class Point(Config):
    """A point of a piecewise linear schedule."""

    step: Annotated[int, Field(ge=0, le=100_000_000)] = Field(description="Step, counted from 0.")
    ratio: Annotated[float, Field(ge=0, le=1)] = Field(description="Learning rate over the peak.")


class Schedule(Config):
    """Linear warm-up, then a shape that ends at the last step. A pure function of the step."""

    name: Literal["cosine", "constant", "linear", "warmup-stable-decay", "points"] = Field(
        "cosine", description="Shape after the warm-up."
    )
    warmup_steps: Annotated[int, Field(ge=0, le=10_000_000)] = Field(100, description="Steps of linear warm-up.")
    min_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="Last learning rate over the peak (cosine, linear, warmup-stable-decay)."
    )
    decay_steps: Annotated[int, Field(ge=1, le=100_000_000)] = Field(
        1000, description="Last steps, in which the rate falls (warmup-stable-decay)."
    )
    points: Annotated[list[Point], Field(max_length=64)] = Field(
        default_factory=list, description="Steps in rising order, with straight lines between them (points)."
    )

    @model_validator(mode="after")
    def _points_rise(self) -> Self:
        if (self.name == "points") != bool(self.points):
            given = f"name is {self.name}, points are {len(self.points)}"
            raise ValueError(f"points are given exactly if name is points: {given}")
        steps = [point.step for point in self.points]
        if any(left >= right for left, right in pairwise(steps)):
            raise ValueError(f"points must be in rising order of step, without repetition; their steps are {steps}")
        return self


class EarlyStopping(Config):
    """The run ends when the validation loss, or another metric, does not get better any more."""

    metric: Annotated[str, Field(min_length=1, max_length=64)] = Field("loss", description="Metric that is watched.")
    mode: Literal["min", "max"] = Field("min", description="Whether less or more of it is better.")
    patience: Annotated[int, Field(ge=1, le=10_000)] = Field(3, description="Evaluations without a better one.")
    min_delta: Annotated[float, Field(ge=0, le=1e6)] = Field(0.0, description="Least improvement that counts.")

    def __str__(self) -> str:
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.metric} was no better{by} in {self.patience} evaluation{'s' if self.patience > 1 else ''}"
