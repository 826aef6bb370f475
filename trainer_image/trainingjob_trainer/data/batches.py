"""Which rank computes which samples. The batch of a step is the same at any world size; only the dealing changes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from trainingjob_trainer.data.order import Ints

ORDERED_AT_ONCE = 16_384  # samples: for fewer, the arithmetic of an order is mostly overhead


class Orders(Protocol):
    """An order of samples: an `Order`, or a `MixedOrder`."""

    def __len__(self) -> int: ...

    def draws(self, positions: Ints) -> Ints: ...


def share(total: int, world_size: int, rank: int) -> range:
    """Rank's contiguous part of `range(total)`; parts differ by one at most and cover it exactly."""
    return range(rank * total // world_size, (rank + 1) * total // world_size)


def training_rows(steps: range, global_batch: int, order: Orders, world_size: int, rank: int) -> Iterator[Ints]:
    """Draws that `rank` computes in each of `steps` (from 0). The ranks' rows, one after another, are the batch.

    A batch is dealt in the stored order of its samples: so a rank reads the same few blocks of a group all the time.
    """
    at_once = max(1, ORDERED_AT_ONCE // global_batch)
    rows = share(global_batch, world_size, rank)
    for first in range(steps.start, steps.stop, at_once):
        last = min(first + at_once, steps.stop)
        draws = order.draws(np.arange(first * global_batch, last * global_batch)).reshape(-1, global_batch)
        yield from _as_stored(draws, len(order))[:, rows.start : rows.stop]


def _as_stored(draws: Ints, samples: int) -> Ints:
    """Each row in the stored order of its samples; of one sample the earlier epoch first."""
    if draws.min() // samples == draws.max() // samples:  # of one epoch, as most are: this is four times as fast
        return np.sort(draws)
    return np.take_along_axis(draws, np.argsort(draws % samples, kind="stable"), axis=1)


def evaluation_rows(num_samples: int, world_size: int, rank: int, batch: int) -> list[list[int]]:
    """Rank's batches of an evaluation: each of `num_samples` exactly once over all ranks.

    Every rank gets the same number of batches (FSDP's collectives need that), so the last ones may be empty.
    """
    rows = share(num_samples, world_size, rank)
    passes = math.ceil(math.ceil(num_samples / world_size) / batch)
    return [list(rows[i * batch : (i + 1) * batch]) for i in range(passes)]
