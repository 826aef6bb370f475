"""Fill a model, whole or sharded, with the weights of a Hugging Face directory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.huggingface.directory import Directory
from trainingjob_trainer.huggingface.families import entries
from trainingjob_trainer.models.from_transformers import FromTransformers


@torch.no_grad()
def load_weights(model: nn.Module, config: TrainerSpec, manifest: Manifest) -> None:
    """Take the weights that `model.initFrom` names, in place. Raises `UserError`.

    A rank reads the rows that it keeps, tensor by tensor, and nothing else. Only what GPT-2 stores transposed is read
    whole, one tensor at a time. Nothing is communicated.
    """
    source = Directory.of(config)
    source.check(config, manifest)
    parameters = dict(model.named_parameters())
    if isinstance(model, FromTransformers):
        wanted, _ = model.entries(source.keys)
    else:
        wanted = entries(config.model.size, manifest.vocab_size or 0, config.context)
    for entry in wanted:
        if len(entry.ours) == 1 and not entry.transposed:
            local, (rows, *columns) = _region(parameters[entry.ours[0]])
            if local.numel():
                local.copy_(source.read(entry, rows.start, rows.stop)[:, *columns])
            continue
        whole = source.read(entry)
        whole = whole.T if entry.transposed else whole
        ours = [parameters[name] for name in entry.ours]
        for parameter, part in zip(ours, torch.split(whole, [p.shape[0] for p in ours]), strict=True):
            local, region = _region(parameter)
            local.copy_(part[tuple(region)])


def _region(parameter: Tensor) -> tuple[Tensor, list[slice]]:
    """What this rank holds of a parameter, and where that lies in the whole."""
    if not isinstance(parameter, DTensor):
        return parameter, [slice(0, length) for length in parameter.shape]
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return parameter.to_local(), [slice(start, start + length) for start, length in zip(offset, shape, strict=True)]
