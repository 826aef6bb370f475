"""Models beside the Transformer: small ones, for the tasks that they are good at."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
