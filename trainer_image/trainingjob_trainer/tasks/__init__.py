"""What is learnt: the loss of a batch and the metrics of a split, one class for each kind of task."""

from __future__ import annotations

from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.tasks.base import IGNORE, EvaluationMetrics, Task, TaskMetrics

__all__ = ["IGNORE", "EvaluationMetrics", "Task", "TaskMetrics", "build_task"]


def build_task(config: TrainerSpec, manifest: Manifest) -> Task:
    """The task that the configuration names, for the data that the manifest describes."""
    if config.task.kind == "language-modeling":
        from trainingjob_trainer.tasks.language_modeling import LanguageModeling

        return LanguageModeling(manifest, config.training.label_smoothing, config.data.packing)
    from trainingjob_trainer.tasks.classification import Classification

    return Classification(manifest, config.training.label_smoothing)
