"""Hand a trained model out: a directory that loads without this project.

A decoder becomes a Hugging Face directory of the Llama family (`AutoModelForCausalLM.from_pretrained`). Other models,
which no family there expresses, become safetensors and a `torch.export` program that plain PyTorch runs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import TOKENIZER_KEY, Manifest
from trainingjob_trainer.evaluation.model_card import classifier_card, decoder_card
from trainingjob_trainer.models import build_model
from trainingjob_trainer.models.transformer import NORM_EPS
from trainingjob_trainer.prepare.tokenizer import EOS

_RENAMED = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}


def export_model(config: JobConfig, manifest: Manifest, weights: Mapping[str, Tensor], attempt: Attempt) -> str:
    """Write the model below `model/a<attempt>/` and return that URI. `weights`: the whole state dict, on the CPU."""
    prefix = f"model/a{attempt.number}/"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        if manifest.tokenizer_digest is not None:
            (path / "tokenizer.json").write_bytes(attempt.store.get(TOKENIZER_KEY))
        if manifest.kind == "tokens":
            _write_decoder(path, config, manifest, weights)
        else:
            _write_program(path, config, manifest, weights)
        for file in sorted(path.iterdir()):
            attempt.store.put_file(prefix + file.name, file)
    return attempt.store.uri(prefix)


def _write_decoder(path: Path, config: JobConfig, manifest: Manifest, weights: Mapping[str, Tensor]) -> None:
    renamed = {llama_name(name): tensor.contiguous() for name, tensor in weights.items()}
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    _write_json(path / "config.json", llama_config(config, manifest))
    # In training an EOS stands before every document, so it also begins one.
    ids = {"bos_token_id": manifest.eos_id, "eos_token_id": manifest.eos_id, "pad_token_id": manifest.eos_id}
    _write_json(path / "generation_config.json", ids)
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": EOS,
            "eos_token": EOS,
            "pad_token": EOS,
            "model_max_length": config.training.sequence_length,
            "clean_up_tokenization_spaces": False,
        },
    )
    (path / "README.md").write_text(decoder_card(config, manifest, _parameters(weights)))


def llama_name(name: str) -> str:
    """A parameter's name in Llama's layout (see `models.transformer`)."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith("blocks."):
        return f"{_RENAMED[module]}.{leaf}"
    _, number, part = module.split(".", 2)
    return f"model.layers.{number}.{_RENAMED[part]}.{leaf}"


def llama_config(config: JobConfig, manifest: Manifest) -> dict[str, Any]:
    """The `config.json` of `LlamaForCausalLM`. What is left to a default there is wrong: it would be Meta's."""
    size = config.model.size
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": manifest.vocab_size,
        "hidden_size": size.dim,
        "intermediate_size": size.hidden_dim,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.num_kv_heads,
        "head_dim": size.dim // size.heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.training.sequence_length,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": size.rope_theta},
        "rope_theta": size.rope_theta,  # where transformers 4 looks
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": size.tie_embeddings,
        "bos_token_id": manifest.eos_id,
        "eos_token_id": manifest.eos_id,
        "pad_token_id": manifest.eos_id,
        "use_cache": True,
        "dtype": "float32",
    }


def _write_program(path: Path, config: JobConfig, manifest: Manifest, weights: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path / "model.safetensors")
    shape = list(manifest.shape or ())
    inputs = {"pixels": {"scale": 1 / 127.5, "offset": -1.0}} if manifest.kind == "images" else {"eos": manifest.eos_id}
    facts = {"task": config.task.kind, "transformer": config.model.size.wire(), "shape": shape}
    _write_json(path / "config.json", {**facts, "classes": manifest.classes, **inputs})
    with torch.device("meta"):
        model = build_model(config, manifest)
    model.load_state_dict(dict(weights), assign=True)
    program = torch.export.export(
        model.eval(),
        (torch.zeros(2, *shape, dtype=torch.float32 if manifest.kind == "images" else torch.int64),),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    torch.export.save(program, path / "model.pt2")
    (path / "README.md").write_text(classifier_card(config, manifest, _parameters(weights)))


def _parameters(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
