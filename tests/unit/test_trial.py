"""A model that is tried without memory takes what it takes with it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.memory import columns, images, texts
from support.training import store_of
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.models.trial import kept_bytes, tried
from trainingjob_trainer.tasks import build_task

NEOX = {"model_type": "gpt_neox", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

MODELS: dict[str, Callable[[Path], JobConfig]] = {
    "gru": lambda path: texts(path, {"rnn": {"cell": "gru", "dim": 64}}, 300),
    "cnn": lambda path: images(path, {"cnn": {}}, (3, 16, 16)),
    "mlp": lambda path: columns(path, {"mlp": {}}),
    "batch norms": lambda path: images(path, {"timm": {"name": "resnet10t"}}, (3, 32, 32)),
    "attention of timm": lambda path: images(
        path, {"timm": {"name": "vit_tiny_patch16_224", "options": '{"depth": 2}'}}, (3, 64, 64)
    ),
    "attention of transformers": lambda path: texts(path, {"huggingface": {"config": json.dumps(NEOX)}}, 300),
}


def really_kept(config: JobConfig, manifest: Manifest) -> int:
    """Bytes that a pass over real rows keeps."""
    with torch.device("meta"):
        model = build_model(config, manifest)
    init_weights(model.to_empty(device="cpu"), 1)
    rows = min(8, config.training.global_batch_size)
    length = config.training.sequence_length
    match manifest.kind:
        case "tokens":
            inputs = targets = torch.ones(rows, length, dtype=torch.int64)
        case "tables":
            inputs, targets = torch.ones(rows, *manifest.shape or ()), torch.ones(rows)
        case _:
            inputs, targets = torch.ones(rows, *manifest.shape or ()), torch.zeros(rows, dtype=torch.int64)
    task = build_task(config, manifest)
    return kept_bytes(model, lambda: task.loss_sum(model, inputs, targets))


@pytest.mark.parametrize("name", MODELS)
def test_a_trial_tells_what_a_pass_keeps(tmp_path: Path, name: str) -> None:
    config = MODELS[name](tmp_path)
    manifest = Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY))
    expected = really_kept(config, manifest)
    tokens, vocabulary = config.training.global_batch_size * config.training.sequence_length, 300
    if config.model.rnn is not None:  # gradients by what goes into the head and by its weight, logits, their derivative
        expected += 4 * (tokens * 64 + vocabulary * 64 + 2 * tokens * vocabulary)
    elif manifest.kind == "tokens":  # derivatives of a loss whose logits are whole
        expected += 2 * 4 * tokens * vocabulary
    size = tried(config, manifest)
    assert size.activations == pytest.approx(expected, rel=1e-4)  # a table of positions, of some KiB
    with torch.device("meta"):
        assert size.parameters == sum(parameter.numel() for parameter in build_model(config, manifest).parameters())


def test_what_blocks_recompute_is_not_kept(tmp_path: Path) -> None:
    """Of each its input is, the map of a stage."""
    kept = {}
    for mode in ("none", "full"):
        config = images(tmp_path / mode, {"cnn": {}}, (3, 16, 16), parallelism={"activationCheckpointing": mode})
        kept[mode] = tried(config, Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY))).activations
    inputs = 8 * 4 * (32 * 16 * 16 * 3 + 64 * 8 * 8)
    assert inputs < kept["full"] < 2 * inputs < kept["none"]


def test_a_model_that_cannot_be_tried_is_counted_without_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does depends on values, as where experts are chosen."""
    config = images(tmp_path, {"timm": {"name": "resnet10t"}}, (3, 32, 32))
    manifest = Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY))
    model = type(build_model(config, manifest))
    monkeypatch.setattr(model, "forward", lambda _, inputs: inputs[inputs > 0])
    size = tried(config, manifest)
    assert size.activations == 0
    assert size.parameters > 10**6
