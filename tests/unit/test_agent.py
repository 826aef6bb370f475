"""The agent as a process: what it serves, how it ends, what it leaves. Its program and its head are played here."""

import asyncio
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from support.agent_pod import TOKEN, AgentPod, alive
from support.runs import PATIENCE, wait_until
from trainingjob_trainer.outcome import Outcome

FINISHED = Outcome(outcome="Finished", step=300, result={"planHash": "p"}).model_dump_json(by_alias=True)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[AgentPod]:
    pod = AgentPod.at(tmp_path)
    yield pod
    pod.end()


def ends_with(outcome: str) -> str:
    return f"import os, pathlib; pathlib.Path(os.environ['OUTCOME']).write_text({outcome!r})"


WAITS_FOR_DRAIN = """
import os, pathlib, time
while not pathlib.Path(os.environ["FLAG"]).exists():
    time.sleep(0.02)
pathlib.Path(os.environ["OUTCOME"]).write_text('{"class": "Drained", "cause": "step 120 is committed", "step": 120}')
"""


def test_the_programs_outcome_is_the_pods(pod: AgentPod) -> None:
    assert pod.start("Train", "import time; time.sleep(1)\n" + ends_with(FINISHED)).wait(PATIENCE) == 0
    assert pod.message()["outcome"] == "Finished"
    assert pod.message()["result"] == {"planHash": "p"}


def test_a_failure_sets_class_and_exit_code(pod: AgentPod) -> None:
    outcome = '{"class": "UserError", "cause": "The bucket b does not exist.", "nextStep": "Create it."}'
    assert pod.start("Check", "import time; time.sleep(1)\n" + ends_with(outcome)).wait(PATIENCE) == 10
    assert pod.message()["class"] == "UserError"
    assert pod.message()["nextStep"] == "Create it."


def test_a_program_that_is_killed_is_a_lost_worker(pod: AgentPod) -> None:
    assert pod.start("Train", "import os, time; time.sleep(1); os.kill(os.getpid(), 9)").wait(PATIENCE) == 20
    assert pod.message()["class"] == "WorkerLost"
    assert "memory" in pod.message()["nextStep"]


def test_a_program_that_leaves_no_outcome_is_a_defect(pod: AgentPod) -> None:
    assert pod.start("Train", "import time; time.sleep(1); raise SystemExit(3)").wait(PATIENCE) == 20
    assert (pod.message()["class"], pod.message()["cause"]) == (
        "Internal",
        "The program ended with exit code 3 and left no outcome.",
    )


def test_a_drain_waits_for_the_driver(pod: AgentPod) -> None:
    process = pod.start("Train", WAITS_FOR_DRAIN)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 30
    assert pod.message()["class"] == "Drained"
    assert pod.message()["step"] == 120


def test_a_check_is_given_up_at_once(pod: AgentPod) -> None:
    process = pod.start("Check", "import time; time.sleep(3600)")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 30
    assert pod.message()["class"] == "Drained"


def test_nothing_that_the_program_left_survives_the_pod(pod: AgentPod) -> None:
    program = (
        "import os, pathlib, subprocess, time\n"
        "orphan = subprocess.Popen(['sleep', '3600'], start_new_session=True)\n"
        "pathlib.Path(os.environ['OUTCOME']).with_name('orphan').write_text(str(orphan.pid))\n"
        "time.sleep(1)\n" + ends_with(FINISHED)
    )
    assert pod.start("Train", program).wait(PATIENCE) == 0
    assert not alive(int((pod.work / "orphan").read_text()))


def test_progress_and_metrics_show_what_was_reported(pod: AgentPod) -> None:
    pod.start("Train", WAITS_FOR_DRAIN)
    assert pod.progress()["state"] == "Starting"
    body = {"attempt": 2, "state": "Training", "progress": {"step": 7, "loss": 3.5}, "worldSize": 2}
    assert pod.post("report", json.dumps(body).encode()) == 204
    seen = pod.progress()
    assert (seen["jobUid"], seen["podUid"], seen["stage"]) == ("job-uid", "pod-uid", "Train")
    assert (seen["attempt"], seen["state"], seen["progress"]["step"], seen["evaluation"]) == (2, "Training", 7, None)
    metrics = pod.get("metrics")
    assert "trainingjob_trainer_step 7.0" in metrics
    assert "trainingjob_trainer_steps 300.0" in metrics
    assert "trainingjob_trainer_tokens_per_second" not in metrics


@pytest.mark.parametrize(
    ("body", "token", "status"),
    [
        (b'{"attempt": 1}', "wrong", 401),
        (b'{"attempt": "many"}', TOKEN, 400),
        (b'{"unknown": 1}', TOKEN, 400),
        (b"x" * 100_000, TOKEN, 413),
    ],
)
def test_a_report_that_is_not_right_is_refused(pod: AgentPod, body: bytes, token: str, status: int) -> None:
    pod.start("Train", WAITS_FOR_DRAIN)
    assert pod.post("report", body, token) == status
    assert pod.progress()["attempt"] is None


def test_a_follower_without_ranks_ends_at_once(pod: AgentPod) -> None:
    process = pod.start("Train", index=1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 30


def test_a_follower_waits_for_its_ranks(pod: AgentPod) -> None:
    process = pod.start("Train", index=1)
    with subprocess.Popen(["sleep", "3600"]) as rank:
        (pod.ranks / str(rank.pid)).touch()
        process.send_signal(signal.SIGTERM)
        wait_until("it drains", lambda: pod.progress()["state"] == "Draining")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        rank.kill()
    assert process.wait(PATIENCE) == 30


def test_a_follower_whose_head_is_there_and_never_answers_is_lost(pod: AgentPod) -> None:
    """After a second here, five minutes in truth."""
    with socket.create_server(("127.0.0.2", pod.port)):
        assert pod.start("Train", index=1, answer=0.2).wait(PATIENCE) == 20
    assert pod.message()["class"] == "WorkerLost"
    assert pod.message()["cause"].startswith("The head 127.0.0.2 did not answer for ")
    assert "NetworkPolicy" in pod.message()["nextStep"]


@pytest.mark.parametrize("head", ["127.0.0.2", "train-0.gpt-tj.invalid"])
def test_a_follower_waits_without_end_for_a_head_that_is_not_there(pod: AgentPod, head: str) -> None:
    """As behind a quota, or while its image is pulled: its port is closed, or its name has no address."""
    process = pod.start("Train", index=1, head=head)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)


async def test_a_follower_ends_when_its_head_says_so(pod: AgentPod) -> None:
    asked: list[str] = []

    async def progress(request: web.Request) -> web.Response:
        asked.append(request.query.get("leaving", ""))
        return web.json_response({"jobUid": "job-uid", "podUid": "head", "stage": "Train", "state": "Done"})

    app = web.Application()
    app.router.add_get("/progress", progress)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.2", pod.port).start()
    process = await asyncio.to_thread(pod.start, "Train", index=1)
    assert await asyncio.to_thread(process.wait, PATIENCE) == 0
    assert asked == ["", "job-train-0-1"]
    await runner.cleanup()
