"""Models, hand-written and small: `build_model` gives the one that a specification asks for."""

from __future__ import annotations

from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.models.initialize import init_weights
from trainingjob_trainer.models.transformer import Classifier, Decoder

__all__ = ["Classifier", "Decoder", "build_model", "init_weights"]


def build_model(config: TrainerSpec, manifest: Manifest) -> Decoder | Classifier:
    """The model of a specification over the data of a manifest, its weights not yet initialised (`init_weights`).

    Under `torch.device("meta")` it takes no memory.
    """
    size = config.model.size
    if manifest.vocab_size is not None:
        return Decoder(size, manifest.vocab_size)
    return Classifier(size, manifest.shape or (), len(manifest.classes or ()))
