"""The data order: a bijection on every epoch, the same from any start, unlike the stored order, read in groups."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainingjob_trainer.data.order import BLOCK_BYTES, BLOCKS_PER_GROUP, Blocks, Order

MEBIBYTE = 2**20

sizes = st.integers(1, 5000) | st.integers(1, 100_000) | st.integers(1, 16).map(lambda bits: 2**bits)
# Bytes a sample: from data of one small group to samples that fill a block.
sample_bytes = st.sampled_from([1, 100, 100_000, BLOCK_BYTES // 3, 2 * BLOCK_BYTES])


def epoch_of(order: Order, epoch: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(order.indices(range(epoch * len(order), (epoch + 1) * len(order))))


@settings(deadline=None)
@given(sizes, sample_bytes, st.integers(0, 2**31 - 1), st.integers(0, 50))
def test_every_epoch_visits_every_sample_once(size: int, each: int, seed: int, epoch: int) -> None:
    visited = epoch_of(Order(Blocks.of(size, each), seed), epoch)
    assert np.array_equal(np.sort(visited), np.arange(size))


@settings(deadline=None)
@given(st.integers(1, 300), sample_bytes, st.integers(0, 1000), st.lists(st.integers(0, 3000), min_size=1))
def test_a_position_means_the_same_sample_alone_and_among_others(
    size: int, each: int, seed: int, positions: list[int]
) -> None:
    order = Order(Blocks.of(size, each), seed)
    assert [order.index(position) for position in positions] == order.indices(positions)


@settings(deadline=None)
@given(st.integers(1, 10**13), st.integers(256, 2**24))
def test_blocks_are_small_and_a_sample_is_found_in_its_own(total: int, each: int) -> None:
    """Up to ten terabytes."""
    size = -(-total // each)
    blocks = Blocks.of(size, each)
    assert blocks.count <= size
    if blocks.groups > 1:
        assert blocks.count >= 64
        assert size / blocks.count * each <= BLOCK_BYTES + each
    for block in {0, blocks.count // 2, blocks.count - 1}:
        first, end = blocks.bounds(block)
        assert blocks.block_of(np.asarray([first, end - 1])).tolist() == [block, block]
    assert blocks.bounds(0)[0] == 0
    assert blocks.bounds(blocks.count - 1)[1] == size


@pytest.mark.parametrize("each", [1, BLOCK_BYTES])
def test_epochs_and_seeds_differ(each: int) -> None:
    blocks = Blocks.of(1000, each)
    epochs = [tuple(epoch_of(Order(blocks, seed=1), epoch)) for epoch in range(5)]
    assert len({*epochs, tuple(epoch_of(Order(blocks, seed=2)))}) == 6


@pytest.mark.parametrize(("size", "each"), [(700_000 // 64, 64), (10**9 // 2048, 2048)], ids=["0.7 MB", "1 GB"])
@pytest.mark.parametrize("seed", range(5))
def test_the_order_has_nothing_of_the_stored_order(size: int, each: int, seed: int) -> None:
    """Spearman's rank correlation: positions and samples are their own ranks. Documents of ten samples."""
    indices = epoch_of(Order(Blocks.of(size, each), seed))
    assert abs(np.corrcoef(np.arange(size), indices)[0, 1]) < 0.05
    assert np.mean(np.diff(indices // 10) == 0) < 0.05


def test_a_group_takes_few_blocks_and_from_everywhere() -> None:
    """What a reader has to hold, and that no part of an epoch is of one part of the data."""
    blocks = Blocks.of(10**9 // 2048, 2048)
    read = blocks.block_of(epoch_of(Order(blocks, 7)))
    for group in np.array_split(read, blocks.groups):
        own = np.unique(group[10:-10])  # groups differ by a few samples in size
        assert BLOCKS_PER_GROUP <= len(own) == blocks.strata < 2 * BLOCKS_PER_GROUP
        assert np.array_equal(own // blocks.groups, np.arange(blocks.strata))


def test_the_order_is_the_one_that_stored_runs_were_trained_in() -> None:
    """Resuming rests on it: where these numbers change, config.data.ORDER_VERSION must."""
    assert Order(Blocks.of(1000, 1), seed=1).indices([0, 1, 2, 999, 1000, 123_456]) == [750, 879, 950, 679, 529, 103]
    grouped = Order(Blocks.of(1000, MEBIBYTE), seed=1)
    assert grouped.indices([0, 1, 2, 999, 1000, 123_456]) == [794, 477, 901, 806, 266, 986]
