"""Dealing samples to ranks."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.order import blocks_of
from trainingjob_trainer.data.batches import evaluation_rows, training_rows
from trainingjob_trainer.data.order import BLOCK_BYTES, Order


@settings(max_examples=40)
@given(st.integers(0, 100), st.integers(1, 40), st.integers(1, 200), st.sampled_from([1, BLOCK_BYTES]))
def test_the_global_batch_is_the_same_at_any_world_size(step: int, batch: int, size: int, each: int) -> None:
    order = Order(blocks_of(size, each), seed=1)
    steps = range(step, step + 3)
    for world_size in (1, 2, 3, 4, 8):
        ranks = [list(training_rows(steps, batch, order, world_size, rank)) for rank in range(world_size)]
        for number, one in zip(steps, zip(*ranks, strict=True), strict=True):
            expected = order.draws(np.arange(number * batch, (number + 1) * batch)).tolist()
            assert list(chain.from_iterable(one)) == sorted(expected, key=lambda draw: (draw % size, draw))
            assert max(map(len, one)) - min(map(len, one)) <= 1


@pytest.mark.parametrize("batch", [1, 7, 4096, 5000])
def test_a_step_means_the_same_samples_wherever_a_run_begins(batch: int) -> None:
    order = Order(blocks_of(100_000, 1), seed=1)
    whole, rest = (np.stack([*training_rows(range(first, 20), batch, order, 2, 1)]) for first in (0, 13))
    assert np.array_equal(rest, whole[13:])


def test_a_rank_reads_its_own_blocks_of_a_group() -> None:
    """Otherwise each of eight ranks would read all the data."""
    blocks = blocks_of(10**9 // 2048, 2048)
    order = Order(blocks, seed=1)
    rows = chain.from_iterable(training_rows(range(32), 512, order, 8, 3))
    assert len(np.unique(blocks.block_of(np.asarray(list(rows))))) <= blocks.strata / 3


@given(st.integers(0, 300), st.integers(1, 9), st.integers(1, 20))
def test_an_evaluation_takes_each_sample_once_in_equally_many_passes(size: int, world_size: int, batch: int) -> None:
    ranks = [evaluation_rows(size, world_size, rank, batch) for rank in range(world_size)]
    assert sorted(row for rank in ranks for rows in rank for row in rows) == list(range(size))
    assert len({len(rank) for rank in ranks}) == 1
    assert all(len(rows) <= batch for rank in ranks for rows in rank)
    assert all(len(rank[0]) == max(map(len, rank)) for rank in ranks if rank)
