"""Hand a trained model out: a directory that loads without this project.

A decoder becomes a Hugging Face directory of the family that computes the same: `AutoModelForCausalLM.from_pretrained`.
Other models, which no family there expresses, become safetensors and a `torch.export` program that plain PyTorch runs.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import HuggingFace, JobConfig, Transformer
from trainingjob_trainer.data.manifest import Manifest, Scale, read_tokenizer
from trainingjob_trainer.evaluation.model_card import model_card
from trainingjob_trainer.huggingface.save import (
    save_decoder,
    write_generation_config,
    write_json,
    write_marks,
    write_tokenizer_config,
)
from trainingjob_trainer.models import build_model
from trainingjob_trainer.models.from_timm import ImageClassifier
from trainingjob_trainer.models.from_transformers import FromTransformers, TextClassifier


def export_model(
    config: JobConfig, manifest: Manifest, weights: Mapping[str, Tensor], attempt: Attempt, step: int
) -> str:
    """Write the model below `model/a<attempt>/` and return that URI.

    `weights`: the whole state dict after `step` steps, on the CPU.
    """
    prefix = f"model/a{attempt.number}/"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        if manifest.tokenizer_digest is not None:
            (path / "tokenizer.json").write_bytes(read_tokenizer(manifest, attempt.store))
        if isinstance(config.model.architecture, HuggingFace):
            _save_library_model(path, config, manifest, weights)
        elif manifest.kind == "tokens" and isinstance(config.model.architecture, Transformer):
            save_decoder(path, config, manifest, weights)
        else:
            _write_program(path, config, manifest, weights)
        (path / "README.md").write_text(model_card(config, manifest, _parameters(weights), step))
        for file in sorted(path.iterdir()):
            attempt.store.put_file(prefix + file.name, file)
    return attempt.store.uri(prefix)


def _save_library_model(path: Path, config: JobConfig, manifest: Manifest, weights: Mapping[str, Tensor]) -> None:
    """As the library itself does it; what is ours to say are the special tokens."""
    model = build_model(config, manifest)
    assert isinstance(model, FromTransformers)
    assert manifest.eos_id is not None
    if isinstance(model, TextClassifier):
        problem = "multi_label_classification" if manifest.multi_label else "single_label_classification"
        model.save(path, weights, manifest.eos_id, problem_type=problem)
        write_marks(path / "tokenizer.json", manifest.eos_id)
        write_tokenizer_config(path, config.context, manifest.eos_id, model.pad_id)
    else:
        model.save(path, weights, manifest.eos_id)
        write_generation_config(path, manifest.eos_id)
        write_tokenizer_config(path, config.context, manifest.eos_id)


def _write_program(path: Path, config: JobConfig, manifest: Manifest, weights: Mapping[str, Tensor]) -> None:
    named = {name.removeprefix("inner."): tensor.contiguous() for name, tensor in weights.items()}
    save_file(named, path / "model.safetensors")
    with torch.device("meta"):
        model = build_model(config, manifest)
    settings = program_config(config, manifest)
    if isinstance(model, ImageClassifier):
        settings |= model.described()
    write_json(path / "config.json", settings)
    model.load_state_dict(dict(weights), assign=True)
    if manifest.scales is not None:
        model = Unscaled(model, manifest.scales)
    shape = manifest.shape or (config.training.sequence_length,)
    inputs = torch.zeros(2, *shape, dtype=torch.int64 if manifest.eos_id is not None else torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "The tensor attributes .*_flat_weights"
        )  # recurrent layers list their weights
        program = torch.export.export(model.eval(), (inputs,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path / "model.pt2")


class Unscaled(nn.Module):
    """A regression from columns as they are in the data to values as they are there."""

    means: Tensor
    deviations: Tensor

    def __init__(self, model: nn.Module, scales: Sequence[Scale]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("means", torch.tensor([scale.mean for scale in scales], dtype=torch.float64))
        self.register_buffer("deviations", torch.tensor([scale.deviation for scale in scales], dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        """Columns `[batch, features]` -> values `[batch]`, both float32."""
        scaled = (inputs.double() - self.means[:-1]) / self.deviations[:-1]
        predicted: Tensor = self.model(scaled.float()).double() * self.deviations[-1] + self.means[-1]
        return predicted.float()


def program_config(config: JobConfig, manifest: Manifest) -> dict[str, Any]:
    """What a caller of `model.pt2` has to know: the shape of a row, how to fill it, and what comes out."""
    shape = manifest.shape or (config.training.sequence_length,)
    known: dict[str, Any] = {"classes": manifest.classes, "eos": manifest.eos_id}
    if manifest.classes is not None:
        known["multiLabel"] = manifest.multi_label
    if manifest.kind == "tables":
        known |= {"features": config.data.train.features, "target": config.data.train.label_field}
    if manifest.kind == "images":
        known["pixels"] = {"scale": 1 / 127.5, "offset": -1.0}
    return {
        "task": config.task.kind,
        "model": config.model.wire(),
        "shape": list(shape),
        **{name: value for name, value in known.items() if value is not None},
    }


def _parameters(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())
