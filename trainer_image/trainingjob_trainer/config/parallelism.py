"""How a model is spread over the ranks of a run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainingjob_trainer.config.base import Config


class Parallelism(Config):
    """How weights, gradients and moments are spread over the ranks. It changes no result but by rounding."""

    fsdp: Literal["auto", "full", "none"] = Field(
        "auto",
        description="full: weights, gradients and moments are sharded (FSDP2, ZeRO-3); none: each rank holds all of "
        "them (DDP); auto: by the model's size, the memory of a rank and the number of ranks.",
    )
    fsdp_ranks: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        None,
        description="Ranks of an FSDP group; the groups hold copies of each other (HSDP). Absent: all ranks form one.",
    )
    reshard_after_forward: bool = Field(
        True,
        description="true: a block lets go of gathered weights after its forward pass and gathers them anew for its "
        "backward pass (ZeRO-3); false: it keeps them until then (ZeRO-2), a third less communication for more memory.",
    )
    tensor: Annotated[int, Field(ge=1, le=64)] = Field(
        1,
        description="Ranks that share each matrix of a decoder (tensor parallelism, with sequence-parallel norms and a "
        "parallel loss); neighbours, so best of one pod.",
    )
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        "none",
        description="What a block's backward pass computes anew instead of keeping it: full: all but its input; "
        "selective: all but matrix products and attention; none: nothing.",
    )

    @model_validator(mode="after")
    def _groups_are_of_fsdp(self) -> Self:
        if self.fsdp_ranks is not None and self.fsdp != "full":
            raise ValueError(f"fsdpRanks ({self.fsdp_ranks}) is for fsdp full, not {self.fsdp}")
        return self

    @property
    def group(self) -> int:
        """Ranks must divide into groups of this size."""
        return (self.fsdp_ranks or 1) * self.tensor
