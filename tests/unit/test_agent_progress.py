"""What `/progress` makes of reports: the newest attempt wins, and a pod that ends stays ended."""

import pytest
from trainingjob_trainer.agent.progress import Progress, Report


@pytest.fixture
def progress() -> Progress:
    return Progress("job-uid", "pod-uid", "Train", 300)


def take(progress: Progress, /, **fields: object) -> None:
    progress.take(Report.model_validate(fields))


def test_fields_are_merged_and_none_is_lost(progress: Progress) -> None:
    take(progress, attempt=1, progress={"step": 10, "loss": 4.0}, checkpoint={"latestStep": 10})
    take(progress, attempt=1, progress={"step": 11})
    assert progress.wire()["progress"] == {"step": 11, "loss": 4.0}
    assert progress.wire()["checkpoint"] == {"latestStep": 10}


def test_an_older_attempt_is_not_heard(progress: Progress) -> None:
    take(progress, attempt=2, progress={"step": 10})
    take(progress, attempt=1, progress={"step": 99})
    assert progress.wire()["attempt"] == 2
    assert progress.step == 10


def test_a_newer_attempt_begins_anew(progress: Progress) -> None:
    take(progress, attempt=1, firstStepAt="2030-01-01T00:00:00Z", resumedFromStep=0)
    take(progress, attempt=2)
    assert progress.wire()["firstStepAt"] is None
    assert progress.wire()["resumedFromStep"] is None
    assert progress.wire()["attemptStartedAt"] is not None


def test_ranks_that_drain_for_another_pod_do_not_end_this_one(progress: Progress) -> None:
    take(progress, attempt=1, state="Draining", message="Committing a checkpoint.")
    take(progress, state="Starting", message="Waiting for 1 of 2 pods to join.")
    assert progress.state == "Starting"


def test_a_pod_that_ends_says_so_whatever_is_reported(progress: Progress) -> None:
    progress.end("Draining", "The pod was asked to stop.")
    take(progress, attempt=1, state="Training", message="Training.", progress={"step": 12})
    assert (progress.state, progress.wire()["message"], progress.step) == ("Draining", "The pod was asked to stop.", 12)


def test_unknown_values_are_not_exported(progress: Progress) -> None:
    assert set(progress.metrics()) == {"steps", "incidents"}
    take(progress, attempt=1, progress={"step": 3})
    assert progress.metrics()["step"][1] == 3.0
