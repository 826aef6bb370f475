"""What a job's manifest will say that its model depends on, before the data is prepared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import Manifest, Scale
from trainingjob_trainer.prepare.examples import first_shape

if TYPE_CHECKING:
    from trainingjob_trainer.beginning import Source


def supposed_manifest(config: TrainerSpec, source: Source | None) -> Manifest:
    """For a run that begins with `source`. Images are like the first one; there are two classes, the fewest."""
    facts: dict[str, Any] = {"splits": {}}
    digest, vocab_size, eos_id = "", config.data.prepare.tokenizer.vocab_size, 0
    if source is not None:
        from trainingjob_trainer.beginning import settings_to_begin_with
        from trainingjob_trainer.prepare import tokenizer as bpe

        facts["model_settings"] = settings_to_begin_with(config, source)
        if config.model.timm is None:
            stored, vocab_size, eos_id = source.tokenizer
            digest = bpe.digest(stored)
    match config.task.kind:
        case "image-classification":
            facts |= {"kind": "images", "dtype": "uint8", "shape": first_shape(config), "classes": ["a", "b"]}
        case "regression":
            columns = config.data.train.features or []
            scales = [Scale(mean=0, deviation=1)] * (len(columns) + 1)
            facts |= {"kind": "tables", "dtype": "float32", "shape": (len(columns),), "scales": scales}
        case kind:
            facts |= {"kind": "tokens", "dtype": "uint16", "vocab_size": vocab_size}
            facts |= {"tokenizer_digest": digest, "eos_id": eos_id}
            if kind == "text-classification":
                facts |= {"kind": "texts", "shape": (config.training.sequence_length,), "classes": ["a", "b"]}
    return Manifest(**facts)
