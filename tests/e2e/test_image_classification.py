"""Whole run of image classification; the operator is away while it ends and its pods are deleted."""

from pathlib import Path
from typing import Any

import pytest
from support.operator_process import Operator
from support.runs import RUN_PATIENCE, Run, wait_until


@pytest.fixture(scope="module")
def run(operator: Operator, start_digits_job: Any) -> Run:
    """Run 3: while it trains the operator stops, it ends, its pods are deleted, the operator comes back."""
    run: Run = start_digits_job("digits")
    run.wait_commit()
    operator.stop()
    try:
        wait_until("the run has its result", lambda: "result.json" in run.keys("result.json"), RUN_PATIENCE)
        before = run.read("result.json"), run.committed_steps(), run.keys("attempts/")
        run.kubectl("delete", "pods", "--selector", "trainingjob.io/job-name=digits")
    finally:
        operator.start()
    run.wait_succeeded()
    assert (run.read("result.json"), run.committed_steps(), run.keys("attempts/")) == before, "a step was trained again"
    return run


def test_a_job_that_ended_while_the_operator_was_away_succeeds_with_the_same_result(run: Run) -> None:
    status = run.status()
    assert status["result"]["modelUri"] == run.result()["modelUri"]
    assert status["evaluation"]["step"] in run.committed_steps(), "the best checkpoint"


def test_the_classifier_reads_handwritten_digits(run: Run) -> None:
    metrics = run.status()["evaluation"]["metrics"]
    assert metrics["accuracy"] > 0.95, "the most frequent class alone gives 0.1"
    assert metrics["f1"] > 0.95


def test_the_metrics_in_the_status_are_what_a_stranger_computes_from_the_exported_model(
    run: Run, tmp_path: Path
) -> None:
    recomputed = run.recomputed_metrics(tmp_path)
    reported = run.status()["evaluation"]["metrics"]
    for name in ("loss", "accuracy", "precision", "recall", "f1"):
        assert recomputed[name] == pytest.approx(reported[name], rel=1e-4), name
    assert run.report()["test"]["confusionMatrix"] == recomputed["confusionMatrix"]
