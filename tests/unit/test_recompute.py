"""Activation checkpointing keeps less and changes nothing."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from support.begin import NEOX as SIZES
from support.rank_functions import hash_steps
from support.ranks import run_ranks
from support.spread import in_turn, kept_by_forward
from support.training import job, put_tokens, store_of
from trainingjob_trainer.config import HuggingFace, JobConfig, Timm
from trainingjob_trainer.models import init_weights
from trainingjob_trainer.models.from_timm import ImageClassifier
from trainingjob_trainer.models.from_transformers import TextClassifier
from trainingjob_trainer.parallel.recompute import recompute

NEOX = SIZES | {"model_type": "gpt_neox"}
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
    """Three steps with dropout: it draws the same again. Of a decoder of ours, and of one of transformers."""
    for kind in ({}, {"model": {"huggingface": {"config": json.dumps(NEOX | {"hidden_dropout": 0.1})}}}):
        calls = [(hash_steps, (config_of(tmp_path, mode, **kind), 3)) for mode in MODES]
        for hashes in run_ranks(ranks, in_turn, calls):
            assert len(set(hashes)) == 1


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_blocks_of_classifiers_of_libraries_are_computed_anew(library: str, mode: Literal["selective", "full"]) -> None:
    bert = NEOX | {"model_type": "bert"}
    model: TextClassifier | ImageClassifier
    if library == "transformers":
        model = TextClassifier(HuggingFace(config=json.dumps(bert)), None, 64, 16, 0, ["a", "b"])
        inputs = torch.randint(1, 64, (4, 16))
    else:
        model = ImageClassifier(Timm(name="test_vit", options='{"patch_size": 4}'), None, (1, 16, 16), 2)
        inputs = torch.rand(4, 1, 16, 16)
    init_weights(model.to_empty(device="cpu"), 1)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(0)  # dropout
        loss = model(inputs).square().sum()
        return list(torch.autograd.grad(loss, list(model.parameters())))

    expected, passes = gradients(), []
    within = next(part for name, part in model.blocks[0].named_modules() if isinstance(part, torch.nn.LayerNorm))
    within.register_forward_hook(lambda *_: passes.append(1))
    recompute(model, mode)
    assert all(torch.equal(found, gradient) for found, gradient in zip(gradients(), expected, strict=True))
    assert len(passes) == 2, "on the way forward and on the way back"
