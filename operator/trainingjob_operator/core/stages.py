"""Stages of a run: each a gang of pods whose index 0 decides how it ends (docs/contracts.md §1)."""

from __future__ import annotations

from typing import Literal

from trainingjob_operator.api.spec import TrainingJobSpec
from trainingjob_operator.api.status import Resolved, Role, Stage

ORDER: tuple[Stage, ...] = ("Check", "PrepareData", "Train")
Outcome = Literal["PrepareData", "Train", "Finished"]


def first_stage(spec: TrainingJobSpec) -> Stage:
    """Where a run begins, and begins again after a suspension. A custom command has nothing that could be prepared."""
    return "Train" if spec.custom else "Check"


def role_of(stage: Stage) -> Role:
    return "train" if stage == "Train" else "prepare"


def gang_size(stage: Stage, spec: TrainingJobSpec, resolved: Resolved) -> int:
    """Pods of the stage."""
    if stage == "Check":
        return 1
    if stage == "Train":
        return resolved.replicas
    assert spec.data is not None
    return spec.data.prepare.replicas


def may_follow(stage: Stage, outcome: Outcome) -> bool:
    """Whether index 0 of `stage` may end with `outcome`: never back, never the same again."""
    if outcome == "Finished":
        return stage != "PrepareData"
    return ORDER.index(outcome) > ORDER.index(stage)
