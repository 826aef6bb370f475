"""What a checkpoint holds: the tensors of model and optimizer, and the position and history of the run."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor, nn

from trainingjob_trainer.config import Config
from trainingjob_trainer.optim import OptimizerGroup, WeightAverage

CURVE = 2000  # stretches of a loss curve: a checkpoint's JSON is made on the training thread, and a plot shows no more


class LoggedStep(Config):
    """A point of the loss curve: the step's own global loss, not a running mean. Steps count from 1, when finished."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float


class Evaluated(Config):
    """Metrics of the validation split after `step` steps; numbers only."""

    step: int
    metrics: dict[str, float]


class Progress(Config, frozen=False):
    """Where a run is: `trainer.json`. Floats keep their bits in JSON: a resumed series equals the undisturbed one."""

    version: int = 1
    step: int = 0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0  # steps whose loss or gradient was not finite, or that had no data
    skipped_in_a_row: int = 0  # up to `step`
    corrupt_samples: int = 0  # training samples that were left out because their data is corrupt, on all ranks
    history: list[LoggedStep] = Field(default_factory=list)
    evaluations: list[Evaluated] = Field(default_factory=list)

    def log(self, logged: LoggedStep) -> None:
        """Add a point to the loss curve, which keeps the first point of each stretch of steps, and the newest of all.

        A stretch has the smallest power of two of steps with which `CURVE` stretches suffice, so where it grows it is
        two of the former: the curve follows from the logged steps alone, wherever the run was resumed.
        """
        length, history = _stretch(logged.step), self.history
        grown = bool(history) and _stretch(history[-1].step) != length
        start = 0 if grown or len(history) > CURVE + 1 else max(0, len(history) - 2)
        firsts: dict[int, LoggedStep] = {}
        for point in history[start:]:
            firsts.setdefault((point.step - 1) // length, point)
        history[start:] = [*firsts.values(), logged]


def _stretch(step: int) -> int:
    """Steps a stretch of the curve that has come to `step`."""
    return 1 << ((step - 1) // CURVE).bit_length()


def state_tensors(
    model: nn.Module, optimizer: OptimizerGroup, average: WeightAverage | None = None
) -> dict[str, Tensor]:
    """The live tensors of model and optimizer by name, sharded ones as `DTensor`s: to save, or to load into.

    `model.<parameter or buffer>`, `optimizer.<parameter>.<moment>` and `average.<parameter>`. The optimizer's settings
    are the configuration's.
    """
    tensors = {f"model.{name}": tensor for name, tensor in stored_tensors(model).items()}
    for name, parameter in model.named_parameters():
        for moment, tensor in optimizer.state_of(parameter).items():
            tensors[f"optimizer.{name}.{moment}"] = tensor
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
    return tensors


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and persistent buffers by name, each once: parameters that are tied have one name."""
    again = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in again}


def weights_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `state_tensors` that evaluation and export take: all but the optimizer's."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")}
