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
from trainingjob_trainer.config import METRICS, JobConfig
from trainingjob_trainer.evaluation.evaluate import scalars
from trainingjob_trainer.tasks import IGNORE

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


def multi_label(directory: Path) -> tuple[JobConfig, Predictions, npt.NDArray[np.uint8]]:
    """Logits and sets of labels, some of them empty; one class is neither there nor predicted."""
    random = np.random.default_rng(2)
    labels = random.integers(0, 2, size=(SAMPLES, len(CLASSES))).astype(np.uint8)
    logits = random.normal(size=labels.shape) + labels
    labels[:, 2], logits[:, 2] = 0, -1
    task = {"kind": "image-classification", "loss": "binary-cross-entropy"}
    config = job(directory, task=task, data=parquet(directory))
    put_rows(config, labels, classes=CLASSES, multi_label=True)
    return config, logits, labels


def regression(directory: Path) -> tuple[JobConfig, Predictions, npt.NDArray[np.float32]]:
    """Values far from zero, with a small variance; one is the number that stands for no weight where classes are."""
    random = np.random.default_rng(3)
    targets = random.normal(1000, 2, size=SAMPLES).astype(np.float32)
    targets[5] = IGNORE
    predictions = (targets - SCALE["mean"]) / SCALE["deviation"] + random.normal(size=SAMPLES)
    config = job(directory, task={"kind": "regression"}, data=columns(directory), model={"mlp": {}})
    put_rows(config, targets, kind="tables", dtype="float32", shape=(1,), scales=[PIXEL, SCALE])
    return config, predictions, targets


PIXEL, SCALE = {"mean": 127.5, "deviation": 127.5}, {"mean": 999.0, "deviation": 3.0}


def columns(directory: Path) -> dict[str, Any]:
    return {"train": {"uri": f"{directory}/raw.csv", "format": "csv", "features": ["a"]}}


def expected_regression(predictions: Predictions, targets: npt.NDArray[np.float32]) -> dict[str, float]:
    values = predictions * SCALE["deviation"] + SCALE["mean"]
    errors = (values - targets) / SCALE["deviation"]
    return {
        "loss": float((errors**2).mean()),
        "mse": sk.mean_squared_error(targets.astype(float), values),
        "mae": sk.mean_absolute_error(targets.astype(float), values),
        "r2": sk.r2_score(targets.astype(float), values),
    }


def parquet(directory: Path) -> dict[str, Any]:
    return {"train": {"uri": f"{directory}/raw.parquet", "format": "parquet"}}


def expected_classification(logits: Predictions, labels: npt.NDArray[np.int32]) -> dict[str, float]:
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return {
        "loss": sk.log_loss(labels, probabilities, labels=range(len(CLASSES))),
        "accuracy": sk.accuracy_score(labels, logits.argmax(1)),
        **means(labels, logits.argmax(1)),
    }


def means(labels: npt.NDArray[Any], predictions: npt.NDArray[Any]) -> dict[str, float]:
    found = {}
    for suffix, average in (("", "macro"), ("Micro", "micro")):
        values = sk.precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)
        found |= {f"{name}{suffix}": mean for name, mean in zip(("precision", "recall", "f1"), values, strict=False)}
    return found


def assert_same(found: dict[str, Any], expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


def assert_same_by_class(found: dict[str, Any], labels: npt.NDArray[Any], predictions: npt.NDArray[Any]) -> None:
    every = range(len(CLASSES))
    each = sk.precision_recall_fscore_support(labels, predictions, labels=every, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), each, strict=True):
        assert [row[name] for row in found["perClass"]] == pytest.approx(list(values), rel=0, abs=1e-9), name
    assert [row["class"] for row in found["perClass"]] == CLASSES


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_metrics_equal_those_of_scikit_learn(tmp_path: Path, world_size: int) -> None:
    config, logits, labels = classification(tmp_path / "classes")
    several_config, several_logits, several = multi_label(tmp_path / "labels")
    values_config, predictions, values = regression(tmp_path / "values")
    tables = {
        "classes": (config, logits),
        "labels": (several_config, several_logits),
        "values": (values_config, predictions),
    }
    for found in run_ranks(world_size, evaluated_tables, tables):
        predicted = logits.argmax(1)
        assert_same(found["classes"], expected_classification(logits, labels))
        assert_same_by_class(found["classes"], labels, predicted)
        matrix = sk.confusion_matrix(labels, predicted, labels=range(len(CLASSES)))
        assert found["classes"]["confusionMatrix"] == matrix.tolist()

        predicted = several_logits > 0
        assert_same(found["labels"], means(several, predicted))
        chances = 1 / (1 + np.exp(-several_logits))
        losses = [-np.log(np.where(several, chances, 1 - chances)).mean()]
        assert_same(found["labels"], {"loss": losses[0], "accuracy": sk.accuracy_score(several, predicted)})
        assert_same_by_class(found["labels"], several, predicted)

        assert_same(found["values"], expected_regression(predictions, values))
        for name, kind in (
            ("classes", "image-classification"),
            ("labels", "text-classification"),
            ("values", "regression"),
        ):
            assert scalars(found[name]).keys() == METRICS[kind].keys()
