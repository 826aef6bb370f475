"""How much memory parts of a step take at their peak, in a process of their own."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from trainingjob_trainer.config import JobConfig, Optimizer
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.optim import WeightAverage, add_penalties, build_optimizer
from trainingjob_trainer.tasks import build_task

from support.training import put_tokens, store_of


def peak_of_a_step(config: JobConfig, vocabulary: int, rows: int) -> list[int]:
    """Bytes that the loss and the gradient of a batch take at their peak: with whole logits, and as the task has it."""
    manifest = put_tokens(store_of(config)).model_copy(update={"vocab_size": vocabulary})
    model, task = build_model(config, manifest), build_task(config, manifest)
    init_weights(model, 1)
    tokens = torch.randint(vocabulary, (rows, config.training.sequence_length))

    def whole() -> torch.Tensor:
        return task.loss_of(model(tokens), tokens)[0]

    def ours() -> torch.Tensor:
        return task.loss_sum(model, tokens, tokens)[0]

    ours().backward()  # allocates the gradients, and what stays
    return [_peak(lambda loss=loss: loss().backward()) for loss in (whole, ours)]


def peaks_of_updates(names: list[str]) -> tuple[int, dict[str, int]]:
    """Bytes of the weights of a model, and those that what moves them and follows them takes at its peak."""
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList(torch.nn.Linear(512, 256, bias=False) for _ in range(32))
    parameters, yes = list(model.parameters()), torch.tensor(True)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    average = WeightAverage(model, 0.9)
    average.restart()
    actions: dict[str, Callable[[], None]] = {
        name: partial(build_optimizer(model, Optimizer.model_validate({"name": name})).step, 1e-3, yes)
        for name in names
    }
    actions["average"] = partial(average.update, yes)
    actions["penalties"] = partial(add_penalties, parameters, Optimizer(name="sgd", l1=0.1, l2=0.1), torch.ones(()))
    for action in actions.values():
        action()  # what stays is there from now on
    return sum(p.nbytes for p in parameters), {name: _peak(action) for name, action in actions.items()}


def _peak(action: Callable[[], Any]) -> int:
    """How far the resident memory of this process rises above what it is now."""

    def kilobytes(field: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(line.split()[1])

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present size from now on
    before = kilobytes("VmRSS")
    action()
    return 1024 * (kilobytes("VmHWM") - before)
