"""Activation checkpointing keeps less and changes nothing."""

from pathlib import Path
from typing import Any

import pytest
from support.rank_functions import hash_steps
from support.ranks import run_ranks
from support.spread import in_turn, kept_by_forward
from support.training import job, put_tokens, store_of
from trainingjob_trainer.config import JobConfig

MODES = ("none", "selective", "full")


def config_of(directory: Path, mode: str, **changes: Any) -> JobConfig:
    config = job(directory, parallelism={"fsdp": "full", "activationCheckpointing": mode}, **changes)
    put_tokens(store_of(config))
    return config


def test_less_is_kept_for_the_backward_pass(tmp_path: Path) -> None:
    size = {"layers": 4, "dim": 64, "heads": 4, "ffnDim": 128}
    calls = [(kept_by_forward, (config_of(tmp_path, mode, model={"transformer": size}),)) for mode in MODES]
    [(none, selective, full)] = run_ranks(1, in_turn, calls)
    rows, length = 10, 16
    activations = 4 * rows * length * 64  # bytes of one [rows, length, dim]
    assert none - selective > 4 * 5 * activations, "norms, products of gates, rotated queries and keys, of each block"
    assert full < selective
    assert none - full > 4 * 15 * activations


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_computed_anew_is_the_same_bit_for_bit(tmp_path: Path, ranks: int) -> None:
    """Three steps with dropout: it draws the same again."""
    calls = [(hash_steps, (config_of(tmp_path, mode), 3)) for mode in MODES]
    for hashes in run_ranks(ranks, in_turn, calls):
        assert len(set(hashes)) == 1
