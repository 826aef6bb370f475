"""The memory that is asked of a pod is what its ranks take."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.memory import columns, growth, images, texts
from support.ranks import run_ranks
from support.training import store_of
from trainingjob_trainer.accounting import PROCESS, RAY, TRAIN_OBJECT_STORE, host_memory
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest
from trainingjob_trainer.huggingface.directory import Directory
from trainingjob_trainer.prepare.limits import model_size

WIDE: dict[str, Any] = {"layers": 4, "dim": 512, "heads": 8}
LONG: dict[str, Any] = {"layers": 4, "dim": 256, "heads": 4}
MANY = {"globalBatchSize": 16, "microBatchSize": 16, "sequenceLength": 512}
RECOMPUTED = {"parallelism": {"activationCheckpointing": "full"}}
NEOX = {"model_type": "gpt_neox", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4} | {
    "intermediate_size": 1024
}

# What is large: the state, or (with many rows) activations.
RUNS: dict[str, Callable[[Path], JobConfig]] = {
    "decoder": lambda path: texts(path, {"transformer": WIDE}),
    "large vocabulary": lambda path: texts(path, {"transformer": {**WIDE, "layers": 1}}, 30_000),
    "many rows": lambda path: texts(path, {"transformer": LONG}, **MANY),
    "recomputed": lambda path: texts(path, {"transformer": LONG}, **MANY, **RECOMPUTED),
    "muon": lambda path: texts(path, {"transformer": WIDE}, optimizer={"name": "muon"}),
    "sgd, average": lambda path: texts(path, {"transformer": WIDE}, optimizer={"name": "sgd"}, emaDecay=0.9),
    "lstm": lambda path: texts(path, {"rnn": {"dim": 768}}),
    "gru, many rows": lambda path: texts(
        path, {"rnn": {"cell": "gru", "dim": 512}}, globalBatchSize=64, microBatchSize=64
    ),
    "cnn": lambda path: images(path, {"cnn": {}}, (3, 64, 64), globalBatchSize=64, microBatchSize=64),
    "image Transformer": lambda path: images(
        path, {"transformer": {**LONG, "patchSize": 4}}, (3, 64, 64), globalBatchSize=32, microBatchSize=32
    ),
    "mlp": lambda path: columns(path, {"mlp": {"layers": 4, "dim": 2048}}),
    "timm": lambda path: images(path, {"timm": {"name": "resnet50"}}, (3, 64, 64), globalBatchSize=32),
    "transformers": lambda path: texts(path, {"huggingface": {"config": json.dumps(NEOX)}}, **MANY),
}


def estimate(config: JobConfig) -> int:
    """Of all ranks of a pod, beyond what processes take that do nothing."""
    manifest = Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY))
    data = sum(shard.size for shard in manifest.splits["train"].shards)
    fixed = PROCESS * config.ranks_per_pod + RAY + TRAIN_OBJECT_STORE
    held = Directory.of(config).held_bytes if config.model.init_from is not None else 0
    return host_memory(config, model_size(config, manifest), data, held).total - fixed


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_rank_takes_what_was_reckoned(tmp_path: Path, name: str) -> None:
    config = RUNS[name](tmp_path)
    [taken] = run_ranks(1, growth, config)
    assert 0.8 * taken < estimate(config) < 1.25 * taken, f"{estimate(config) / taken:.2f}"


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", ["full", "none"])
def test_two_ranks_take_what_was_reckoned(tmp_path: Path, fsdp: str) -> None:
    """Of a model whose embedding is gathered as a whole."""
    config = texts(tmp_path, {"transformer": WIDE}, 20_000, parallelism={"fsdp": fsdp})
    config = config.model_copy(update={"ranks_per_pod": 2})
    taken = sum(run_ranks(2, growth, config))
    assert 0.8 * taken < estimate(config) < 1.25 * taken, f"{estimate(config) / taken:.2f}"


@pytest.mark.slow
@pytest.mark.parametrize("stored", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_four_ranks_that_begin_with_weights_of_timm_take_what_was_reckoned(tmp_path: Path, stored: torch.dtype) -> None:
    """Of a model of which each holds more before the first step than afterwards."""
    import timm

    name, small = "vit_base_patch16_224", (3, 64, 64)
    (tmp_path / "weights").mkdir()
    save_file(timm.create_model(name, img_size=64).to(stored).state_dict(), tmp_path / "weights" / "model.safetensors")
    model = {"timm": {"name": name}, "initFrom": {"uri": str(tmp_path / "weights")}}
    sharded = {"optimizer": {"name": "sgd"}, "parallelism": {"fsdp": "full"}, "globalBatchSize": 4}
    config = images(tmp_path, model, small, **sharded).model_copy(update={"ranks_per_pod": 4})
    taken = sum(run_ranks(4, growth, config))
    assert 0.8 * taken < estimate(config) < 1.25 * taken, f"{estimate(config) / taken:.2f}"
