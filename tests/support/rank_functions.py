"""What the ranks of a test do. In a module of its own, because a new process has to import it by name."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainingjob_trainer import learner, loop
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.cadence import Cadence
from trainingjob_trainer.checkpoint.checkpointer import Checkpointer
from trainingjob_trainer.checkpoint.commits import commits, latest
from trainingjob_trainer.checkpoint.state import Progress, state_tensors
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.batches import share
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest
from trainingjob_trainer.data.reader import Batch, Reader
from trainingjob_trainer.errors import StorageError
from trainingjob_trainer.loop import train
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.parallel import StepSums, World
from trainingjob_trainer.seeding import make_deterministic
from trainingjob_trainer.step import Stepper
from trainingjob_trainer.stop import Stop
from trainingjob_trainer.storage import LocalStore, Store
from trainingjob_trainer.tasks import IGNORE

from support.runs import PATIENCE
from support.state_hash import hash_state
from support.training import VOCABULARY, Hooks, store_of

aten = torch.ops.aten


def build(config: JobConfig, exact: bool = False) -> Stepper:
    """Model and optimizer at their first step, as the loop builds them; `exact`: all of it in float64."""
    make_deterministic()
    manifest = Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY))
    with in_float64() if exact else nullcontext():
        built = learner.Learner.of(config, manifest, World.join())
    init_weights(built.model, config.training.seed)
    if built.stepper.average is not None:
        built.stepper.average.restart()
    return built.stepper


def in_float64() -> AbstractContextManager[Any]:
    """In which a learner computes in float64, which no configuration asks for."""

    def build(config: JobConfig, manifest: Manifest) -> torch.nn.Module:
        return build_model(config, manifest).to(torch.float64)

    return mock.patch.multiple(learner, build_model=build, pass_dtype=lambda *_: torch.float64)


def masked_batch(step: int, rows: int, length: int) -> Batch:
    """A global batch of documents of unequal length: what lies behind a document's end is masked."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randint(VOCABULARY, (rows, length), generator=generator)
    targets = (inputs * 5 + 3) % VOCABULARY
    ends = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return Batch(inputs, targets.where(torch.arange(length) < ends, IGNORE))


def own_rows(stepper: Stepper, batch: Batch) -> Batch:
    """This rank's rows of a global batch, as the loop reads them: one row where it has none."""
    rows = list(share(len(batch.targets), stepper.world.data_size, stepper.world.data_rank)) or [0]
    return Batch(batch.inputs[rows], batch.targets[rows])


def dtypes(config: JobConfig) -> tuple[set[torch.dtype], set[torch.dtype], float]:
    """Types of gradients, weights and moments around a step; of what ranks summed to gradients; and its loss."""
    stepper = build(config)
    batch = own_rows(stepper, masked_batch(0, config.training.global_batch_size, config.training.sequence_length))
    summed: set[torch.dtype] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "c10d" in str(func) and "reduce_scatter" in str(func):
                summed.update(tensor.dtype for tensor in tree_leaves(args) if isinstance(tensor, torch.Tensor))
            return func(*args, **(kwargs or {}))

    with Watch():
        loss = stepper.backward(0, batch).loss.item()
    found = {parameter.grad.dtype for parameter in stepper.model.parameters() if parameter.grad is not None}
    tensors = state_tensors(stepper.model, stepper.optimizer, stepper.average)
    return found | {tensor.dtype for tensor in tensors.values()}, summed, loss


def save_state(config: JobConfig, attempt: int, steps: int, metrics: dict[str, float] | None = None) -> str:
    """Take steps, then commit a checkpoint; the hash of the whole state."""
    stepper = build(config)
    for step in range(steps):
        batch = masked_batch(step, config.training.global_batch_size, config.training.sequence_length)
        stepper(step, own_rows(stepper, batch))
    checkpointer = checkpointer_of(config, attempt, stepper.world)
    tensors = state_tensors(stepper.model, stepper.optimizer, stepper.average)
    checkpointer.save(tensors, Progress(step=steps))
    checkpointer.wait()
    return hash_whole(stepper)


