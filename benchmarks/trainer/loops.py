"""The training loops that are compared: ours as it is, and others over the same model, optimizer, clipping and batches.

What each of them leaves out, none has: no evaluation, no checkpoint. All read the loss once in `logEvery` steps, and
`Losses` holds them to each other: who computes something else is not compared. Data is the one difference, and it is in
the others' favour: ours reads shuffled batches from files, for the others the same ones are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Dataset
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.batches import training_rows
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest
from trainingjob_trainer.data.reader import Batch, Reader
from trainingjob_trainer.errors import Hang
from trainingjob_trainer.loop import train
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.optim.optimizers import decay_groups
from trainingjob_trainer.parallel import World
from trainingjob_trainer.parallel.sharding import project_apart
from trainingjob_trainer.standstill import Stand
from trainingjob_trainer.stop import Stop
from trainingjob_trainer.storage import open_store
from trainingjob_trainer.tasks import build_task

from benchmarks.trainer.arms import Turn

COMPARED = 100  # steps; float32 loops sum in different orders, and training amplifies what that makes of a loss
TOLERANCE = 1e-3  # nats, up to there


@dataclass
class Losses:
    """The losses that the loops log, by step (from 1)."""

    first: dict[int, float] = field(default_factory=dict)

    def log(self, step: int, loss: float) -> None:
        """Take one in. Raises `AssertionError` if another loop had another one at this step."""
        expected = self.first.setdefault(step, loss)
        same = step > COMPARED or abs(loss - expected) <= TOLERANCE
        assert same, f"step {step}: a loss of {loss}, where another loop has {expected}"


@dataclass(frozen=True)
class Work:
    """What all loops do: a run, as far as its batches go, which are this rank's."""

    config: JobConfig
    world: World
    manifest: Manifest
    batches: list[Batch]
    losses: Losses = field(default_factory=Losses)

    @classmethod
    def of(cls, config: JobConfig, steps: int) -> Work:
        """The first steps of a run whose data is in its run directory. Collective."""
        world = World.join()
        store, training = open_store(config.output_uri, config.storage), config.training
        manifest = Manifest.model_validate_json(store.get(MANIFEST_KEY))
        reader = Reader(store, manifest, "train", training.sequence_length)
        order = reader.order(training.seed)
        rows = training_rows(range(steps), training.global_batch_size, order, world.size, world.rank)
        data = reader.load_all(range(reader.blocks.count))
        return cls(
            config, world, manifest, [reader.assemble(own % len(reader), *data).to(world.device) for own in rows]
        )

    def model(self) -> MeanLoss:
        """The model with its first weights; of several ranks, sharded as PyTorch's FSDP2 tutorial does it."""
        with torch.device("meta"):
            model = build_model(self.config, self.manifest)
        if self.world.size > 1:
            project_apart(model)
            for block in model.get_submodule("blocks").children():
                fully_shard(block)
            fully_shard(model)
        init_weights(model.to_empty(device=self.world.device), self.config.training.seed)
        return MeanLoss(model, self)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """torch's AdamW, fused, with what is set for ours."""
        wanted = self.config.training.optimizer
        groups, (first, second) = decay_groups([*model.parameters()], wanted.decay), wanted.betas
        return torch.optim.AdamW(groups, lr=wanted.lr, betas=(first, second), eps=wanted.eps, fused=True)

    def log(self, step: int, loss: Tensor) -> None:
        """Read the loss of a step (from 1), if it is to be logged."""
        if step % self.config.training.log_every == 0:
            mean = loss.detach() / self.world.size
            self.world.sum(mean)
            self.losses.log(step, float(mean))


class MeanLoss(nn.Module):
    """The model and its loss: the mean over the batch, in nats."""

    def __init__(self, model: nn.Module, work: Work) -> None:
        super().__init__()
        self.model = model
        self._task = build_task(work.config, work.manifest)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss, count = self._task.loss_sum(self.model, inputs, targets)
        return loss / count


def ours(work: Work, turn: Turn) -> None:
    """The trainer's loop, with all that it does around a step: the hook for stop requests is where it stands still."""

    class Hooks:
        def report(self, fields: Mapping[str, Any]) -> None:
            progress = fields.get("progress") or {}
            if progress.get("loss") is not None:
                work.losses.log(progress["step"], progress["loss"])

        def stop_requested(self) -> Stop:
            turn()
            return Stop.NO

        def stands(self, stand: Stand | None) -> None:
            pass

        def hung(self, error: Hang) -> NoReturn:
            raise error

    store = open_store(work.config.output_uri, work.config.storage)
    attempt = work.world.on_first(lambda: Attempt.take(store, 0))
    train(work.config, attempt, Hooks())


def bare(work: Work, turn: Turn) -> None:
    """PyTorch and nothing else; of several ranks, a bare FSDP2 script."""
    model = work.model()
    optimizer = work.optimizer(model)
    clip_norm = work.config.training.clip_norm
    for step, batch in enumerate(work.batches, start=1):
        turn()
        loss = model(batch.inputs, batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        work.log(step, loss)


def fabric(work: Work, turn: Turn) -> None:
    """Lightning Fabric, as its documentation has a plain loop converted."""
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    fabric.launch()
    plain = work.model()
    model, optimizer = fabric.setup(plain, work.optimizer(plain))
    loader = fabric.setup_dataloaders(_loader(work))
    for step, batch in enumerate(loader, start=1):
        turn()
        loss = model(batch["inputs"], batch["targets"])
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=work.config.training.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        work.log(step, loss)


def hugging_face(work: Work, turn: Turn) -> None:
    """transformers.Trainer's own loop; a callback at the beginning of a step is where it stands still."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    training = work.config.training

    class Stand(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turn()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            work.log(state.global_step, model.last)

    class WithLoss(nn.Module):
        """What Trainer expects of a model: it gives its loss."""

        def __init__(self) -> None:
            super().__init__()
            self.mean_loss = work.model()

        def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
            loss = self.mean_loss(inputs, targets)
            self.last = loss.detach()
            return {"loss": loss}

    model = WithLoss()
    optimizer = work.optimizer(model)
    arguments = TrainingArguments(
        output_dir="unused",
        use_cpu=True,
        per_device_train_batch_size=training.global_batch_size,
        max_steps=len(work.batches),
        max_grad_norm=training.clip_norm,
        logging_steps=training.log_every,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=training.seed,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Rows(work),
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
        callbacks=[Stand()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


class Rows(Dataset[dict[str, Tensor]]):
    """The rows of all batches, one after another."""

    def __init__(self, work: Work) -> None:
        self._batches, self._size = work.batches, work.config.training.global_batch_size

    def __len__(self) -> int:
        return len(self._batches) * self._size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch, row = self._batches[index // self._size], index % self._size
        return {"inputs": batch.inputs[row], "targets": batch.targets[row]}


def _loader(work: Work) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Rows(work), batch_size=work.config.training.global_batch_size)
