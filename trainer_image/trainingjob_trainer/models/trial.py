"""A model tried before a GPU is asked for: built, and given a batch of which torch knows shapes and types only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from trainingjob_trainer.accounting import ModelSize, head_bytes, rows_a_pass
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.models import build_model
from trainingjob_trainer.models.from_timm import ImageClassifier
from trainingjob_trainer.models.recurrent import Recurrent
from trainingjob_trainer.parallel import check_batch_norm
from trainingjob_trainer.parallel.recompute import recompute
from trainingjob_trainer.tasks import build_task

# What a model does that depends on values, which are not there.
_UNKNOWN = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    NotImplementedError,
)


def tried(config: JobConfig, manifest: Manifest) -> ModelSize:
    """What a job's model takes. Raises `UserError` if it cannot be made, or not be trained as configured."""
    with torch.device("meta"):
        model = build_model(config, manifest)
    check_batch_norm(model, config.training.parallelism)
    blocks = [_parameters(block) for block in model.get_submodule("blocks").children()]
    whole = _parameters(model)
    return ModelSize(whole, max(blocks, default=0), whole - sum(blocks), _activations(model, config, manifest))


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _activations(model: nn.Module, config: JobConfig, manifest: Manifest) -> int:
    """Bytes that a pass takes beside the model. Of a library's model that does what cannot be tried: 0."""
    recompute(model, config.training.parallelism.activation_checkpointing)
    task = build_task(config, manifest)
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        nn.Module.to_empty(model, device="cpu")
        inputs, targets = _batch(config, manifest)
        try:
            if isinstance(model, Recurrent):
                # Logits are never there at once (`tasks.head`). The product with the head, which stands for them here,
                # keeps what goes into the head: as much as the gradient by it, which is really kept.
                kept = kept_bytes(model, lambda: model(inputs))
                return kept + head_bytes(inputs.numel(), *model.embed.weight.shape)
            if manifest.kind != "tokens":
                return kept_bytes(model, lambda: task.loss_sum(model, inputs, targets))
            with _CausalWithoutMask():
                kept = kept_bytes(model, lambda: task.loss_sum(model, inputs, targets))
            # The loss keeps the logarithms of the chances. Of these and of the logits there is a derivative at a time.
            return kept + 2 * 4 * inputs.numel() * (manifest.vocab_size or 0)
        except _UNKNOWN:
            return 0
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            if isinstance(model, ImageClassifier):
                raise model.refused(error) from error
            raise


def kept_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes that `run` keeps for a backward pass, apart from the model's own."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    def keep_inputs(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept.extend(value for value in inputs if isinstance(value, Tensor))

    for block in model.get_submodule("blocks").children():  # if they recompute, they keep these all the same
        block.register_forward_pre_hook(keep_inputs)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    return sum(size for storage, size in storages.items() if storage not in own)


class _CausalWithoutMask(TorchFunctionMode):
    """Where transformers believes that it is traced, it makes a mask for what otherwise a flag says."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention and given.get("attn_mask") is not None:
            given = {**given, "attn_mask": None, "is_causal": True}
        return func(*args, **given)


def _batch(config: JobConfig, manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a pass."""
    rows, row = rows_a_pass(config), manifest.shape or (config.training.sequence_length,)
    match manifest.kind:
        case "tokens":
            return torch.empty(rows, *row, dtype=torch.int64), torch.empty(rows, *row, dtype=torch.int64)
        case "tables":
            return torch.empty(rows, *row), torch.empty(rows)
        case kind:
            each = (len(manifest.classes or ()),) if config.task.multi_label else ()
            inputs = torch.empty(rows, *row, dtype=torch.int64 if kind == "texts" else torch.float32)
            return inputs, torch.empty(rows, *each, dtype=torch.int64)
