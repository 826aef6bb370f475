"""Known predictions on known rows, evaluated by real ranks; it lies here because new processes import it by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import MANIFEST_KEY, SPLITS, Manifest, Shard
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.evaluation.evaluate import evaluate
from trainingjob_trainer.tasks import TaskMetrics, build_task

from support.training import store_of

SAMPLES = 150  # an odd number of batches at each world size, and the last one is never full
BATCH = 7


class Table(nn.Module):
    """Predicts for sample i row i of a table. Inputs are one number, scaled from that of the sample as pixels are."""

    def __init__(self, predictions: Tensor) -> None:
        super().__init__()
        self.predictions = predictions

    def forward(self, inputs: Tensor) -> Tensor:
        return self.predictions[((inputs.flatten() + 1) * 127.5).round().long()]


def put_rows(config: JobConfig, labels: npt.NDArray[Any], **facts: Any) -> None:
    """Rows of one number, which is their own, with these labels, as all three splits."""
    dtype = facts.get("dtype", "uint8")
    rows = b"".join(np.asarray(number, dtype).tobytes() + label.tobytes() for number, label in enumerate(labels))
    store = store_of(config)
    store.put("data/rows.bin", rows)
    shard = Shard.of("data/rows.bin", rows, len(labels), len(labels), "w")
    split = {"shards": [shard], "documents": len(labels), "bytes": len(labels)}
    fields = {"kind": "images", "dtype": "uint8", "shape": (1, 1, 1), "splits": dict.fromkeys(SPLITS, split)}
    store.put(MANIFEST_KEY, Manifest.model_validate({**fields, **facts}).to_json())


def evaluated_tables(tables: Mapping[str, tuple[JobConfig, npt.NDArray[np.float64]]]) -> dict[str, TaskMetrics]:
    """Metrics of each run's table of predictions on its test split."""
    found = {}
    for name, (config, predictions) in tables.items():
        store = store_of(config)
        manifest = Manifest.model_validate_json(store.get(MANIFEST_KEY))
        reader = Reader(store, manifest, "test", config.training.sequence_length)
        model = Table(torch.from_numpy(predictions))
        found[name] = evaluate(model, build_task(config, manifest), reader, torch.device("cpu"), BATCH)
    return found
