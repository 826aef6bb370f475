"""The state of a run as one string, to compare."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor
from trainingjob_trainer.parallel import local_part


def hash_state(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes; equal means equal bit for bit. Of shards: of this rank's."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        local = local_part(tensor)
        digest.update(f"{name} {tuple(local.shape)} {local.dtype};".encode())
        digest.update(local.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