def save_often(config: JobConfig, every: int, seconds: float) -> tuple[dict[int, str], dict[int, str], int]:
    """Take the run's steps and save every few of them through a store whose writes take `seconds`, and a step at least.

    Hashes of this rank's state at each call and as it is loaded afterwards, by step; how many steps were taken while a
    save was under way.
    """
    stepper = build(config)
    store, gone_on = store_of(config), threading.Event()
    checkpointer = Checkpointer(
        Attempt(1, SlowStore(store, seconds, gone_on)), stepper.world, config.identity_hash(), config.checkpoint
    )
    at_call, overlapped = {}, 0
    for step in range(1, config.training.steps + 1):
        take(stepper, range(step - 1, step))
        overlapped += checkpointer.committed_step != checkpointer.saved_step
        gone_on.set()
        if step % every == 0:
            checkpointer.wait()
            gone_on.clear()
            tensors = state_tensors(stepper.model, stepper.optimizer, stepper.average)
            checkpointer.save(tensors, Progress(step=step))
            at_call[step] = hash_state(tensors)
    gone_on.set()
    checkpointer.wait()
    loaded = {}
    for commit in commits(store):
        checkpointer.load(commit, tensors)
        loaded[commit.step] = hash_state(tensors)
    return at_call, loaded, overlapped


def judged(config: JobConfig) -> list[int]:
    """The whole loop; of how many evaluations it was asked, each time, whether the run stops early."""
    with mock.patch.object(loop, "stops_early", wraps=loop.stops_early) as asked:
        seen = list[int]()
        asked.side_effect = lambda evaluations, _: seen.append(len(evaluations)) or mock.DEFAULT
        train(config, Attempt(1, store_of(config)), Hooks())
    return seen


def train_on_unlike_cpus(config: JobConfig) -> tuple[Any, Any]:
    """The whole loop; only the first rank's CPU has instructions for bfloat16."""
    able = {"avx512_bf16": World.join().rank == 0}
    with mock.patch.object(torch.cpu, "get_capabilities", return_value=able):
        return train_run(config, 1)


def train_without_space(config: JobConfig, attempt: int, full: str) -> Any:
    """The whole loop; the last rank finds no space for objects whose key has `full` in it.

    The error's step is the last one that was told of, by rank 0. A save is over by the next step, however little the
    machine lets its thread run.
    """

    class Unhurried(Hooks):
        def stop_requested(self) -> Stop:
            saving = [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
            for thread in saving:
                thread.join(PATIENCE)
            return super().stop_requested()

    world, hooks = World.join(), Unhurried()
    store = FullStore(store_of(config), full) if world.rank == world.size - 1 else store_of(config)
    try:
        return train(config, Attempt(attempt, store), hooks)
    except StorageError as error:
        error.step = max((report["progress"]["step"] for report in hooks.reports if "progress" in report), default=None)
        raise


class FullStore(LocalStore):
    """A directory on a volume that is full, as far as some objects go."""

    def __init__(self, store: Store, full: str) -> None:
        super().__init__(store.root, store.storage)
        self._full = full

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        self._refuse(key)
        return super().put(key, data, if_none_match=if_none_match, if_match=if_match)

    def put_file(self, key: str, path: Path) -> None:
        self._refuse(key)
        super().put_file(key, path)

    def _refuse(self, key: str) -> None:
        if self._full in key:
            with self._errors(key):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class SlowStore(LocalStore):
    """A directory whose big objects take their time, and wait until somebody has gone on."""

    def __init__(self, store: Store, seconds: float, gone_on: threading.Event) -> None:
        super().__init__(store.root, store.storage)
        self._seconds, self._gone_on = seconds, gone_on

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        if key.endswith(".bin"):
            time.sleep(self._seconds)
            assert self._gone_on.wait(PATIENCE)
        return super().put(key, data, if_none_match=if_none_match, if_match=if_match)


def load_state(config: JobConfig, attempt: int) -> str:
    """Load the newest checkpoint into a new model; the hash of the whole state."""
    stepper = build(config)
    commit = latest(store_of(config))
    assert commit is not None
    tensors = state_tensors(stepper.model, stepper.optimizer, stepper.average)
    checkpointer_of(config, attempt, stepper.world).load(commit, tensors)
    return hash_whole(stepper)


def whole(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A copy of a tensor, gathered from all ranks."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().numpy().copy()


def hash_whole(stepper: Stepper) -> str:
    """Hash of model and optimizer, the same at every world size."""
    tensors = state_tensors(stepper.model, stepper.optimizer, stepper.average)
    return hash_state({n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()})


def initial_state(config: JobConfig) -> list[tuple[str, float]]:
    """Name and standard deviation of each tensor of the model before its first step."""
    stepper = build(config)
    whole = {
        n: t.full_tensor() if isinstance(t, DTensor) else t
        for n, t in state_tensors(stepper.model, stepper.optimizer).items()
    }
    return [(n, float(t.double().std(correction=0))) for n, t in whole.items() if n.startswith("model.")]


def statistics_around_a_bad_step(config: JobConfig) -> list[list[Any]]:
    """The BatchNorm statistics before and after a step whose images are not finite."""
    stepper = build(config)
    manifest = Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY))
    reader = Reader(store_of(config), manifest, "train", config.training.sequence_length)
    rows = reader.read(range(config.training.global_batch_size))
    stepper(0, rows)
    before = [buffer.tolist() for buffer in stepper.statistics]
    sums = stepper(1, Batch(rows.inputs * math.inf, rows.targets))
    assert not sums.loss.isfinite()
    return [before, [buffer.tolist() for buffer in stepper.statistics]]


