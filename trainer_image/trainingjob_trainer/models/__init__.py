"""Models, hand-written and small, or of libraries: `build_model` gives the one that a specification asks for."""

from __future__ import annotations

from torch import nn

from trainingjob_trainer import config as shapes
from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.models.cnn import Cnn
from trainingjob_trainer.models.encoder import Encoder
from trainingjob_trainer.models.initialize import init_weights
from trainingjob_trainer.models.perceptron import Perceptron
from trainingjob_trainer.models.recurrent import Recurrent
from trainingjob_trainer.models.transformer import Classifier, Decoder

__all__ = ["Classifier", "Cnn", "Decoder", "Encoder", "Perceptron", "Recurrent", "build_model", "init_weights"]


def build_model(config: TrainerSpec, manifest: Manifest) -> nn.Module:
    """The model of a specification over the data of a manifest, its weights not yet initialised (`init_weights`).

    Under `torch.device("meta")` it takes no memory.
    """
    vocabulary, shape, classes = manifest.vocab_size or 0, manifest.shape or (), len(manifest.classes or ())
    match manifest.kind, config.model.architecture:
        case "tokens", shapes.Transformer() as size:
            separator = manifest.eos_id if config.data.packing else None
            return Decoder(size, vocabulary, config.context, separator)
        case "tokens", shapes.Rnn() as size:
            return Recurrent(size, vocabulary)
        case "texts", shapes.Transformer() as size:
            return Encoder(size, vocabulary, manifest.eos_id or 0, classes, config.context)
        case "images", shapes.Transformer() as size:
            return Classifier(size, shape, classes)
        case "images", shapes.Cnn() as size:
            return Cnn(size, shape[0], classes)
        case "tables", shapes.Mlp() as size:
            return Perceptron(size, shape[0])
        case "tokens" | "texts", shapes.HuggingFace():
            from trainingjob_trainer.models.from_transformers import library_model

            names = manifest.classes or ()
            return library_model(config, manifest.model_settings, vocabulary, manifest.eos_id or 0, names)
        case "images", shapes.Timm() as size:
            from trainingjob_trainer.models.from_timm import ImageClassifier

            return ImageClassifier(size, manifest.model_settings, shape, classes)
    raise ValueError(f"no model of {manifest.kind} for {config.model}")
