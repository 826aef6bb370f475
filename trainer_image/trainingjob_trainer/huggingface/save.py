"""Write a decoder as a directory that `transformers` loads: weights, configuration, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.huggingface.families import Entry, entries, write_config


def save_decoder(path: Path, config: TrainerSpec, manifest: Manifest, weights: Mapping[str, Tensor]) -> None:
    """Write the files beside `tokenizer.json`. `weights`: the whole state dict, on the CPU."""
    size, vocab_size, eos_id = config.model.size, manifest.vocab_size, manifest.eos_id
    assert vocab_size is not None
    assert eos_id is not None
    renamed = {entry.theirs: _joined(entry, weights) for entry in entries(size, vocab_size, config.context)}
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    write_json(path / "config.json", write_config(size, vocab_size, config.context, eos_id))
    write_generation_config(path, eos_id)
    write_tokenizer_config(path, config.context, eos_id)


def write_generation_config(path: Path, eos_id: int) -> None:
    """Write which tokens are special for generating."""
    ids = {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id}
    write_json(path / "generation_config.json", ids)


def write_marks(path: Path, eos_id: int) -> None:
    """Have a tokenizer put EOS around a text, as in a row of our data, unless it has marks of its own."""
    tokenizer = Tokenizer.from_file(str(path))
    if not tokenizer.encode("").ids:
        eos = tokenizer.id_to_token(eos_id)
        around = f"{eos} $A {eos}"
        tokenizer.post_processor = TemplateProcessing(single=around, pair=None, special_tokens=[(eos, eos_id)])
        tokenizer.save(str(path))


def write_tokenizer_config(path: Path, context: int, eos_id: int, pad_id: int | None = None) -> None:
    """Write what goes with `tokenizer.json`: which tokens are special. EOS pads unless something else does."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    eos = tokenizer.id_to_token(eos_id)
    write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": eos,
            "eos_token": eos,
            "pad_token": eos if pad_id is None else tokenizer.id_to_token(pad_id),
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
        },
    )


def _joined(entry: Entry, weights: Mapping[str, Tensor]) -> Tensor:
    joined = torch.cat([weights[name] for name in entry.ours]) if len(entry.ours) > 1 else weights[entry.ours[0]]
    return (joined.T if entry.transposed else joined).contiguous()


def write_json(path: Path, value: Any) -> None:
    """Write JSON as people like to read it."""
    path.write_text(json.dumps(value, indent=2) + "\n")
