"""The data order: a bijection on every epoch, the same from any start, unlike the stored order, read in groups."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.order import blocks_of
from trainingjob_trainer.data.order import BLOCK_BYTES, BLOCKS_PER_GROUP, LARGE, ROUNDS, Blocks, Order, mix, permute

MEBIBYTE = 2**20

sizes = st.integers(1, 5000) | st.integers(1, 100_000) | st.integers(1, 16).map(lambda bits: 2**bits)
# Bytes a sample: from data of one small group to samples that fill a block.
sample_bytes = st.sampled_from([2, 100, 100_000, BLOCK_BYTES // 3, 2 * BLOCK_BYTES])
overlaps = st.sampled_from([0, 2])  # bytes that a sample has in common with the next one


def epoch_of(order: Order, epoch: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    return order.indices(np.arange(epoch * len(order), (epoch + 1) * len(order)))


@given(sizes | st.integers(1, 2**32), st.integers(0, 2**62), st.integers(0, 2**31), st.integers(0, 2**32))
def test_a_permutation_is_one_of_any_size_up_to_its_limit(size: int, key: int, tweak: int, first: int) -> None:
    """All of it, or 50,000 neighbours of a large one."""
    values = np.arange(size) if size < 50_000 else (first + np.arange(50_000)) % size
    found = permute(values, size, mix(np.arange(key, key + ROUNDS).astype(np.uint64)), tweak)
    assert 0 <= found.min() <= found.max() < size
    assert len(np.unique(found)) == len(values)


@given(sizes, sample_bytes, overlaps, st.integers(0, 2**31 - 1), st.integers(0, 50))
def test_every_epoch_visits_every_sample_once(size: int, each: int, overlap: int, seed: int, epoch: int) -> None:
    visited = epoch_of(Order(blocks_of(size, each, overlap), seed), epoch)
    assert np.array_equal(np.sort(visited), np.arange(size))


@given(st.integers(1, 300), sample_bytes, overlaps, st.integers(0, 1000), st.lists(st.integers(0, 3000), min_size=1))
def test_a_position_means_the_same_sample_alone_and_among_others(
    size: int, each: int, overlap: int, seed: int, positions: list[int]
) -> None:
    order = Order(blocks_of(size, each, overlap), seed)
    assert [order.index(position) for position in positions] == order.indices(np.asarray(positions)).tolist()


@given(st.integers(1, 10**13) | st.integers(1, 2**31), st.integers(256, 2**24))
def test_blocks_are_small_and_a_sample_is_found_in_its_own(total: int, each: int) -> None:
    """Up to ten terabytes."""
    size = -(-total // each)
    blocks = blocks_of(size, each)
    assert blocks.count <= size
    if blocks.groups > 1:  # each but for the sample that it is rounded up by
        most = int(np.diff(blocks.firsts).max()) - 1
        assert most * each < BLOCK_BYTES
        assert 64 * most < size
    for block in {0, blocks.count // 2, blocks.count - 1}:
        first, end = blocks.bounds(block)
        assert blocks.block_of(np.asarray([first, end - 1])).tolist() == [block, block]
    assert blocks.bounds(0)[0] == 0
    assert blocks.bounds(blocks.count - 1)[1] == size


@pytest.mark.parametrize("each", [1, BLOCK_BYTES])
def test_epochs_and_seeds_differ(each: int) -> None:
    blocks = blocks_of(1000, each)
    epochs = [tuple(epoch_of(Order(blocks, seed=1), epoch)) for epoch in range(5)]
    assert len({*epochs, tuple(epoch_of(Order(blocks, seed=2)))}) == 6


@pytest.mark.parametrize(("size", "each"), [(700_000 // 64, 64), (10**9 // 2048, 2048)], ids=["0.7 MB", "1 GB"])
@pytest.mark.parametrize("overlap", [0, 2], ids=["rows", "tokens"])
@pytest.mark.parametrize("seed", range(5))
def test_the_order_has_nothing_of_the_stored_order(size: int, each: int, seed: int, overlap: int) -> None:
    """Spearman's rank correlation: positions and samples are their own ranks. Documents of ten samples."""
    indices = epoch_of(Order(blocks_of(size, each, overlap), seed))
    assert abs(np.corrcoef(np.arange(size), indices)[0, 1]) < 0.05
    assert np.mean(np.diff(indices // 10) == 0) < 0.05


@pytest.mark.parametrize("overlap", [0, 2], ids=["rows", "tokens"])
def test_a_group_takes_few_blocks_and_from_everywhere_and_of_tokens_odd_ones_before_even_ones(overlap: int) -> None:
    """What a reader has to hold, and that no part of an epoch is of one part of the data."""
    blocks = blocks_of(2 * LARGE * BLOCK_BYTES // 2048, 2048, overlap)
    read = blocks.block_of(epoch_of(Order(blocks, 7)))
    groups = read[np.sort(np.unique(read, return_index=True)[1])].reshape(blocks.groups, BLOCKS_PER_GROUP)
    for own in np.sort(groups):
        assert np.array_equal(own // blocks.groups, np.arange(BLOCKS_PER_GROUP))
    group_of = np.empty(blocks.count)
    group_of[groups] = np.arange(blocks.groups)[:, None]
    assert (np.diff(group_of[read]) >= 0).all()
    if overlap:
        assert (np.diff(read % 2) <= 0).all()


shards = st.lists(st.integers(0, 200) | st.integers(0, 5000), min_size=1, max_size=60).filter(lambda all: sum(all) > 1)


@given(shards, st.integers(1, 300), st.integers(1, 200), st.integers(0, 1000))
def test_blocks_begin_where_windows_of_their_shards_do(sizes: list[int], tokens: int, window: int, seed: int) -> None:
    """Shards of any size in tokens, samples of `tokens` and one more, which is the first one of the next sample."""
    samples = (sum(sizes) - 1) // tokens
    if samples == 0:
        return
    blocks = Blocks.of([2 * size for size in sizes], samples, 2 * tokens, 2, overlap=2, block_bytes=4 * window)
    half = 2 * window * (1 + (samples * 2 * tokens >= LARGE * 4 * window))
    ends = np.cumsum(sizes) * 2
    shard = np.searchsorted(ends, blocks.offsets[:-1], side="right")
    assert not ((blocks.offsets[:-1] - ends[shard] + 2 * np.asarray(sizes)[shard]) % half).any()
    begins = np.arange(samples) * 2 * tokens
    of = blocks.block_of(np.arange(samples))
    inside = (blocks.offsets[of] <= begins) & (begins + 2 * tokens + 2 <= blocks.offsets[of + 1])
    assert inside[of % 2 == 1].all()
    window_of = np.searchsorted(blocks.offsets, begins, side="right") - 1
    assert len(np.unique(window_of)) == blocks.count
    assert (of == window_of + (~inside & (window_of % 2 == 1) & (window_of + 1 < blocks.count))).all()
    assert blocks.offsets[-1] == 2 * (samples * tokens + 1)
    assert np.array_equal(np.sort(epoch_of(Order(blocks, seed), 3)), np.arange(samples))


def test_the_order_is_the_one_that_stored_runs_were_trained_in() -> None:
    """Resuming rests on it: where these numbers change, config.data.ORDER_VERSION must."""
    positions = np.asarray([0, 1, 2, 999, 1000, 123_456])
    assert Order(blocks_of(1000, 1), seed=1).indices(positions).tolist() == [593, 425, 137, 283, 193, 770]
    grouped = Order(blocks_of(1000, MEBIBYTE), seed=1)
    assert grouped.indices(positions).tolist() == [327, 556, 91, 620, 367, 21]
    in_turns = Order(blocks_of(1000, MEBIBYTE, overlap=2), seed=1)
    assert in_turns.indices(positions).tolist() == [508, 660, 717, 448, 372, 567]
