"""Split matrices compute what whole ones do, for each kind of part that a decoder may have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.rank_functions import train_run
from support.ranks import run_ranks
from support.spread import gradients_of, in_turn
from support.training import job, put_tokens, store_of
from trainingjob_trainer.config import JobConfig

LLAMA = {"layers": 2, "dim": 16, "heads": 4, "kvHeads": 2, "ffnDim": 32}
GPT = {"layers": 2, "dim": 16, "heads": 4, "ffn": "gelu", "norm": "layernorm", "positions": "learned", "bias": "all"}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {"model": {"transformer": {**LLAMA, "tieEmbeddings": False}}},
    "gpt": {"model": {"transformer": GPT}},
    "qk-norm": {"model": {"transformer": {**LLAMA, "qkNorm": True, "bias": "qkv"}, "export": "none"}},
    "penalties": {"model": {"transformer": LLAMA}, "optimizer": {"l1": 0.1, "l2": 0.1}},
}


def config_of(directory: Path, variant: str, **parallelism: Any) -> JobConfig:
    return job(directory, microBatchSize=5, parallelism=parallelism, **VARIANTS[variant])


def test_gradients_are_those_of_whole_matrices(tmp_path: Path) -> None:
    """Two tensor-parallel groups, the parts sharded over two ranks; a vocabulary that does not divide."""
    put_tokens(store_of(config_of(tmp_path, "gpt")), vocabulary=33)
    [alone] = run_ranks(1, in_turn, [(gradients_of, (config_of(tmp_path, variant),)) for variant in VARIANTS])
    calls = [(gradients_of, (config_of(tmp_path, variant, fsdp="full", tensor=2),)) for variant in VARIANTS]
    for rank in run_ranks(4, in_turn, calls):
        for variant, (loss, gradients), (expected, whole) in zip(VARIANTS, rank, alone, strict=True):
            assert loss == pytest.approx(expected, abs=1e-12), variant
            assert gradients.keys() == whole.keys()
            for name, gradient in whole.items():
                np.testing.assert_allclose(gradients[name], gradient, atol=1e-12, err_msg=f"{variant} {name}")


def test_dropout_is_that_of_whole_matrices(tmp_path: Path) -> None:
    """Rows are dealt to two ranks, or to two groups of two: which must draw one mask, each rank for its positions."""
    whole, split = (
        job(tmp_path, model={"transformer": {**LLAMA, "dropout": 0.3}}, parallelism={"fsdp": "full", "tensor": tensor})
        for tensor in (1, 2)
    )
    put_tokens(store_of(whole))
    (expected, gradients), _ = run_ranks(2, gradients_of, whole)
    for loss, found in run_ranks(4, gradients_of, split):
        assert loss == pytest.approx(expected, abs=1e-12)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(found[name], gradient, atol=1e-12, err_msg=name)
    [(undropped, _)] = run_ranks(1, gradients_of, job(tmp_path, model={"transformer": LLAMA}))
    assert abs(undropped - expected) > 1e-5, "nothing was dropped"


def test_a_run_of_split_matrices_evaluates_as_a_whole_one(tmp_path: Path) -> None:
    """The whole loop: five steps, the validation and the test split, a checkpoint, the export."""
    alone, split = (
        job(tmp_path / name, steps=5, model={"transformer": LLAMA}, parallelism={"tensor": tensor})
        for name, tensor in (("alone", 1), ("split", 2))
    )
    for config in (alone, split):
        put_tokens(store_of(config), vocabulary=33)
    [(expected, _)] = run_ranks(1, train_run, alone, 1)
    (result, reports), _ = run_ranks(2, train_run, split, 1)
    assert result.evaluation.metrics == pytest.approx(expected.evaluation.metrics, rel=1e-5)
    assert "its matrices split over 2" in reports[0]["message"]
