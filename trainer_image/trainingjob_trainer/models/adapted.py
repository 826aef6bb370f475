"""Models of libraries, with what the trainer asks of its own: blocks, values of buffers, initial weights by a seed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn


class Adapted(nn.Module, ABC):
    """A library's model as `inner`, its parameters without memory (on the meta device) until `to_empty`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._blocks = find_blocks(inner)  # in a list, not a module: their names remain those of the library
        self._first_buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        self._ties = list(_ties(self))

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated parts, which are sharded and recomputed one by one."""
        return nn.ModuleList(self._blocks)

    @abstractmethod
    def initial(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Each parameter's initial value by name, as the library has it: a pure function of the seed."""

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """Give the parameters memory, without values. Buffers get theirs, and tied parameters stay one."""
        super().to_empty(device=device, recurse=recurse)
        for name, value in self._first_buffers.items():
            self.get_buffer(name).copy_(value)
        for first, *others in self._ties:
            for name in others:
                module, _, leaf = name.rpartition(".")
                setattr(self.get_submodule(module), leaf, self.get_parameter(first))
        return self


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The children, modules of several parts, of the list or sequence that holds most parameters, the outermost of
    equals; maybe none."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1]
    parts = [[child for child in found if len(child._modules) > 1] for found in lists]
    return max(parts, key=lambda found: sum(p.numel() for part in found for p in part.parameters()), default=[])


def _ties(model: nn.Module) -> Iterator[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return (group for group in names.values() if len(group) > 1)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Parameters that modules get within take no memory; buffers have their values, which only their module can tell.

    Not for several threads: for the time being it changes what all modules do.
    """
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = registered  # type: ignore[method-assign, assignment]
    try:
        with torch.device("cpu"):
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """torch's generator on the CPU, seeded by (seed, name) within and as before afterwards; tensors are made there."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7])
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(key)
        yield
