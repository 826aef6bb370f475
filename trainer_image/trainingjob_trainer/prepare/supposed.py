"""What a job's manifest will say that its model depends on, before the data is prepared."""

from __future__ import annotations

from typing import Any

from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import Manifest, Scale
from trainingjob_trainer.prepare.examples import first_shape


def supposed_manifest(config: TrainerSpec) -> Manifest:
    """Without data. Images are like the first one; there are two classes, the fewest."""
    facts: dict[str, Any] = {"splits": {}}
    vocab_size = config.data.prepare.tokenizer.vocab_size
    if config.model.init_from is not None:
        from trainingjob_trainer.beginning import settings_to_begin_with, source_of

        facts["model_settings"] = settings_to_begin_with(config)
        if config.model.timm is None:
            vocab_size = source_of(config).tokenizer[1]
    match config.task.kind:
        case "image-classification":
            facts |= {"kind": "images", "dtype": "uint8", "shape": first_shape(config), "classes": ["a", "b"]}
        case "regression":
            columns = config.data.train.features or []
            scales = [Scale(mean=0, deviation=1)] * (len(columns) + 1)
            facts |= {"kind": "tables", "dtype": "float32", "shape": (len(columns),), "scales": scales}
        case kind:
            facts |= {"kind": "tokens", "dtype": "uint16", "vocab_size": vocab_size}
            facts |= {"tokenizer_digest": "", "eos_id": 0}
            if kind == "text-classification":
                facts |= {"kind": "texts", "shape": (config.training.sequence_length,), "classes": ["a", "b"]}
    return Manifest(**facts)
