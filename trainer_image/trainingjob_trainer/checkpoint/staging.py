"""A state's copy in host memory: what is uploaded while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainingjob_trainer.parallel import local_part


@dataclass(frozen=True)
class Staged:
    """A copy; complete from `wait` on. Valid until the next one is made."""

    tensors: dict[str, Tensor]
    copied: torch.cuda.Event | None

    def wait(self) -> None:
        """Wait until the device has copied everything."""
        if self.copied is not None:
            self.copied.synchronize()


class Staging:
    """Host buffers of this rank's part of a state, page-locked with CUDA: made once, filled anew by each save."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor]) -> Staged:
        """The state as it is now.

        The copies are in the device's stream like any step, so no later step can overtake them, and the host waits for
        none of it.
        """
        copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        copied = torch.cuda.current_stream().record_event() if self._on_cuda else None
        return Staged(copies, copied)

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        local = local_part(tensor)
        buffer = self._buffers.get(name)
        if buffer is None:
            buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=self._on_cuda)
            self._buffers[name] = buffer
        buffer.copy_(local, non_blocking=True)
        # A shard stays a shard, of the same layout: that is how DCP knows its place in the whole.
        return DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else buffer
