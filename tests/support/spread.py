"""What ranks do in the tests of parallel layouts."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch.distributed.tensor.debug import CommDebugMode
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from trainingjob_trainer import loop, stopwatch
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.commits import latest
from trainingjob_trainer.checkpoint.state import Progress, state_tensors
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.reader import Batch
from trainingjob_trainer.parallel import StepSums, Straggler, Stragglers, World, local_part
from trainingjob_trainer.step import Stepper
from trainingjob_trainer.telemetry import Telemetry

from support.rank_functions import build, checkpointer_of, hash_whole, masked_batch, own_rows, take, whole
from support.training import Hooks, store_of

Array = np.ndarray[Any, Any]


class Series(NamedTuple):
    """Of the steps of one rank, and the whole weights after them."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Array]


def in_turn(calls: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Many functions in the same ranks, whose start takes longer than they do."""
    return [function(*args) for function, args in calls]


def in_turn_on_s3(environment: dict[str, str], calls: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """The same, with the storage's keys in the environment."""
    os.environ.update(environment)
    return in_turn(calls)


def series_of(config: JobConfig, exact: bool) -> Series:
    """The run's steps on masked batches; `exact`: in float64."""
    stepper = build(config, exact)
    sums = take(stepper, range(config.training.steps))
    weights = {name: whole(parameter) for name, parameter in stepper.model.named_parameters()}
    return Series([step.loss.item() for step in sums], [step.grad_norm.item() for step in sums], weights)


def continued(config: JobConfig, attempt: int) -> tuple[str, list[float]]:
    """The hash of the whole state that the newest checkpoint holds, and the losses of the steps that are left."""
    stepper = build(config)
    commit = latest(store_of(config))
    assert commit is not None
    tensors = state_tensors(stepper.model, stepper.optimizer, stepper.average)
    progress = checkpointer_of(config, attempt, stepper.world).load(commit, tensors)
    loaded = hash_whole(stepper)
    return loaded, [step.loss.item() for step in take(stepper, range(progress.step, config.training.steps))]


def gradients_of(config: JobConfig) -> tuple[float, dict[str, Array]]:
    """Loss of the first step and its whole gradients, in float64."""
    stepper = build(config, exact=True)
    batch = masked_batch(0, config.training.global_batch_size, config.training.sequence_length)
    loss = stepper.backward(0, own_rows(stepper, batch)).loss.item()
    return loss, {n: whole(p.grad) for n, p in stepper.model.named_parameters() if p.grad is not None}


def held(config: JobConfig) -> dict[str, int]:
    """Bytes that this rank holds after a step's backward pass, of weights, gradients and moments."""
    stepper = build(config)
    batch = masked_batch(0, config.training.global_batch_size, config.training.sequence_length)
    stepper.backward(0, own_rows(stepper, batch))
    parameters = list(stepper.model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    take(stepper, range(1))
    moments = [m for p in parameters for m in stepper.optimizer.state_of(p).values() if m.ndim]
    kinds = {"weights": parameters, "gradients": gradients, "moments": moments}
    return {kind: sum(local_part(tensor).nbytes for tensor in tensors) for kind, tensors in kinds.items()}


def growth_by_initialisation(config: JobConfig, first: JobConfig) -> int:
    """Bytes by which this process grew at most while its model was made, after `first`, for which it imports.

    Libraries' files are left out: how much of them is in memory, the kernel decides anew at any time.
    """
    build(first)
    gc.collect()
    before = _memory("VmRSS") - _memory("RssFile")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    build(config)
    return _memory("VmHWM") - _memory("RssFile") - before


def _memory(which: str) -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[which].split()[0]) * 1024


def reductions(config: JobConfig) -> dict[str, int]:
    """How often a whole step reduces over ranks, by operation."""
    stepper = build(config)
    with CommDebugMode() as counted:
        take(stepper, range(1))
    return {str(name): count for name, count in counted.get_comm_counts().items() if "reduce" in str(name)}


def reductions_of_a_run(config: JobConfig) -> int:
    """How often the whole loop reduces over ranks; what a save's thread does is not counted."""
    with CommDebugMode() as counted:
        loop.train(config, Attempt(1, store_of(config)), Hooks())
    return sum(count for name, count in counted.get_comm_counts().items() if "reduce" in str(name))


def gathers(config: JobConfig) -> int:
    """How often a step of one pass gathers weights over ranks."""
    stepper = build(config)
    batch = masked_batch(0, config.training.global_batch_size, config.training.sequence_length)
    with CommDebugMode() as counted:
        stepper.backward(0, own_rows(stepper, batch))
    return sum(count for name, count in counted.get_comm_counts().items() if "gather" in str(name))


def gathers_and_blocks(config: JobConfig) -> list[str]:
    """What a forward pass does, in order: gathers of weights, and blocks."""
    stepper = build(config)
    happened: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "c10d" in str(func) and "gather" in str(func):
                happened.append("gather")
            return func(*args, **(kwargs or {}))

    for block in stepper.model.get_submodule("blocks").children():
        block.register_forward_pre_hook(lambda *_: happened.append("block"))
    batch = masked_batch(0, config.training.global_batch_size, config.training.sequence_length)
    with Watch():
        stepper.model(own_rows(stepper, batch).inputs)
    return happened


def largest_kept(config: JobConfig) -> int:
    """Bytes of the largest tensor that a forward pass leaves for the backward pass and FSDP does not gather anew."""
    stepper = build(config)
    batch = masked_batch(0, config.training.global_batch_size, config.training.sequence_length)
    kept: list[torch.UntypedStorage] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(local_part(tensor).untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = stepper.model(own_rows(stepper, batch).inputs)
    assert logits.requires_grad
    return max(storage.nbytes() for storage in kept)


def kept_by_forward(config: JobConfig) -> int:
    """Bytes that a forward pass allocates and does not free."""
    stepper = build(config)
    batch = masked_batch(0, config.training.global_batch_size, config.training.sequence_length)
    with profile(profile_memory=True) as profiled:
        logits = stepper.model(batch.inputs)
    del logits
    return sum(event.self_cpu_memory_usage for event in profiled.key_averages())


def train_with_a_straggler(config: JobConfig, slow: int, does: str) -> tuple[list[dict[str, float]], int]:
    """The whole loop, in which rank `slow` computes 0.2 s longer a step, or waits a second for its data.

    Time is played: a step takes each rank 1.25 s. What was reported of it, and how often the ranks compared theirs.
    """
    is_slow, hooks, compared = World.join().rank == slow, Hooks(), 0
    take_step, ahead, exchange = Stepper.__call__, loop.prefetch, Stragglers.exchange
    now, ran = 0.0, 0.0

    def compute(self: Stepper, step: int, batch: Batch) -> StepSums:
        nonlocal now, ran
        now += 0.25 if is_slow and does == "wait" else 1.25
        ran += 0.25 if is_slow and does == "compute" else 0.05
        return take_step(self, step, batch)

    @contextmanager
    def wait(*args: Any, **more: Any) -> Iterator[Iterator[Batch]]:
        def late(batches: Iterator[Batch]) -> Iterator[Batch]:
            nonlocal now
            for batch in batches:
                now += 1.0 if is_slow and does == "wait" else 0.0
                yield batch

        with ahead(*args, **more) as read:
            yield late(read)

    def count(self: Stragglers, own: float) -> Straggler | None:
        nonlocal compared
        compared += 1
        return exchange(self, own)

    with (
        mock.patch.object(Stepper, "__call__", compute),
        mock.patch.object(loop, "prefetch", wait),
        mock.patch.object(Stragglers, "exchange", count),
        mock.patch.multiple(stopwatch, time=SimpleNamespace(monotonic=lambda: now), ran=lambda: ran),
    ):
        loop.train(config, Attempt(1, store_of(config)), hooks)
    return [told["progress"]["metrics"] for told in hooks.reports if told.get("progress", {}).get("metrics")], compared


def told_of_time(config: JobConfig, computes: int, waits: int) -> list[dict[str, float]]:
    """What telemetry says of three steps, before each of which one rank computes 0.3 s and one waits 0.1 s for data.

    Time is played.
    """
    world, now, ran = World.join(), 0.0, 0.0
    told = []
    with mock.patch.multiple(stopwatch, time=SimpleNamespace(monotonic=lambda: now), ran=lambda: ran):
        telemetry = Telemetry(config.training, Progress(), True, Stragglers(world))
        for _ in range(3):
            now, ran = now + 0.3, ran + (0.3 if world.rank == computes else 0.0)
            with telemetry.stopwatch.during("data"):
                now += 0.1 if world.rank == waits else 0.0
            telemetry.add(StepSums(*torch.ones(3, dtype=torch.float64, device=world.device)))
            told.append(telemetry.fields()["metrics"])
    return told
