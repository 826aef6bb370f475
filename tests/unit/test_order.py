"""The data order: a bijection on every epoch, the same from any start, unlike the stored order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainingjob_trainer.data.order import Order

sizes = st.integers(1, 5000) | st.integers(1, 16).map(lambda bits: 2**bits) | st.just(100_000)


@settings(deadline=None)
@given(sizes, st.integers(0, 2**31 - 1), st.integers(0, 50))
def test_every_epoch_visits_every_sample_once(size: int, seed: int, epoch: int) -> None:
    order = Order(size, seed)
    visited = order.indices(range(epoch * size, (epoch + 1) * size))
    assert sorted(visited) == list(range(size))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 1000), st.lists(st.integers(0, 3000), min_size=1))
def test_a_position_means_the_same_sample_alone_and_among_others(size: int, seed: int, positions: list[int]) -> None:
    order = Order(size, seed)
    assert [order.index(position) for position in positions] == order.indices(positions)


def test_epochs_and_seeds_differ() -> None:
    first = Order(1000, seed=1)
    epochs = [tuple(first.indices(range(epoch * 1000, (epoch + 1) * 1000))) for epoch in range(5)]
    assert len({*epochs, tuple(Order(1000, seed=2).indices(range(1000)))}) == 6


@pytest.mark.parametrize("size", [900, 65_536, 100_000])
def test_the_order_has_nothing_of_the_stored_order(size: int) -> None:
    indices = Order(size, seed=3).indices(range(size))
    assert abs(np.corrcoef(np.arange(size), indices)[0, 1]) < 0.05
    neighbours = np.mean(np.abs(np.diff(indices)) < 8)
    assert neighbours < 0.05


def test_the_order_is_the_one_that_stored_runs_were_trained_in() -> None:
    """Resuming rests on it: a change of these numbers breaks every unfinished run."""
    assert Order(1000, seed=1).indices([0, 1, 2, 999, 1000, 123_456]) == [771, 269, 642, 712, 572, 472]
