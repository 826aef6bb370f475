"""A step as one would write it by hand, beside the trainer's; it lies here because new processes import it by name."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.seeding import seed_generators
from trainingjob_trainer.tasks import IGNORE

from support.rank_functions import build, masked_batch

Weights = dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"]


def steps_both_ways(configs: list[JobConfig]) -> list[tuple[Weights, Weights]]:
    """Of each run the weights after its first step (SGD without momentum, one pass), in float64: ours, and by hand."""
    found = []
    for config in configs:
        stepper = build(config, exact=True)
        model = copy.deepcopy(stepper.model)
        batch = masked_batch(0, config.training.global_batch_size, config.training.sequence_length)
        stepper(0, batch)
        step_by_hand(model, config, batch.inputs, batch.targets)
        found.append((weights_of(stepper.model), weights_of(model)))
    return found


def step_by_hand(model: nn.Module, config: JobConfig, inputs: Tensor, targets: Tensor) -> None:
    training, optimizer = config.training, config.training.optimizer
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    seed_generators(training.seed, 0, 0, 0)
    logits = model(inputs).flatten(0, 1)
    loss = cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, label_smoothing=training.label_smoothing)
    for weight in matrices:
        loss = loss + optimizer.l1 * weight.abs().sum() + optimizer.l2 / 2 * weight.square().sum()
    torch.autograd.backward(loss)
    if training.clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
    with torch.no_grad():
        for weight in matrices:
            weight.mul_(1 - optimizer.lr * optimizer.decay)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(optimizer.lr * parameter.grad)


def weights_of(model: nn.Module) -> Weights:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
