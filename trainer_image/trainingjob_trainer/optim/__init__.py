"""From gradients to weights: optimizers, penalties, learning-rate schedules, moving averages."""

from trainingjob_trainer.optim.average import WeightAverage, averaged_tensors
from trainingjob_trainer.optim.optimizers import OptimizerGroup, build_optimizer
from trainingjob_trainer.optim.penalty import add_penalties
from trainingjob_trainer.optim.schedule import learning_rate

__all__ = ["OptimizerGroup", "WeightAverage", "add_penalties", "averaged_tensors", "build_optimizer", "learning_rate"]
