"""From a model as it was written to the one that a rank runs: all of it from outside, in the order that it takes."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from trainingjob_trainer.config import Training
from trainingjob_trainer.parallel.compiling import compile_blocks
from trainingjob_trainer.parallel.precision import expect_autocast
from trainingjob_trainer.parallel.recompute import recompute
from trainingjob_trainer.parallel.sharding import shard
from trainingjob_trainer.parallel.tensor import split_matrices
from trainingjob_trainer.parallel.world import World

Model = TypeVar("Model", bound=nn.Module)


def parallelize(model: Model, world: World, training: Training, dtype: torch.dtype, compiled: bool) -> Model:
    """Spread `model` (on the meta device, with `blocks`) in place over the world's mesh; passes compute in `dtype`."""
    if world.mesh is not None and world.tensor > 1:
        split_matrices(model, world.mesh["tensor"])
    recompute(model, training.parallelism.activation_checkpointing)
    if compiled:
        compile_blocks(model)
    if world.mesh is None:
        expect_autocast()
        return model
    return shard(model, world.mesh, dtype, training.parallelism.reshard_after_forward)
