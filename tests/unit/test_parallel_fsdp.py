"""What the layouts are for: memory, few reductions, passes in bfloat16. That they change no loss: test_layouts.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.rank_functions import dtypes, train_on_unlike_cpus
from support.ranks import run_ranks
from support.spread import (
    gathers,
    gathers_and_blocks,
    growth_by_initialisation,
    held,
    in_turn,
    largest_kept,
    reductions,
    reductions_of_a_run,
)
from support.training import job, put_tokens, store_of, without_dropout
from trainingjob_trainer.parallel import pass_dtype

SHARDED = {"fsdp": "full"}


def test_each_of_n_ranks_holds_an_nth_of_weights_gradients_and_moments(tmp_path: Path) -> None:
    config = job(tmp_path, model=without_dropout(), parallelism=SHARDED)
    put_tokens(store_of(config))
    [whole] = run_ranks(1, held, config)
    assert whole["moments"] == 2 * whole["gradients"] == 2 * whole["weights"]
    for ranks in (2, 4):
        for rank in run_ranks(ranks, held, config):
            assert rank == {kind: size // ranks for kind, size in whole.items()}


def test_no_rank_ever_holds_the_whole_model_while_it_is_made(tmp_path: Path) -> None:
    """Made on the meta device: a rank grows by its shard and a block, 20 % for the rest of it. SGD has no moments."""
    size = {"layers": 12, "dim": 512, "heads": 4, "ffnDim": 1024}
    sgd = {"name": "sgd", "momentum": 0}
    config = job(tmp_path, model={"transformer": size}, optimizer=sgd, parallelism=SHARDED)
    put_tokens(store_of(config))
    block = 4 * (4 * 512 * 512 + 3 * 512 * 1024)
    whole, ranks = 12 * block, 4
    for growth in run_ranks(ranks, growth_by_initialisation, config, job(tmp_path, parallelism=SHARDED)):
        assert whole / ranks < growth < 1.2 * (whole / ranks + block)


@pytest.mark.parametrize(
    ("ranks", "parallelism", "per_group"),
    [(2, {"fsdp": "none"}, 1), (2, SHARDED, 1), (4, {"fsdp": "full", "fsdpRanks": 2}, 2)],
    ids=["ddp", "fsdp", "hsdp"],
)
def test_accumulation_makes_no_extra_reductions_and_a_step_sums_its_totals_once(
    tmp_path: Path, ranks: int, parallelism: dict[str, Any], per_group: int
) -> None:
    """Two blocks and the root, each once (HSDP: in a group and over the groups); then loss, count and norm together."""
    configs = [job(tmp_path, microBatchSize=size, parallelism=parallelism, emaDecay=0.9) for size in (5, 1)]
    put_tokens(store_of(configs[0]))
    for once, many in run_ranks(ranks, in_turn, [(reductions, (config,)) for config in configs]):
        assert once == many
        assert sum(many.values()) == 3 * per_group + 1


def test_the_loop_reduces_no_more_than_a_step_and_the_vote_however_often_it_logs(tmp_path: Path) -> None:
    """Four steps, each of which is logged, and eight, of which the last is."""
    model = {**without_dropout(), "export": "none"}
    configs = [
        job(tmp_path / str(steps), steps=steps, logEvery=log_every, model=model, parallelism=SHARDED)
        for steps, log_every in [(4, 1), (8, 8)]
    ]
    for config in configs:
        put_tokens(store_of(config))
    for four, eight in run_ranks(2, in_turn, [(reductions_of_a_run, (config,)) for config in configs]):
        assert eight - four == 4 * (3 + 1 + 1), "gradients of two blocks and the root, the totals, the vote"


def test_the_weights_of_the_next_block_are_gathered_while_a_block_computes(tmp_path: Path) -> None:
    config = job(tmp_path, parallelism=SHARDED)
    put_tokens(store_of(config))
    for happened in run_ranks(2, gathers_and_blocks, config):
        assert happened == ["gather", "gather", "gather", "block", "block"]


@pytest.mark.parametrize(("reshard", "times"), [(True, 2), (False, 1)])
def test_a_block_keeps_its_gathered_weights_for_the_backward_pass_on_request(
    tmp_path: Path, reshard: bool, times: int
) -> None:
    """Two blocks; the root keeps its own in any case."""
    config = job(tmp_path, microBatchSize=5, parallelism={**SHARDED, "reshardAfterForward": reshard})
    put_tokens(store_of(config))
    assert run_ranks(2, gathers, config) == [2 * times + 1] * 2


def test_no_gathered_weight_outlives_its_block_for_the_backward_pass(tmp_path: Path) -> None:
    """Few tokens, wide matrices: a copy of weights would be the largest of what is kept."""
    size = {"layers": 2, "dim": 512, "heads": 8, "ffnDim": 1024}
    config = job(tmp_path, model={"transformer": size}, globalBatchSize=2, sequenceLength=8, microBatchSize=1)
    put_tokens(store_of(config))
    for kept in run_ranks(2, largest_kept, config):
        assert 0 < kept < 4 * 512 * 512


def test_bfloat16_is_of_the_passes_only(tmp_path: Path) -> None:
    """Whole (autocast) and sharded (FSDP's policy): gradients, their sums, weights and moments are float32."""
    config = job(tmp_path, precision="bfloat16", model=without_dropout(), parallelism=SHARDED)
    put_tokens(store_of(config))
    [(alone, _, loss)] = run_ranks(1, dtypes, config)
    assert alone == {torch.float32}
    for found, summed, sharded_loss in run_ranks(2, dtypes, config):
        assert found == summed == {torch.float32}
        assert sharded_loss == pytest.approx(loss, rel=1e-2)
        assert sharded_loss != loss


@pytest.mark.parametrize(
    ("device", "capabilities", "dtype"),
    [
        ("cuda", {}, torch.bfloat16),
        ("cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ("cpu", {"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ("cpu", {"architecture": "aarch64"}, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_device_multiplies_it_faster(
    monkeypatch: pytest.MonkeyPatch, device: str, capabilities: dict[str, object], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert pass_dtype("auto", torch.device(device)) == dtype
    assert pass_dtype("float32", torch.device(device)) == torch.float32


def test_ranks_on_unlike_cpus_agree_on_the_first_ones_precision(tmp_path: Path) -> None:
    """Shards of different types could not be gathered into one weight."""
    config = job(tmp_path, precision="auto", steps=2, parallelism=SHARDED)
    put_tokens(store_of(config))
    (_, reports), _ = run_ranks(2, train_on_unlike_cpus, config)
    assert "on 2 rank(s) in bfloat16" in reports[0]["message"]
