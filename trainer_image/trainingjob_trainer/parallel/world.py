"""The ranks of a run, and what they agree on apart from gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from trainingjob_trainer.parallel.layout import Layout

T = TypeVar("T")


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: its shard of a sharded one."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_first_holder(tensor: Tensor) -> bool:
    """Whether this rank is the first of those that hold the same part of a tensor, so that sums take it once."""
    if not isinstance(tensor, DTensor):
        return True
    place = tensor.device_mesh.get_coordinate() or ()
    return all(at == 0 for at, placement in zip(place, tensor.placements, strict=True) if placement.is_replicate())


@dataclass(frozen=True)
class World:
    """This rank among all. With one rank there is no mesh and no group, and nothing is communicated.

    `mesh` has the dimensions of a layout: `copies`, `shards` and `tensor`, whose ranks are neighbours. Those compute on
    the same rows, so rows are dealt to `data_size` ranks; `data_group` are these, where they are not all. `control` is
    a gloo group for small things on the CPU (votes, checkpoint plans), apart from the gradients' group.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None = None
    control: dist.ProcessGroup | None = None
    tensor: int = 1
    data_group: dist.ProcessGroup | None = None

    @property
    def data_size(self) -> int:
        """Ranks that rows are dealt to."""
        return self.size // self.tensor

    @property
    def data_rank(self) -> int:
        """This rank's place among them."""
        return self.rank // self.tensor

    @classmethod
    def join(cls) -> World:
        """The world of the default process group, or a world of one; no layout yet. Collective, and makes a group."""
        size = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        if size == 1:
            return cls(rank, size, device)
        return cls(rank, size, device, control=_control_group())

    def arranged(self, layout: Layout) -> Self:
        """The same ranks in the groups of a layout. Collective, and makes groups."""
        if self.size == 1:
            return self
        shape, names = (layout.copies, layout.shards, layout.tensor), ("copies", "shards", "tensor")
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        group = mesh["copies", "shards"]._flatten("data").get_group() if layout.tensor > 1 else None
        return replace(self, mesh=mesh, tensor=layout.tensor, data_group=group)

    def apart(self) -> World:
        """The same ranks with a control group of their own, for another thread. Collective."""
        return self if self.control is None else replace(self, control=_control_group())

    def once(self, value: Tensor) -> Tensor:
        """`value`, or zero where other ranks have computed the same on the same rows: for a sum over all ranks."""
        return value if self.rank % self.tensor == 0 else torch.zeros_like(value)

    def sum(self, values: Tensor) -> None:
        """Sum `values` in place over all ranks, on the group of the gradients."""
        if self.size > 1:
            dist.all_reduce(values)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Have rank 0's values of these on every rank, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def from_first(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        if self.control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def on_first(self, action: Callable[[], T]) -> T:
        """Do `action` on rank 0 while the others wait; its result, or its exception, on every rank."""
        outcome: T | _Failed = _Failed(None)
        if self.rank == 0:
            try:
                outcome = action()
            except Exception as error:
                outcome = _Failed(error)
        outcome = self.from_first(outcome)
        if isinstance(outcome, _Failed):
            assert outcome.error is not None
            raise outcome.error
        return outcome


@dataclass(frozen=True)
class _Failed:
    error: Exception | None


def _control_group() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group
