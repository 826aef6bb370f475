"""Evaluation takes every sample once: the same numbers on one rank and on several."""

from pathlib import Path
from typing import Any

import pytest
from support.evaluated import evaluated
from support.ranks import run_ranks
from support.training import job, put_tokens, store_of


@pytest.mark.parametrize(("world_size", "max_samples"), [(2, None), (4, None), (3, 10), (3, 2)])
def test_metrics_are_the_same_at_every_world_size(tmp_path: Path, world_size: int, max_samples: int | None) -> None:
    put_tokens(store_of(job(tmp_path)), tokens=1000)
    alone, _, training = evaluated(str(tmp_path), max_samples)
    assert training
    assert alone["loss"] > 1
    ranks: list[Any] = run_ranks(world_size, evaluated, str(tmp_path), max_samples)
    for metrics, passes, _ in ranks:
        assert metrics == pytest.approx(alone, rel=1e-6)
        assert len(passes) == len(ranks[0][1]), "FSDP needs as many passes on every rank"
