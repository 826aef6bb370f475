"""What a job that is given up says: class, cause, where, what to do, and the failing rank's last words."""

from __future__ import annotations

from typing import Any

import pytest
from support.play import Play, policy

TRACEBACK = (
    '  File "train.py", line 7, in step',
    "    loss.backward()",
    '  File "model.py", line 3, in forward',
    "    raise RuntimeError",
)
BOOM = "\n".join(["RuntimeError: expected 3 channels, got 4", *TRACEBACK])


def test_a_rank_that_fails_again_and_again_leaves_its_traceback(training: Play) -> None:
    said: list[dict[str, Any]] = []
    for attempt in range(1, 5):
        about = {"class": "Internal", "cause": BOOM, "rank": 1, "step": 21, "time": training.now}
        said.append({"attempt": attempt, **about})
        training.train(12, attempt=attempt + 1, committed=10, resumed=10, incidents=said)
        training.step(20)
    sentence, *lines = training.status.message.splitlines()
    assert sentence == (
        "Internal: RuntimeError: expected 3 channels, got 4 (rank 1 in pod gpt-train-1-1, step 21). "
        "The job is given up after 4 failures without a new checkpoint (maxRestarts 3)."
    )
    assert tuple(lines) == TRACEBACK
    assert {i.cause.partition(";")[0] for i in training.status.history} == {"RuntimeError: expected 3 channels, got 4"}
    assert all("\n" not in event.message for event in training.events[:-1])


def test_a_head_that_gives_up_leaves_the_traceback_of_its_rank(training: Play) -> None:
    training.spec = policy(maxRestarts=0)
    words = {"class": "Internal", "cause": BOOM, "nextStep": "Look at the pod's log.", "rank": 1, "step": 21}
    training.end("gpt-train-0-1", 20, words)
    training.settle()
    sentence, *lines = training.status.message.splitlines()
    assert sentence == (
        "Internal: RuntimeError: expected 3 channels, got 4 (rank 1 in pod gpt-train-1-1, step 21). The job is given "
        "up after 1 failure without a new checkpoint (maxRestarts 0). Look at the pod's log."
    )
    assert tuple(lines) == TRACEBACK
    assert [i.cause for i in training.status.history] == ["RuntimeError: expected 3 channels, got 4"]


def test_a_pod_that_crashed_without_a_word_leaves_the_end_of_its_log(training: Play) -> None:
    training.spec = policy(maxRestarts=0)
    log = "\n".join(f"line {number}" for number in range(20))
    training.end("gpt-train-1-1", 1, termination_text=log)
    training.settle()
    sentence, *lines = training.status.message.splitlines()
    assert sentence.startswith(
        "Crashed: pod gpt-train-1-1 ended with exit code 1: line 19 (step 20). The job is given up"
    )
    assert lines == [f"line {number}" for number in range(13, 20)]


@pytest.mark.parametrize("code", [137, 143])
def test_what_a_killed_pod_logged_last_is_not_why_it_died(training: Play, code: int) -> None:
    training.end("gpt-train-1-1", code, termination_text="step 20 loss 3.1")
    training.settle()
    assert training.status.history[0].cause == f"pod gpt-train-1-1 ended with exit code {code}"


def test_a_long_story_keeps_its_end(training: Play) -> None:
    training.spec = policy(maxRestarts=0)
    story = "\n".join(["Error: long", *(f"{number} " + "x" * 250 for number in range(14))])
    training.end("gpt-train-0-1", 20, {"class": "Internal", "cause": story, "nextStep": "y" * 2000})
    training.settle()
    message = training.status.message
    assert len(message) <= 4096
    assert message.startswith("Internal: Error: long (step 20). The job is given up")
    assert message.splitlines()[-1].startswith("13 ")
    assert not message.splitlines()[1].startswith("0 ")


# --- out of memory


def test_a_pod_over_its_limit_is_named_with_its_rank_and_what_to_lower(training: Play) -> None:
    training.end("gpt-train-1-1", 137, reason="OOMKilled", termination_text="step 20 loss 3.1")
    training.settle()
    assert training.status.message == (
        "OutOfMemory: pod gpt-train-1-1 (rank 1) used more than its memory limit of 4Gi (step 20). "
        "Lower spec.training.microBatchSize or raise spec.workers.resources.memory, in a new TrainingJob with the same "
        "outputUri, which goes on from the last checkpoint."
    )


def test_the_pod_that_prepares_is_told_its_own_limit(play: Play) -> None:
    play.settle()
    play.run_pods()
    play.step(1)
    play.end("gpt-prepare-0-1", 137, reason="OOMKilled")
    play.settle()
    assert play.status.message == (
        "OutOfMemory: pod gpt-prepare-0-1 used more than its memory limit of 4Gi. "
        "Raise spec.data.prepare.memory in a new TrainingJob with the same outputUri."
    )


def test_a_device_that_is_full_is_found_by_rank_pod_and_limit(training: Play) -> None:
    words = {"class": "OutOfMemory", "cause": "CUDA out of memory", "rank": 1, "nextStep": "lower the micro batch"}
    training.end("gpt-train-0-1", 12, words)
    training.settle()
    assert training.status.message == (
        "OutOfMemory: CUDA out of memory (rank 1 in pod gpt-train-1-1 with a memory limit of 4Gi, step 20). "
        "Lower the micro batch."
    )
