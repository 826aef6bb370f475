"""One number for each row: loss, mean squared and absolute error, R2."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from trainingjob_trainer.config import Task as Config
from trainingjob_trainer.data.manifest import Manifest, Scale, SplitName
from trainingjob_trainer.tasks.base import Task, TaskMetrics, all_reduce, precise


class Regression(Task):
    """Predictions `[rows]` in standard deviations from the mean, targets `[rows]` as they are in the data.

    A target that is NaN has no weight (a real number may have any other value).
    """

    def __init__(self, manifest: Manifest, config: Config) -> None:
        self._scale, self._config = (manifest.scales or [])[-1], config

    def loss_of(self, predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        counts = ~targets.isnan()
        losses = self.losses(precise(predictions), targets.nan_to_num())
        return torch.where(counts, losses, 0.0).sum(), counts.sum()

    def losses(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, of scaled values: mse the square of the error, mae its size, huber (1964) its square by
        two below `huberDelta`, and linear above."""
        scaled = ((targets.double() - self._scale.mean) / self._scale.deviation).to(predictions.dtype)
        match self._config.objective:
            case "mae":
                return l1_loss(predictions, scaled, reduction="none")
            case "huber":
                return huber_loss(predictions, scaled, reduction="none", delta=self._config.delta)
            case _:
                return mse_loss(predictions, scaled, reduction="none")

    def metrics(self, split: SplitName, device: torch.device) -> RegressionMetrics:
        return RegressionMetrics(self, self._scale, device)


class RegressionMetrics:
    """The loss is of scaled values, the errors are in the units of the data."""

    def __init__(self, task: Regression, scale: Scale, device: torch.device) -> None:
        self._task, self._scale = task, scale
        # count, loss, squared error, absolute error, target, its square: targets around the training data's mean, since
        # a variance that is small beside the mean would be lost in the difference of two sums
        self._sums = torch.zeros(6, dtype=torch.float64, device=device)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        predictions, targets = precise(predictions), targets.double()
        counts = ~targets.isnan()
        targets = targets.nan_to_num()
        centred = targets - self._scale.mean
        errors = predictions.double() * self._scale.deviation - centred
        losses = self._task.losses(predictions, targets).double()
        rows = torch.stack([torch.ones_like(errors), losses, errors**2, errors.abs(), centred, centred**2])
        self._sums += torch.where(counts, rows, 0.0).sum(1)

    def reduce(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        all_reduce(self._sums, group)

    def compute(self) -> TaskMetrics:
        count, loss, squares, sizes, targets, target_squares = self._sums.tolist()
        variation = target_squares - targets**2 / count
        return {
            "loss": loss / count,
            "mse": squares / count,
            "mae": sizes / count,
            "r2": 1 - squares / variation if variation > 0 else 0.0,
        }
