"""Hand a trained model out: a directory that loads without this project.

A decoder becomes a Hugging Face directory of the family that computes the same: `AutoModelForCausalLM.from_pretrained`.
Other models, which no family there expresses, become safetensors and a `torch.export` program that plain PyTorch runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import TOKENIZER_KEY, Manifest
from trainingjob_trainer.evaluation.model_card import classifier_card, decoder_card
from trainingjob_trainer.huggingface.save import save_decoder, write_json
from trainingjob_trainer.models import build_model


def export_model(config: JobConfig, manifest: Manifest, weights: Mapping[str, Tensor], attempt: Attempt) -> str:
    """Write the model below `model/a<attempt>/` and return that URI. `weights`: the whole state dict, on the CPU."""
    prefix = f"model/a{attempt.number}/"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        if manifest.tokenizer_digest is not None:
            (path / "tokenizer.json").write_bytes(attempt.store.get(TOKENIZER_KEY))
        if manifest.kind == "tokens":
            save_decoder(path, config, manifest, weights)
            (path / "README.md").write_text(decoder_card(config, manifest, _parameters(weights)))
        else:
            _write_program(path, config, manifest, weights)
        for file in sorted(path.iterdir()):
            attempt.store.put_file(prefix + file.name, file)
    return attempt.store.uri(prefix)


def _write_program(path: Path, config: JobConfig, manifest: Manifest, weights: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path / "model.safetensors")
    shape = list(manifest.shape or ())
    inputs = {"pixels": {"scale": 1 / 127.5, "offset": -1.0}} if manifest.kind == "images" else {"eos": manifest.eos_id}
    facts = {"task": config.task.kind, "transformer": config.model.size.wire(), "shape": shape}
    write_json(path / "config.json", {**facts, "classes": manifest.classes, **inputs})
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
