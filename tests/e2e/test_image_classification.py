"""Whole run of image classification; the operator is away while it ends and its pods are deleted."""

import csv
import io
import json
from typing import Any

import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from support.operator_process import Operator
from support.runs import Run, wait_until


@pytest.fixture(scope="module")
def run(operator: Operator, start_digits_job: Any) -> Run:
    """Run 3: while it trains the operator stops, it ends, its pods are deleted, the operator comes back."""
    run: Run = start_digits_job("digits")
    run.wait_commit()
    operator.stop()
    try:
        wait_until("the run has its result", lambda: "result.json" in run.keys("result.json"), 240)
        before = run.read("result.json"), run.committed_steps(), run.keys("attempts/")
        run.kubectl("delete", "pods", "--selector", "trainingjob.io/job-name=digits")
    finally:
        operator.start()
    run.wait_succeeded()
    assert (run.read("result.json"), run.committed_steps(), run.keys("attempts/")) == before, "a step was trained again"
    return run


def test_a_job_that_ended_while_the_operator_was_away_succeeds_with_the_same_result(run: Run) -> None:
    result = json.loads(run.read("result.json"))
    status = run.status()
    assert status["result"]["modelUri"] == result["modelUri"]
    assert status["evaluation"]["step"] == 300


def test_the_classifier_reads_handwritten_digits(run: Run) -> None:
    metrics = run.status()["evaluation"]["metrics"]
    assert metrics["accuracy"] > 0.9, "the most frequent class alone gives 0.1"
    assert metrics["f1"] > 0.9


def test_the_metrics_in_the_status_are_scikit_learns_on_the_same_predictions(run: Run) -> None:
    result = json.loads(run.read("result.json"))
    folder = str(result["reportUri"]).removeprefix(f"s3://{run.bucket}/{run.prefix}/").rpartition("/")[0]
    rows = list(csv.DictReader(io.StringIO(run.read(f"{folder}/predictions.csv").decode())))
    truth, predicted = [row["label"] for row in rows], [row["predicted"] for row in rows]
    metrics = run.status()["evaluation"]["metrics"]
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-9)
    for name, value in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert metrics[name] == pytest.approx(value, abs=1e-9), name


def test_the_report_holds_the_confusion_matrix(run: Run) -> None:
    report = json.loads(run.read(str(json.loads(run.read("result.json"))["reportUri"]).partition(f"{run.prefix}/")[2]))
    matrix = report["evaluation"]["metrics"]["confusionMatrix"]
    assert len(matrix) == 10
    assert sum(map(sum, matrix)) > 300
