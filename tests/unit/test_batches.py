"""Dealing samples to ranks."""

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st
from trainingjob_trainer.data.batches import evaluation_rows, rank_rows
from trainingjob_trainer.data.order import Order


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(1, 40), st.integers(1, 200), st.integers(1, 9))
def test_the_global_batch_is_the_same_at_any_world_size(step: int, batch: int, size: int, world_size: int) -> None:
    order = Order(size, seed=1)
    ranks = [rank_rows(step, batch, order, world_size, rank) for rank in range(world_size)]
    assert list(chain.from_iterable(ranks)) == rank_rows(step, batch, order, 1, 0)
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 9), st.integers(1, 20))
def test_an_evaluation_takes_each_sample_once_in_equally_many_passes(size: int, world_size: int, batch: int) -> None:
    ranks = [evaluation_rows(size, world_size, rank, batch) for rank in range(world_size)]
    assert sorted(row for rank in ranks for rows in rank for row in rows) == list(range(size))
    assert len({len(rank) for rank in ranks}) == 1
    assert all(len(rows) <= batch for rank in ranks for rows in rank)
    assert all(len(rank[0]) == max(map(len, rank)) for rank in ranks if rank)
