"""What the Check stage asks of a library's model, before a GPU is asked for."""

from __future__ import annotations

from typing import Any

from trainingjob_trainer.beginning import settings_to_begin_with, source_of
from trainingjob_trainer.config import JobConfig, TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.models import build_model
from trainingjob_trainer.models.from_timm import ImageClassifier
from trainingjob_trainer.parallel import check_batch_norm
from trainingjob_trainer.prepare.examples import first_shape


def check_library_model(config: JobConfig, manifest: Manifest | None) -> None:
    """Raises `UserError` if it cannot be made, or not be trained as configured. Until the data is prepared, what
    depends on it is supposed."""
    model = library_model_of(config, manifest)
    check_batch_norm(model, config.training.parallelism)
    if isinstance(model, ImageClassifier):
        model.check_shape()


def library_model_of(config: TrainerSpec, manifest: Manifest | None) -> Any:
    """The model of a job, without memory."""
    return build_model(config, manifest or _supposed(config))


def _supposed(config: TrainerSpec) -> Manifest:
    if config.model.huggingface is None:
        settings, shape = settings_to_begin_with(config), first_shape(config)
        return Manifest(
            kind="images", dtype="uint8", splits={}, shape=shape, classes=["a", "b"], model_settings=settings
        )
    trained = config.model.init_from is None
    vocab_size = config.data.prepare.tokenizer.vocab_size if trained else source_of(config).tokenizer[1]
    facts: dict[str, Any] = {"kind": "tokens", "vocab_size": vocab_size, "tokenizer_digest": "", "eos_id": 0}
    if config.task.kind == "text-classification":
        facts |= {"kind": "texts", "shape": (config.training.sequence_length,), "classes": ["a", "b"]}
    return Manifest(dtype="uint16", splits={}, model_settings=settings_to_begin_with(config), **facts)
