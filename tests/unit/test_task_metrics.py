"""Metrics are scikit-learn's on the same predictions, at every world size."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn import metrics as sk
from support.predictions import SAMPLES, evaluated_tables, put_rows
from support.ranks import run_ranks
from support.training import job
from trainingjob_trainer.config import JobConfig

CLASSES = ["a", "b", "never there", "never predicted", "e"]
Predictions = npt.NDArray[np.float64]


def classification(directory: Path) -> tuple[JobConfig, Predictions, npt.NDArray[np.int32]]:
    """Logits and labels: one class is neither there nor predicted, one is there and never predicted."""
    random = np.random.default_rng(1)
    logits = random.normal(size=(SAMPLES, len(CLASSES)))
    logits[:, 2:4] = -10
    labels = random.choice([0, 1, 3, 4], size=SAMPLES).astype(np.int32)
    logits[np.arange(SAMPLES), labels] += 1
    config = job(directory, task={"kind": "image-classification"}, data=parquet(directory))
    put_rows(config, labels, classes=CLASSES)
    return config, logits, labels


def parquet(directory: Path) -> dict[str, Any]:
    return {"train": {"uri": f"{directory}/raw.parquet", "format": "parquet"}}


def expected_classification(logits: Predictions, labels: npt.NDArray[np.int32]) -> dict[str, Any]:
    predictions = logits.argmax(1)
    every = range(len(CLASSES))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = {
        "loss": sk.log_loss(labels, probabilities, labels=every),
        "accuracy": sk.accuracy_score(labels, predictions),
    }
    for suffix, average in (("", "macro"), ("Micro", "micro")):
        means = sk.precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)
        expected |= {f"{name}{suffix}": mean for name, mean in zip(("precision", "recall", "f1"), means, strict=False)}
    return expected


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_metrics_equal_those_of_scikit_learn(tmp_path: Path, world_size: int) -> None:
    config, logits, labels = classification(tmp_path / "classes")
    for found in run_ranks(world_size, evaluated_tables, {"classes": (config, logits)}):
        classes = found["classes"]
        for name, value in expected_classification(logits, labels).items():
            assert classes[name] == pytest.approx(value, rel=0, abs=1e-9), name
        each = sk.precision_recall_fscore_support(labels, logits.argmax(1), labels=range(len(CLASSES)), zero_division=0)
        for name, values in zip(("precision", "recall", "f1", "support"), each, strict=True):
            assert [row[name] for row in classes["perClass"]] == pytest.approx(list(values), rel=0, abs=1e-9), name
        assert [row["class"] for row in classes["perClass"]] == CLASSES
        matrix = sk.confusion_matrix(labels, logits.argmax(1), labels=range(len(CLASSES)))
        assert classes["confusionMatrix"] == matrix.tolist()
