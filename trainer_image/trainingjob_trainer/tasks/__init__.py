"""What is learnt: the loss of a batch and the metrics of a split, one class for each kind of task."""

from __future__ import annotations

from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.tasks.base import IGNORE, EvaluationMetrics, Task, TaskMetrics, weightless

__all__ = ["IGNORE", "EvaluationMetrics", "Task", "TaskMetrics", "build_task", "weightless"]


def build_task(config: TrainerSpec, manifest: Manifest, compiled: bool = False) -> Task:
    """The task that the configuration names, for the data that the manifest describes.

    compiled: with kernels made for it, where that makes a difference.
    """
    smoothing = config.training.label_smoothing
    match config.task.kind:
        case "language-modeling":
            from trainingjob_trainer.tasks.language_modeling import LanguageModeling

            return LanguageModeling(manifest, smoothing, config.data.packing, compiled)
        case "regression":
            from trainingjob_trainer.tasks.regression import Regression

            return Regression(manifest, config.task)
        case _ if config.task.multi_label:
            from trainingjob_trainer.tasks.multi_label import MultiLabel

            return MultiLabel(manifest, smoothing)
        case _:
            from trainingjob_trainer.tasks.classification import Classification

            return Classification(manifest, smoothing)
