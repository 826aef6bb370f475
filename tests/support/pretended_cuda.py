"""A GPU that isn't there: tensors that have a device, a dtype and a shape, and no numbers (torch's `FakeTensorMode`).

What needs a number of one raises, since there is none: with CUDA the host would wait for the device there. All that
meet must be on one device, as with CUDA. Kernels are not run: whether they are right, only a GPU shows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainingjob_trainer import learner
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.models import build_model
from trainingjob_trainer.parallel import World

DEVICE = torch.device("cuda", 0)
GPU = SimpleNamespace(total_memory=80 * 2**30)
# What torch has fused kernels for on CUDA, but no description of for tensors without numbers: they give nothing back.
UNDESCRIBED = ("_fused_sgd_", "_fused_adagrad_")
aten = torch.ops.aten


class Watched(TorchDispatchMode):
    """Notes the operations that CUDA has no kernel for, and those for which the host waits.

    It waits where a number of its own memory goes to the device, or back, unless it is told not to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace != "aten":  # but where a tensor is, and the like
            return result
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)} - {
            "meta"
        }
        if "cuda" in devices and not torch._C._dispatch_has_computed_kernel_for_dispatch_key(func.name(), "CUDA"):
            self.unknown.add(func.name())
        if len(devices) > 1 and not kwargs.get("non_blocking"):
            self.waits.append(func.name())
        return result


@contextmanager
def pretended_cuda() -> Iterator[Watched]:
    """In which `World(0, 1, DEVICE)` can learn; what it does is watched."""
    watched = Watched()
    with ExitStack() as stack:
        library = stack.enter_context(torch.library._scoped_library("aten", "IMPL"))
        for name in UNDESCRIBED:
            library.impl(name, lambda *_, **__: None, "Meta")
        for patch in (
            mock.patch.object(torch.autograd, "backward", backward),
            mock.patch.object(torch.cuda, "get_device_properties", return_value=GPU),
            mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True),
            mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False),
            mock.patch.object(learner, "build_model", _really_on_meta),
        ):
            stack.enter_context(patch)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(watched)
        yield watched


def learner_on_cuda(config: JobConfig, manifest: Manifest) -> learner.Learner:
    """What a rank alone learns with on a GPU."""
    return learner.Learner.of(config, manifest, World(0, 1, DEVICE))


@torch.no_grad()
def backward(root: Tensor) -> None:
    """`torch.autograd.backward` without its queue for each device, of which there are as many as devices.

    As there, a gradient takes the shape and the dtype of what it is of, and must be on its device.
    """
    assert root.grad_fn is not None
    awaited = _edges(root.grad_fn)
    gradients: dict[Any, list[Tensor | None]] = {root.grad_fn: [torch.ones_like(root)]}
    ready = [root.grad_fn]
    while ready:
        node = ready.pop()
        places = zip(gradients.pop(node), node._input_metadata, strict=True)
        own = [
            None if gradient is None else gradient.sum_to_size(place.shape).to(place.dtype)
            for gradient, place in places
        ]
        assert {gradient.device for gradient in own if gradient is not None} <= {DEVICE}, node.name()
        if hasattr(node, "variable"):
            [gradient], weight = own, node.variable
            assert gradient is not None
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
            continue
        results = node.apply(*own) if isinstance(node, BackwardCFunction) else node(*own)
        results = results if isinstance(results, tuple) else (results,)
        for (earlier, place), result in zip(node.next_functions, results, strict=False):  # of ours, tensors come first
            if earlier is None:
                continue
            sums = gradients.setdefault(earlier, [None] * len(earlier._input_metadata))
            if result is not None:
                before = sums[place]
                sums[place] = result if before is None else before + result
            awaited[earlier] -= 1
            if not awaited[earlier]:
                ready.append(earlier)


def _edges(root: Any) -> dict[Any, int]:
    """How many gradients each node behind this one gets."""
    counts: defaultdict[Any, int] = defaultdict(int)
    seen, ahead = {root}, [root]
    while ahead:
        for earlier, _ in ahead.pop().next_functions:
            if earlier is not None:
                counts[earlier] += 1
                if earlier not in seen:
                    seen.add(earlier)
                    ahead.append(earlier)
    return counts


def _really_on_meta(config: JobConfig, manifest: Manifest) -> torch.nn.Module:
    """As with a GPU, where only what is made of the model is on it. (Modules can't swap pretended weights.)"""
    with unset_fake_temporarily():
        return build_model(config, manifest)
