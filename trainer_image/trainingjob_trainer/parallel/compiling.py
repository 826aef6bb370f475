"""torch.compile, block by block: one graph serves all blocks of a shape (Ansel et al. 2024)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

import torch
from torch import nn

from trainingjob_trainer.config import Training
from trainingjob_trainer.errors import UserError

# What makes kernels out of generated code, where no variable names one: Inductor's C++, the C around Triton's kernels.
COMPILERS = {"cpu": ("CXX", ("g++",)), "cuda": ("CC", ("gcc", "clang"))}


def compiles(training: Training, device: torch.device) -> bool:
    """Whether blocks are to be compiled for a device. Raises `UserError` if they are and nothing there can do it."""
    if training.compile == "never" or (training.compile == "auto" and device.type != "cuda"):
        return False
    if compiler(device, os.environ) is None:
        variable, names = COMPILERS[device.type]
        raise UserError(
            f"training.compile: {training.compile} needs a compiler, and there is no {' or '.join(names)} on the PATH.",
            f"Install one in the image, name one in {variable}, or set training.compile: never.",
        )
    return True


def compiler(device: torch.device, environment: Mapping[str, str]) -> str | None:
    """Path of the compiler that would be used."""
    variable, names = COMPILERS[device.type]
    named = environment.get(variable)
    candidates = (named.split()[0],) if named else names
    found = (shutil.which(name, path=environment.get("PATH")) for name in candidates)
    return next((path for path in found if path is not None), None)


def compile_blocks(model: nn.Module) -> None:
    """Have each of the model's blocks, and the norm after them, run as compiled kernels, made at its first pass.

    Only what is inside of a block: the hooks on it, which gather and release weights, stay outside of the graph. Names
    of parameters stay as they are.
    """
    last = (model.norm,) if isinstance(getattr(model, "norm", None), nn.Module) else ()
    for part in (*model.get_submodule("blocks").children(), *last):
        part.forward = torch.compile(part.forward)