def averaged_statistics(config: JobConfig) -> tuple[bool, bool]:
    """Whether the average holds that of a BatchNorm's statistics over three steps, and an evaluation sees it."""
    stepper = build(config)
    average, model, decay = stepper.average, stepper.model, config.training.ema_decay
    assert average is not None
    name = next(name for name, _ in model.named_buffers() if name.endswith("running_mean"))
    manifest = Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY))
    reader = Reader(store_of(config), manifest, "train", config.training.sequence_length)
    expected = model.get_buffer(name).clone()
    for step in range(3):
        stepper(step, reader.read(range(config.training.global_batch_size)))
        expected = expected.lerp(model.get_buffer(name), 1 - decay)
    held = torch.equal(average.tensors[name], expected) and not torch.equal(model.get_buffer(name), expected)
    with average.in_place():
        return held, torch.equal(model.get_buffer(name), expected)


def checkpointer_of(config: JobConfig, attempt: int, world: World) -> Checkpointer:
    return Checkpointer(Attempt(attempt, store_of(config)), world, config.identity_hash(), config.checkpoint)


def train_run(
    config: JobConfig,
    attempt: int,
    stop_after: int | None = None,
    kill_after: int | None = None,
    stop: Stop = Stop.NOW,
    stop_after_passes: int | None = None,
) -> Any:
    """The whole loop; gives the result and what was reported. Only the last rank is asked to stop, all are killed."""
    last = not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1
    passes = stop_after_passes if last else None
    hooks = Hooks(stop_after if last else None, kill_after, stop, store_of(config), passes)
    result = train(config, Attempt(attempt, store_of(config)), hooks)
    return result, hooks.reports


def train_exactly(
    config: JobConfig, attempt: int, stop_after: int | None = None, kill_after: int | None = None, stop: Stop = Stop.NOW
) -> Any:
    """`train_run`, all of it computed in float64."""
    with in_float64():
        return train_run(config, attempt, stop_after, kill_after, stop)


def train_on_s3(config: JobConfig, attempt: int, environment: dict[str, str], directory: Path) -> Any:
    """The whole loop with credentials for S3. In `directory`: this process's id, and the step it has reached."""
    os.environ.update(environment)
    (directory / f"{os.getpid()}.pid").touch()
    hooks = WatchedHooks(directory / "step")
    return train(config, Attempt(attempt, store_of(config)), hooks), hooks.reports


