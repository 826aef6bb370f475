"""Evaluate a model on a split: every sample exactly once, at any world size."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from trainingjob_trainer.data.batches import evaluation_rows
from trainingjob_trainer.data.prefetch import prefetch
from trainingjob_trainer.data.reader import Batch, Reader
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.tasks import Task, TaskMetrics, weightless
from trainingjob_trainer.tasks.base import all_reduce

CORRUPT = "corruptSamples"  # among the metrics: samples that they are not of, because their data is corrupt


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    reader: Reader,
    device: torch.device,
    batch_size: int,
    max_samples: int | None = None,
    group: dist.ProcessGroup | None = None,
    before_pass: Callable[[], None] = lambda: None,
) -> TaskMetrics:
    """Metrics of the reader's split, the same dictionary on every rank of `group`.

    A collective call: all ranks make the same number of forward passes, of `batch_size` rows; a rank without rows left
    runs rows of no weight. `max_samples` takes that many, evenly spread over the split. What `before_pass` raises ends
    it. The model's training mode is kept. Samples that were skipped are counted among the metrics, if there are any;
    raises `DataError` if all were.
    """
    world_size, rank = (dist.get_world_size(group), dist.get_rank(group)) if dist.is_initialized() else (1, 0)
    total = len(reader)
    chosen = min(total, max_samples or total)
    metrics = task.metrics(reader.split, device)
    batches = evaluation_rows(chosen, world_size, rank, batch_size)
    skipped = torch.zeros((), dtype=torch.int64)
    was_training = model.training
    model.eval()
    try:
        samples = ([row * total // chosen for row in rows] or [0] for rows in batches)
        with prefetch(reader, samples, pin=device.type == "cuda") as read:
            for rows, batch in zip(batches, read, strict=True):
                before_pass()
                skipped += batch.skipped if rows else 0
                batch = _pad(batch.to(device), len(batches[0]) or 1, weight=bool(rows))
                task.predict(model, batch.inputs, batch.targets, metrics.update)
    finally:
        model.train(was_training)
    metrics.reduce(group)
    skipped = skipped.to(device)
    all_reduce(skipped, group)
    try:
        return metrics.compute() | ({CORRUPT: int(skipped)} if skipped else {})
    except ZeroDivisionError:  # on every rank alike
        raise DataError(
            f"There is no mean over nothing: all data of the {reader.split} split is corrupt.",
            "Restore the shards that the log names.",
        ) from None


def _pad(batch: Batch, rows: int, weight: bool) -> Batch:
    """The batch with constant shape: filled up with rows of no weight; without `weight`, all of them have none."""
    missing = rows - len(batch.targets)
    inputs = torch.cat([batch.inputs, batch.inputs[:1].expand(missing, *batch.inputs.shape[1:])])
    targets = torch.cat([batch.targets, weightless(batch.targets[:1]).expand(missing, *batch.targets.shape[1:])])
    return Batch(inputs, targets if weight else weightless(targets))


def scalars(metrics: TaskMetrics) -> dict[str, float]:
    """The metrics that are one number: what progress and status show."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
