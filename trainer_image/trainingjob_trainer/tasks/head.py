"""Cross-entropy of a language model's head without its logits: they exist for some tokens at a time only.

A language model calls `read(features, weight)` with what goes into its head, and the head's weight, instead of
multiplying them. It happens within its forward pass, where FSDP has gathered the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from trainingjob_trainer.tasks.base import IGNORE, precise

LOGITS_AT_ONCE = 2**24  # numbers: 64 MiB in float32; with a vocabulary of 50,000, those of 333 tokens
ON_CUDA = 64  # times as many (2 GiB in bfloat16): large products are what a GPU is fast at
# By device: to a multiple of this the head is filled up, for products that are slow with odd numbers of columns. The
# rows exist for a pass only: weights, checkpoints and exports have as many as there are entries.
MULTIPLE = {"cuda": 64}
Differentiate = Callable[[Tensor, Tensor, float, int], tuple[Tensor, Tensor]]


def pieces(features: Tensor, weight: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits `[tokens, vocabulary]` and targets `[tokens]`, some tokens after others. features: `[..., dim]`."""
    flat, wanted, padded = features.flatten(0, -2), targets.flatten(), _padded(weight)
    for part in _parts(flat, len(padded)):
        yield F.linear(flat[part], padded)[:, : len(weight)], wanted[part]


def head_cross_entropy(
    features: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0, compiled: bool = False
) -> Tensor:
    """Cross-entropy of the logits `features @ weight.T`, summed over the targets that are not IGNORE.

    compiled: what is done with a piece's logits is one kernel, made at the first call.
    The product has the dtype of the autocast context, if there is one; the rest is float32 or better.
    """
    kind = features.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype
    with torch.autocast(kind, enabled=False):
        flat = features.flatten(0, -2).to(dtype)
        exact = torch.are_deterministic_algorithms_enabled()
        differentiate = _compiled(not exact) if compiled else _losses_and_gradient
        loss: Tensor = _HeadCrossEntropy.apply(flat, weight.to(dtype), targets.flatten(), smoothing, differentiate)
        return loss


class _HeadCrossEntropy(torch.autograd.Function):
    """Makes the gradients on the way forward, while a piece's logits are there: d loss / d logits is softmax - target.

    So the backward pass multiplies no matrices again; it only scales what is there. (As Hsu et al. 2024, Liger.)
    """

    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, weight: Tensor, targets: Tensor, smoothing: float, differentiate: Differentiate
    ) -> Tensor:
        entries, weight = len(weight), _padded(weight)
        total = flat.new_zeros((), dtype=precise(flat[:0]).dtype)
        d_flat, d_weight = torch.empty_like(flat), torch.zeros_like(weight, dtype=total.dtype)
        for part in _parts(flat, len(weight)):
            counts = targets[part] != IGNORE
            keep = counts[:, None].to(flat.dtype)
            losses, d_logits = differentiate(flat[part] @ weight.T, targets[part].where(counts, 0), smoothing, entries)
            total += losses.where(counts, 0.0).sum()
            rounded = d_logits.to(flat.dtype)
            d_flat[part] = (rounded @ weight) * keep
            d_weight += rounded.T @ (flat[part] * keep)
            del d_logits, rounded  # before the next piece's
        ctx.gradients, ctx.dtype = (d_flat, d_weight[:entries]), weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_flat, d_weight = ctx.gradients
        del ctx.gradients  # they are handed over, not kept: one backward pass for each forward pass
        return d_flat.mul_(scale), d_weight.mul_(scale).to(ctx.dtype), None, None, None


def _losses_and_gradient(logits: Tensor, targets: Tensor, smoothing: float, entries: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token, and its derivative by the logits. Columns after `entries` are none: 0 there."""
    logits[:, entries:] = -torch.inf
    log_chances = precise(logits).log_softmax(-1)
    losses = (smoothing - 1) * log_chances.gather(1, targets[:, None])[:, 0]
    if smoothing:
        losses -= smoothing * log_chances[:, :entries].mean(-1)
    d_logits = log_chances.exp_()
    d_logits.scatter_add_(1, targets[:, None], torch.full_like(losses, smoothing - 1)[:, None])
    if smoothing:
        d_logits[:, :entries] -= smoothing / entries
    return losses, d_logits


def _losses_and_gradient_in_one(
    logits: Tensor, targets: Tensor, smoothing: float, entries: int
) -> tuple[Tensor, Tensor]:
    """The same without a tensor that changes in place, so that a compiler can make one pass of it."""
    width = logits.shape[-1]
    columns = torch.arange(width, device=logits.device, dtype=torch.int32)  # half as dear to compare as int64
    if entries < width:
        logits = logits.where(columns < entries, -torch.inf)
    log_chances = precise(logits).log_softmax(-1)
    losses = (smoothing - 1) * log_chances.gather(1, targets[:, None])[:, 0]
    chances = log_chances.exp()
    d_logits = chances.where(columns != targets[:, None].int(), chances + (smoothing - 1))
    if smoothing:
        entry = columns < entries
        losses = losses - smoothing * log_chances.where(entry, 0).sum(-1) / entries
        d_logits = d_logits - smoothing / entries * entry
    return losses, d_logits.to(logits.dtype)


@cache
def _compiled(searched: bool) -> Differentiate:
    """searched: the fastest shape of the kernel is looked for, which takes seconds, once a run; as it decides about the
    order of sums, not where runs have to be equal bit for bit."""
    options: dict[str, str | int | bool | Callable[..., Any]] = {"coordinate_descent_tuning": searched}
    return torch.compile(_losses_and_gradient_in_one, dynamic=False, options=options)  # there are pieces of two sizes


def _padded(weight: Tensor) -> Tensor:
    """A head's weight with rows of zeros up to the multiple of its device."""
    missing = -len(weight) % MULTIPLE.get(weight.device.type, 1)
    return F.pad(weight, (0, 0, 0, missing)) if missing else weight


def _parts(flat: Tensor, vocabulary: int) -> Iterator[slice]:
    at_once = LOGITS_AT_ONCE * (ON_CUDA if flat.is_cuda else 1)
    count = -(-len(flat) // max(1, at_once // vocabulary))
    size = -(-len(flat) // count)  # the last piece is about as large as the others
    return (slice(start, start + size) for start in range(0, len(flat), size))
