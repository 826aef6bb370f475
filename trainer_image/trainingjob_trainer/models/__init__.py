"""Models, hand-written and small: `build_model` gives the one that a specification asks for."""

from __future__ import annotations

from torch import nn

from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.models.encoder import Encoder
from trainingjob_trainer.models.initialize import init_weights
from trainingjob_trainer.models.transformer import Classifier, Decoder

__all__ = ["Classifier", "Decoder", "Encoder", "build_model", "init_weights"]


def build_model(config: TrainerSpec, manifest: Manifest) -> nn.Module:
    """The model of a specification over the data of a manifest, its weights not yet initialised (`init_weights`).

    Under `torch.device("meta")` it takes no memory.
    """
    size, classes = config.model.size, len(manifest.classes or ())
    match manifest.kind:
        case "tokens":
            separator = manifest.eos_id if config.data.packing else None
            return Decoder(size, manifest.vocab_size or 0, config.context, separator)
        case "texts":
            return Encoder(size, manifest.vocab_size or 0, manifest.eos_id or 0, classes, config.context)
        case "images":
            return Classifier(size, manifest.shape or (), classes)
