"""What the architectures are to learn: real data on disk, and a copy task; ranks import it by name."""

from __future__ import annotations

from typing import Any

import torch
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.reader import Batch
from trainingjob_trainer.tasks import IGNORE

from support.rank_functions import build, own_rows

SYMBOLS, COPIED, DELAY = 8, 4, 24  # tokens: 0 waits, 1 says now, the symbols are 2 and above


def copy_batch(seed: int, rows: int) -> Batch:
    """Some random symbols, a long wait, and then they are asked for: only the answer weighs.

    The task of Hochreiter & Schmidhuber (1997), as Arjovsky et al. (2016) have it. Who forgets guesses: 1 in 8.
    """
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(2, 2 + SYMBOLS, (rows, COPIED), generator=generator)
    inputs = torch.cat([symbols, torch.zeros(rows, DELAY + COPIED, dtype=torch.int64)], dim=1)
    inputs[:, COPIED + DELAY] = 1
    targets = torch.full_like(inputs, IGNORE)
    targets[:, -COPIED:] = symbols
    return Batch(inputs, targets)


def learn_to_copy(config: JobConfig) -> float:
    """The share of symbols that are right on rows never seen, after the run's steps."""
    stepper = build(config)
    for step in range(config.training.steps):
        stepper(step, own_rows(stepper, copy_batch(step, config.training.global_batch_size)))
    unseen = copy_batch(2**20, 512)
    with torch.no_grad():
        right = stepper.model(unseen.inputs).argmax(-1) == unseen.targets
    return float(right[unseen.targets != IGNORE].float().mean())


def train_config(**changes: Any) -> dict[str, Any]:
    """Settings that small models learn well with."""
    parallelism = {"fsdp": "full"}
    common = {
        "clipNorm": 1.0,
        "microBatchSize": "auto",
        "deterministic": False,
        "logEvery": 50,
        "parallelism": parallelism,
    }
    return common | changes
