"""What the bytes of rows mean: the numbers of an image or a text, and its label (`Manifest` has the layout)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainingjob_trainer.data.manifest import LABEL_BYTES, Manifest

Bytes = npt.NDArray[np.uint8]


def decode(rows: Bytes, manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Inputs `[n, *shape]` and targets `[n]` of rows `[n, item_bytes]`: pixels float32 in [-1, 1], tokens int64."""
    shape = (len(rows), *(manifest.shape or ()))
    numbers = _view(rows[:, :-LABEL_BYTES], manifest.dtype).reshape(shape)
    labels = _view(rows[:, -LABEL_BYTES:], "int32").reshape(len(rows)).astype(np.int64)
    inputs = numbers.astype(np.float32) / 127.5 - 1.0 if manifest.kind == "images" else numbers.astype(np.int64)
    return torch.from_numpy(inputs), torch.from_numpy(labels)


def _view(rows: Bytes, dtype: str) -> npt.NDArray[Any]:
    return np.ascontiguousarray(rows).view(np.dtype(dtype).newbyteorder("<"))
