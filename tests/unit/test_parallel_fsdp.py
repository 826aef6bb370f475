"""What FSDP2 is for: memory, few reductions, passes in bfloat16. That it changes no loss: test_layouts.py."""

from pathlib import Path

import pytest
import torch
from support.rank_functions import dtypes, memory, reductions
from support.ranks import run_ranks
from support.training import job, put_tokens, store_of, without_dropout

SHARDED = {"fsdp": "full"}


def test_each_of_two_ranks_holds_half_of_parameters_and_moments(tmp_path: Path) -> None:
    config = job(tmp_path, parallelism=SHARDED)
    put_tokens(store_of(config))
    [(parameters, moments)] = run_ranks(1, memory, config)
    for held_parameters, held_moments in run_ranks(2, memory, config):
        assert held_parameters <= 0.55 * parameters
        assert held_moments <= 0.55 * moments


def test_accumulation_makes_no_extra_reductions(tmp_path: Path) -> None:
    many = job(tmp_path, microBatchSize=1, parallelism=SHARDED)
    put_tokens(store_of(many))
    blocks_and_root = 3
    assert run_ranks(2, reductions, many) == [blocks_and_root] * 2


def test_bfloat16_is_of_the_passes_only(tmp_path: Path) -> None:
    """Whole (autocast) and sharded (FSDP's policy): gradients, weights and moments stay float32."""
    config = job(tmp_path, precision="bfloat16", model=without_dropout(), parallelism=SHARDED)
    put_tokens(store_of(config))
    [(alone, loss)] = run_ranks(1, dtypes, config)
    assert alone == {torch.float32}
    for found, sharded_loss in run_ranks(2, dtypes, config):
        assert found == {torch.float32}
        assert sharded_loss == pytest.approx(loss, rel=1e-2)
        assert sharded_loss != loss
