"""Which rank computes which samples. The batch of a step is the same at any world size; only the dealing changes."""

from __future__ import annotations

import math

from trainingjob_trainer.data.order import Order


def share(total: int, world_size: int, rank: int) -> range:
    """Rank's contiguous part of `range(total)`; parts differ by one at most and cover it exactly."""
    return range(rank * total // world_size, (rank + 1) * total // world_size)


def rank_rows(step: int, global_batch: int, order: Order, world_size: int, rank: int) -> list[int]:
    """Samples that `rank` computes in `step` (from 0). The ranks' lists, one after another, are the global batch."""
    start = step * global_batch
    return order.indices([start + row for row in share(global_batch, world_size, rank)])


def evaluation_rows(num_samples: int, world_size: int, rank: int, batch: int) -> list[list[int]]:
    """Rank's batches of an evaluation: each of `num_samples` exactly once over all ranks.

    Every rank gets the same number of batches (FSDP's collectives need that), so the last ones may be empty.
    """
    rows = share(num_samples, world_size, rank)
    passes = math.ceil(math.ceil(num_samples / world_size) / batch)
    return [list(rows[i * batch : (i + 1) * batch]) for i in range(passes)]
