"""What the Check stage asks of a library's model, before a GPU is asked for."""

from __future__ import annotations

from typing import Any

from trainingjob_trainer.beginning import settings_to_begin_with, source_of
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.models import build_model
from trainingjob_trainer.parallel import check_batch_norm


def check_library_model(config: JobConfig, manifest: Manifest | None) -> None:
    """Raises `UserError` if it cannot be made, or not be trained as configured. Until the data is prepared, sizes that
    depend on it are supposed."""
    model = build_model(config, manifest or _supposed(config))
    check_batch_norm(model, config.training.parallelism)


def _supposed(config: JobConfig) -> Manifest:
    if config.model.huggingface is None:
        return Manifest(kind="images", dtype="uint8", splits={}, shape=(3, 224, 224), classes=["a", "b"])
    trained = config.model.init_from is None
    vocab_size = config.data.prepare.tokenizer.vocab_size if trained else source_of(config).tokenizer[1]
    facts: dict[str, Any] = {"kind": "tokens", "vocab_size": vocab_size, "tokenizer_digest": "", "eos_id": 0}
    if config.task.kind == "text-classification":
        facts |= {"kind": "texts", "shape": (config.training.sequence_length,), "classes": ["a", "b"]}
    return Manifest(dtype="uint16", splits={}, model_settings=settings_to_begin_with(config), **facts)
