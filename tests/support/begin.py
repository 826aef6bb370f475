"""What a rank does that begins with another model's weights; it lies here because new processes import it by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from trainingjob_trainer.beginning import settings_to_begin_with
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import TOKENIZER_KEY, Manifest
from trainingjob_trainer.huggingface.directory import Directory
from trainingjob_trainer.huggingface.load import load_weights
from trainingjob_trainer.models import build_model
from trainingjob_trainer.parallel import World, full_state, layout_of, parallelize
from trainingjob_trainer.prepare import tokenizer as bpe
from trainingjob_trainer.storage import LocalStore

from support.training import store_of

NEOX = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def write_source(path: Path, kind: str = "gpt_neox", settings: dict[str, Any] = NEOX) -> Any:
    """Have transformers write a random causal model, its vocabulary padded, and a tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    backend = bpe.train_bpe([b"some text"], 280)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**{"model_type": kind, "vocab_size": 288, **settings})
    )
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=bpe.EOS).save_pretrained(path)
    return model


def begun(config: JobConfig, manifest: Manifest) -> tuple[dict[str, np.ndarray[Any, Any]], int]:
    """Load the weights into a model that is sharded as the configuration says: the whole of it (on rank 0), and the
    bytes that this rank read for it."""
    world = World.join()
    with torch.device("meta"):
        model = build_model(config, manifest)
    world = world.arranged(layout_of(config, model, world.size, world.device))
    model = parallelize(model, world, config.training, torch.float32, compiled=False).to_empty(device=world.device)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    original, read = LocalStore._read, [0]

    def counted(store: LocalStore, key: str, start: int, end: int | None) -> tuple[bytes, str]:
        data, etag = original(store, key, start, end)
        read[0] += len(data) if key.endswith(".safetensors") else 0
        return data, etag

    with mock.patch.object(LocalStore, "_read", counted):
        load_weights(model, config, manifest)
    return {name: tensor.numpy() for name, tensor in full_state(model, world).items()}, read[0]


def manifest_of(config: JobConfig) -> Manifest:
    """The manifest of data that was prepared with the source's tokenizer."""
    stored, vocab_size, eos_id = Directory.of(config).tokenizer
    empty: dict[str, Any] = {"shards": [], "documents": 0, "bytes": 0}
    store_of(config).put(TOKENIZER_KEY, stored)
    return Manifest.model_validate(
        {
            "kind": "tokens", "dtype": "uint16", "splits": dict.fromkeys(("train", "validation", "test"), empty),
            "vocab_size": vocab_size, "tokenizer_digest": bpe.digest(stored), "eos_id": eos_id,
            "model_settings": settings_to_begin_with(config),
        }
    )  # fmt: skip
