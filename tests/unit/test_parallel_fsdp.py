"""FSDP2 over real ranks is the same training as one process."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.rank_functions import dtypes, memory, reductions, take_steps
from support.ranks import run_ranks
from support.training import job, put_tokens, store_of, without_dropout


def test_losses_and_gradients_do_not_depend_on_the_world_size(tmp_path: Path) -> None:
    """Batch of 10 on 1, 2, 3 and 4 ranks: rows do not divide, documents are masked unevenly, clipping is active."""
    config = job(tmp_path, steps=20, model=without_dropout())
    put_tokens(store_of(config))
    [alone] = run_ranks(1, take_steps, config)
    assert min(alone["grad_norms"]) > config.training.clip_norm
    for world_size in (2, 3, 4):
        for rank in run_ranks(world_size, take_steps, config):
            assert rank["losses"] == pytest.approx(alone["losses"], abs=1e-5)
            assert rank["grad_norms"] == pytest.approx(alone["grad_norms"], rel=1e-4)
            for name, gradient in alone["gradients"].items():
                np.testing.assert_allclose(rank["gradients"][name], gradient, rtol=1e-4, atol=1e-7, err_msg=name)


def test_each_of_two_ranks_holds_half_of_parameters_and_moments(tmp_path: Path) -> None:
    config = job(tmp_path)
    put_tokens(store_of(config))
    [(parameters, moments)] = run_ranks(1, memory, config)
    for held_parameters, held_moments in run_ranks(2, memory, config):
        assert held_parameters <= 0.55 * parameters
        assert held_moments <= 0.55 * moments


def test_accumulation_makes_no_extra_reductions(tmp_path: Path) -> None:
    many = job(tmp_path, microBatchSize=1)
    put_tokens(store_of(many))
    blocks_and_root = 3
    assert run_ranks(2, reductions, many) == [blocks_and_root] * 2


def test_bfloat16_is_of_the_passes_only(tmp_path: Path) -> None:
    """Whole (autocast) and sharded (FSDP's policy): gradients, weights and moments stay float32."""
    config = job(tmp_path, precision="bfloat16", model=without_dropout())
    put_tokens(store_of(config))
    [(alone, loss)] = run_ranks(1, dtypes, config)
    assert alone == {torch.float32}
    for found, sharded_loss in run_ranks(2, dtypes, config):
        assert found == {torch.float32}
        assert sharded_loss == pytest.approx(loss, rel=1e-2)
        assert sharded_loss != loss
