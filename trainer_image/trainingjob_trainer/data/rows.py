"""What the bytes of rows mean: the numbers of an image, a text or a table, and a label (`Manifest` has the layout)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainingjob_trainer.data.manifest import Manifest

Bytes = npt.NDArray[np.uint8]


def decode(rows: Bytes, manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Inputs `[n, *shape]` and targets of rows `[n, item_bytes]`.

    Pixels are float32 in [-1, 1], tokens int64, columns float32 of mean 0 and deviation 1. Targets are `[n]`, a class
    (int64) or a value (float32, as it is in the data), or `[n, classes]` of 0 and 1 (int64) with `multi_label`.
    """
    end = manifest.label_bytes
    numbers = _view(rows[:, :-end], manifest.dtype).reshape(len(rows), *(manifest.shape or ()))
    inputs, targets = torch.from_numpy(_inputs(numbers, manifest)), torch.from_numpy(_targets(rows[:, -end:], manifest))
    return inputs, targets


def _inputs(numbers: npt.NDArray[Any], manifest: Manifest) -> npt.NDArray[Any]:
    match manifest.kind:
        case "images":
            return numbers.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
        case "tables":
            scales = (manifest.scales or [])[:-1]
            means, deviations = [s.mean for s in scales], [s.deviation for s in scales]
            return ((numbers.astype(np.float64) - means) / deviations).astype(np.float32)
        case _:
            return numbers.astype(np.int64)


def _targets(labels: Bytes, manifest: Manifest) -> npt.NDArray[Any]:
    if manifest.multi_label:
        return labels.astype(np.int64)
    if manifest.kind == "tables":
        return _view(labels, "float32").reshape(len(labels)).astype(np.float32)
    return _view(labels, "int32").reshape(len(labels)).astype(np.int64)


def _view(rows: Bytes, dtype: str) -> npt.NDArray[Any]:
    return np.ascontiguousarray(rows).view(np.dtype(dtype).newbyteorder("<"))
