"""Scenes that tests of the operator's decisions begin with."""

import pytest
from support.play import Play


@pytest.fixture
def play() -> Play:
    return Play()


@pytest.fixture
def starting(play: Play) -> Play:
    """Data are ready, two workers are created and pending."""
    play.to_workers()
    return play


@pytest.fixture
def training(play: Play) -> Play:
    """Two workers train; step 20 is reported, step 10 committed."""
    play.to_training()
    play.step(20)
    play.train(20, attempt=1, committed=10)
    play.settle()
    return play