class WatchedHooks(Hooks):
    """Hooks that also leave the step in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def report(self, fields: Mapping[str, Any]) -> None:
        super().report(fields)
        if "progress" in fields:
            self._path.write_text(str(fields["progress"]["step"]))


def hash_commits(config: JobConfig, environment: dict[str, str]) -> dict[int, str]:
    """The hash of the whole state of every checkpoint in S3, by step."""
    os.environ.update(environment)
    stepper = build(config)
    tensors = state_tensors(stepper.model, stepper.optimizer, stepper.average)
    checkpointer = checkpointer_of(config, 1, stepper.world)
    hashes = {}
    for commit in commits(store_of(config)):
        checkpointer.load(commit, tensors)
        hashes[commit.step] = hash_whole(stepper)
    return hashes


def train_by_the_clock(config: JobConfig, attempt: int) -> str:
    """The whole loop. By the last rank's clock seven steps take too long, the others' clocks stand still."""
    world, asked = World.join(), 0

    def overdue(self: Cadence) -> bool:
        nonlocal asked
        asked += 1
        return world.rank == world.size - 1 and asked >= 7

    def restart(self: Cadence) -> None:
        nonlocal asked
        asked = 0

    with mock.patch.multiple(Cadence, overdue=overdue, restart=restart):
        return train(config, Attempt(attempt, store_of(config)), Hooks()).model_uri


def weights_after(config: JobConfig) -> dict[str, np.ndarray[Any, Any]]:
    """The whole weights after the run's steps."""
    stepper = build(config)
    take(stepper, range(config.training.steps))
    return {name: whole(parameter) for name, parameter in stepper.model.named_parameters()}


def hash_steps(config: JobConfig, steps: int) -> str:
    """The hash of the whole state after some steps."""
    stepper = build(config)
    take(stepper, range(steps))
    return hash_whole(stepper)


def save_and_go_on(config: JobConfig, at: int, steps: int) -> tuple[str, str]:
    """Hashes of the whole state after `at` steps, where it is committed, and after `steps`."""
    stepper = build(config)
    take(stepper, range(at))
    checkpointer = checkpointer_of(config, 1, stepper.world)
    checkpointer.save(state_tensors(stepper.model, stepper.optimizer, stepper.average), Progress(step=at))
    checkpointer.wait()
    saved = hash_whole(stepper)
    take(stepper, range(at, steps))
    return saved, hash_whole(stepper)


def load_and_go_on(config: JobConfig, steps: int) -> tuple[str, str]:
    """Hashes of the whole state as the newest checkpoint has it, and carried on to step `steps`."""
    stepper = build(config)
    commit = latest(store_of(config))
    assert commit is not None
    tensors = state_tensors(stepper.model, stepper.optimizer, stepper.average)
    progress = checkpointer_of(config, 2, stepper.world).load(commit, tensors)
    loaded = hash_whole(stepper)
    take(stepper, range(progress.step, steps))
    return loaded, hash_whole(stepper)


def poisoned_step(config: JobConfig) -> tuple[str, str]:
    """Hashes of this rank's state before and after a step in which the last rank has one NaN gradient."""
    stepper = build(config)
    take(stepper, range(2))

    def state() -> str:
        return hash_state(state_tensors(stepper.model, stepper.optimizer, stepper.average))

    before = state()
    if stepper.world.rank == stepper.world.size - 1:
        stepper.model.get_submodule("norm").register_forward_hook(_poison)
    take(stepper, range(2, 3))
    return before, state()


def read_by_a_step(config: JobConfig) -> list[str]:
    """The operations of a step for which the host waits for the device, if there is one."""
    stepper, read = build(config), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default):
                read.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        take(stepper, range(2))
    return read


def train_with_a_bad_step(config: JobConfig, attempt: int, bad: int) -> Any:
    """The whole loop, in which the last rank has one NaN gradient at step `bad`, counted from 0."""
    world, step_on = World.join(), Stepper.__call__

    def call(self: Stepper, step: int, batch: Batch) -> StepSums:
        if step != bad or world.rank != world.size - 1:
            return step_on(self, step, batch)
        handle = self.model.get_submodule("norm").register_forward_hook(_poison)
        try:
            return step_on(self, step, batch)
        finally:
            handle.remove()

    with mock.patch.object(Stepper, "__call__", call):
        return train(config, Attempt(attempt, store_of(config)), Hooks())


def _poison(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
    """One number of the gradient that flows back through the module is not one."""

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        poisoned = gradient.clone()
        poisoned[0, 0, 0] = torch.nan
        return poisoned

    output.register_hook(hook)


def take(stepper: Stepper, steps: range) -> list[StepSums]:
    """Steps on masked batches."""
    training = stepper.training
    rows, length = training.global_batch_size, training.sequence_length
    return [stepper(step, own_rows(stepper, masked_batch(step, rows, length))) for step in steps]
