"""Models beside the Transformer: small ones, for the tasks that they are good at."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import from_json

from trainingjob_trainer.config.base import Config

Layers = Annotated[int, Field(ge=1, le=256)]
Width = Annotated[int, Field(ge=8, le=65536)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Cnn(Config):
    """Shape of a residual convolutional network: 3x3 convolutions, GroupNorm, each stage at half the resolution."""

    channels: Annotated[
        list[Annotated[int, Field(ge=8, le=8192, multiple_of=8)]], Field(min_length=1, max_length=8)
    ] = Field(default_factory=lambda: [32, 64], description="Channels of each stage, multiples of 8.")
    blocks: Annotated[int, Field(ge=1, le=64)] = Field(2, description="Residual blocks a stage.")
    dropout: Dropout = Field(0.0, description="Dropout before the head.")


class Rnn(Config):
    """Shape of a recurrent network: its layers are residual branches with RMSNorm before them."""

    cell: Literal["lstm", "gru"] = Field("lstm", description="Kind of recurrence.")
    layers: Layers = Field(2, description="Layers.")
    dim: Width = Field(256, description="Width of states and embeddings.")
    tie_embeddings: bool = Field(True, description="Output head shares the input embedding.")
    dropout: Dropout = Field(0.0, description="Dropout on the residual branches.")


class Mlp(Config):
    """Shape of a multilayer perceptron over columns of numbers, with residuals around its layers."""

    layers: Layers = Field(2, description="Residual layers, each of two matrices.")
    dim: Width = Field(64, description="Width; twice that inside a layer.")
    dropout: Dropout = Field(0.0, description="Dropout on the residual branches.")


def _canonical(text: str) -> str:
    """The text of a JSON object, always written the same way: it is part of a run's identity."""
    try:
        found = from_json(text)  # which, unlike Python's own, says that a text is nested too deep for it
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"is {text[:20]!r}, not a JSON object of names and values")
    return json.dumps(found, sort_keys=True)


Json = Annotated[str, Field(min_length=2, max_length=65536), AfterValidator(_canonical)]


class HuggingFace(Config):
    """A causal language model of the library transformers, for the families that `transformer` does not cover.

    Their logits are made whole, their matrices are not split over ranks, and documents are not packed for them.
    """

    config: Json | None = Field(
        None,
        description="Text of its config.json: model_type, and what differs from that type's defaults. Ids of special "
        "tokens are the tokenizer's; so is vocab_size, unless a larger one is given. Absent: the file in initFrom.",
    )


class Timm(Config):
    """An image classifier of the library timm, by name."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[a-z0-9_]+$")] = Field(
        description="Its name there, such as resnet18."
    )
    dropout: Dropout = Field(0.0, description="Dropout before the head.")
    options: Json = Field("{}", description="Text of a JSON object: further arguments of timm.create_model.")

    @property
    def arguments(self) -> dict[str, Any]:
        """The further arguments by name."""
        found: dict[str, Any] = json.loads(self.options)
        return found
