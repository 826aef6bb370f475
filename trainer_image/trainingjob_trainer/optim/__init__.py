"""Optimizers and learning-rate schedules."""

from trainingjob_trainer.optim.adamw import build_optimizer, materialize
from trainingjob_trainer.optim.schedule import learning_rate

__all__ = ["build_optimizer", "learning_rate", "materialize"]
