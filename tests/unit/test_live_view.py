"""What a job looks like on the screen, with and without a terminal."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from trainingjob_cli.jobs import Job
from trainingjob_cli.timeline import Timeline
from trainingjob_cli.view import line, panel, show

RUNNING: dict[str, Any] = {
    "phase": "Running",
    "message": "Training.",
    "startTime": "2026-01-01T00:00:00Z",
    "workers": {"desired": 2, "ready": 2},
    "progress": {"step": 90, "steps": 180, "percent": 50, "loss": 4.5, "tokensPerSecond": 5120.4, "eta": "41s"},
    "checkpoint": {"latestStep": 45},
    "evaluation": {"split": "validation", "step": 45, "metrics": {"loss": 5.25}},
    "restarts": {"total": 1},
    "history": [
        {
            "time": "2026-01-01T00:01:00Z",
            "class": "WorkerLost",
            "pod": "quickstart-train-1-1",
            "step": 63,
            "stepsLost": 18,
            "secondsToRecover": 14,
        }
    ],
}
SUCCEEDED = {**RUNNING, "phase": "Succeeded", "message": "Done.", "result": {"modelUri": "s3://b/run/model/a1/"}}


def job(status: dict[str, Any]) -> Job:
    metadata = {"name": "quickstart", "namespace": "team", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return Job.from_manifest({"metadata": metadata, "status": status})


def drawn(status: dict[str, Any], timeline: Timeline | None = None) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(panel(job(status), timeline))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("progress", [{"step": 7, "summary": "step 7"}, {"percent": 30, "summary": "30%"}])
def test_a_command_that_does_not_say_its_steps_is_shown_as_far_as_it_says(progress: dict[str, Any]) -> None:
    status = {**RUNNING, "progress": progress}
    assert f"Running     {progress['summary']}  Training." in line(job(status))
    assert "90" not in drawn(status)


def test_the_panel_tells_what_an_engineer_asks() -> None:
    text = drawn(RUNNING)
    for fact in (
        "quickstart in team: Running",
        "Training.",
        "step 90 of 180, 50 %",
        "41s left",
        "5,120 tokens/s",
        "loss 4.5000",
        "2 of 2 pods ready",
        "checkpoint at step 45",
        "validation at step 45: loss 5.25",
        "1 restart(s)",
        "WorkerLost  quickstart-train-1-1  at step 63  18 steps lost  training again after 14 s",
    ):
        assert fact in text


def test_the_panel_of_a_job_that_nobody_has_looked_at_yet_is_pending() -> None:
    assert "Pending" in drawn({})


def test_a_finished_job_has_no_time_left_and_names_its_model() -> None:
    text = drawn(SUCCEEDED)
    assert "left" not in text
    assert "model s3://b/run/model/a1/" in text


def test_markup_in_a_message_is_shown_as_it_is() -> None:
    assert "[/nonsense] [red]" in drawn({**RUNNING, "message": "[/nonsense] [red]"})


def test_a_line_tells_the_same_in_short() -> None:
    assert line(job(RUNNING)) == "Running     step 90/180  loss 4.500  5,120 tokens/s  41s left  Training."
    images = {"step": 90, "steps": 180, "metrics": {"samplesPerSecond": 1234.5}}
    assert line(job({**RUNNING, "progress": images})) == "Running     step 90/180  1,234 samples/s  Training."
    assert line(job({})) == "Pending"
    assert line(job({"phase": "Failed", "message": "Internal: boom.\n  File x.py"})) == "Failed      Internal: boom."


@pytest.mark.parametrize("terminal", [True, False])
def test_a_job_is_shown_until_it_has_finished(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=terminal, _environ={"TERM": "xterm"})
    timeline = Timeline()
    last = show(iter([job({}), job(RUNNING), job(RUNNING), job(SUCCEEDED)]), console, timeline)
    assert last is not None
    assert last.status.phase == "Succeeded"
    assert list(timeline.seconds) == ["Pending", "Running", "Succeeded"]
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("✓ Running" in output) == terminal


def test_without_a_terminal_there_is_one_line_per_change() -> None:
    console = Console(file=io.StringIO(), width=40)
    show(iter([job({}), job(RUNNING), job(RUNNING), job(RUNNING), job(SUCCEEDED)]), console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert [text.split()[-1] for text in output.splitlines()] == ["Pending", "Training.", "Done."]


def test_an_interrupted_view_ends_what_it_watches() -> None:
    ended = []

    def jobs() -> Iterator[Job]:
        try:
            yield job(RUNNING)
            raise KeyboardInterrupt
        finally:
            ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        show(jobs(), Console(file=io.StringIO()))
    assert ended
