"""The agent as a process: what it serves, how it ends, what it leaves. Its program and its head are played here."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from trainingjob_trainer.outcome import Outcome

TOKEN = "t" * 32
RUN_AGENT = """
import asyncio, logging, os, sys
from trainingjob_trainer.agent.agent import Agent
from trainingjob_trainer.agent.pod import Pod
logging.basicConfig(level=logging.INFO)
stage, port, *program = sys.argv[1:]
sys.exit(asyncio.run(Agent(Pod.of(os.environ), stage, program, int(port)).run()))
"""
CONFIG = {
    "name": "job",
    "namespace": "default",
    "replicas": 2,
    "ranksPerPod": 1,
    "maxRestarts": 3,
    "outputUri": "/out",
    "data": {"train": {"uri": "/raw"}},
    "model": {"preset": "gpt-nano"},
    "training": {"steps": 300},
}
FINISHED = Outcome(outcome="Finished", step=300, result={"planHash": "p"}).model_dump_json(by_alias=True)


class Pod:
    """A pod of one process: the agent, with a program that is Python source."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.termination = directory / "termination-log"
        self.work = directory / "trainingjob"
        self.ranks = self.work / "ranks"
        (directory / "config.json").write_text(json.dumps(CONFIG))
        (directory / "token").write_text(TOKEN)

    def start(self, stage: str, program: str = "", index: int = 0, head: str = "127.0.0.2") -> subprocess.Popen[bytes]:
        env = {
            **os.environ,
            "TRAININGJOB_CONFIG": str(self.directory / "config.json"),
            "TRAININGJOB_JOB_UID": "job-uid",
            "TRAININGJOB_ROLE": "train",
            "TRAININGJOB_INDEX": str(index),
            "TRAININGJOB_REPLICAS": "2",
            "TRAININGJOB_HEAD": head,
            "TRAININGJOB_TERMINATION_LOG": str(self.termination),
            "POD_NAME": "job-train-0-1",
            "POD_UID": "pod-uid",
            "POD_IP": "127.0.0.1",
            "RAY_AUTH_TOKEN_PATH": str(self.directory / "token"),
            "TMPDIR": str(self.directory),
            "OUTCOME": str(self.work / "outcome.json"),
            "FLAG": str(self.work / "drain"),
        }
        command = [sys.executable, "-c", RUN_AGENT, stage, str(self.port), sys.executable, "-c", program]
        self.process = subprocess.Popen(command, env=env)
        wait_for(self.healthy)
        return self.process

    def healthy(self) -> bool:
        try:
            return self.get("healthz") == "ok"
        except OSError:
            return False

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=5) as response:
            text: str = response.read().decode()
        return text

    def progress(self) -> dict[str, Any]:
        progress: dict[str, Any] = json.loads(self.get("progress"))
        return progress

    def report(self, body: bytes, token: str = TOKEN) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/report", body, {"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                status: int = response.status
        except urllib.error.HTTPError as error:
            return error.code
        return status

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.termination.read_bytes())
        return message


def wait_for(holds: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    pod = Pod(tmp_path, port)
    yield pod
    if pod.process.poll() is None:
        pod.process.kill()
    pod.process.wait()


def ends_with(outcome: str) -> str:
    return f"import os, pathlib; pathlib.Path(os.environ['OUTCOME']).write_text({outcome!r})"


WAITS_FOR_DRAIN = """
import os, pathlib, time
while not pathlib.Path(os.environ["FLAG"]).exists():
    time.sleep(0.02)
pathlib.Path(os.environ["OUTCOME"]).write_text('{"class": "Drained", "cause": "step 120 is committed", "step": 120}')
"""


def test_the_programs_outcome_is_the_pods(pod: Pod) -> None:
    assert pod.start("Train", "import time; time.sleep(1)\n" + ends_with(FINISHED)).wait(60) == 0
    assert pod.message()["outcome"] == "Finished"
    assert pod.message()["result"] == {"planHash": "p"}


def test_a_failure_sets_class_and_exit_code(pod: Pod) -> None:
    outcome = '{"class": "UserError", "cause": "The bucket b does not exist.", "nextStep": "Create it."}'
    assert pod.start("Check", "import time; time.sleep(1)\n" + ends_with(outcome)).wait(60) == 10
    assert pod.message()["class"] == "UserError"
    assert pod.message()["nextStep"] == "Create it."


def test_a_program_that_is_killed_is_a_lost_worker(pod: Pod) -> None:
    assert pod.start("Train", "import os, time; time.sleep(1); os.kill(os.getpid(), 9)").wait(60) == 20
    assert pod.message()["class"] == "WorkerLost"
    assert "memory" in pod.message()["nextStep"]


def test_a_program_that_leaves_no_outcome_is_a_defect(pod: Pod) -> None:
    assert pod.start("Train", "import time; time.sleep(1); raise SystemExit(3)").wait(60) == 20
    assert (pod.message()["class"], pod.message()["cause"]) == (
        "Internal",
        "The program ended with exit code 3 and left no outcome.",
    )


def test_a_drain_waits_for_the_driver(pod: Pod) -> None:
    process = pod.start("Train", WAITS_FOR_DRAIN)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 30
    assert pod.message()["class"] == "Drained"
    assert pod.message()["step"] == 120


def test_a_check_is_given_up_at_once(pod: Pod) -> None:
    process = pod.start("Check", "import time; time.sleep(3600)")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 30
    assert pod.message()["class"] == "Drained"


def test_nothing_that_the_program_left_survives_the_pod(pod: Pod) -> None:
    program = (
        "import os, pathlib, subprocess, time\n"
        "orphan = subprocess.Popen(['sleep', '3600'], start_new_session=True)\n"
        "pathlib.Path(os.environ['OUTCOME']).with_name('orphan').write_text(str(orphan.pid))\n"
        "time.sleep(1)\n" + ends_with(FINISHED)
    )
    assert pod.start("Train", program).wait(60) == 0
    assert not alive(int((pod.work / "orphan").read_text()))


def test_progress_and_metrics_show_what_was_reported(pod: Pod) -> None:
    pod.start("Train", WAITS_FOR_DRAIN)
    assert pod.progress()["state"] == "Starting"
    body = {"attempt": 2, "state": "Training", "progress": {"step": 7, "loss": 3.5}, "worldSize": 2}
    assert pod.report(json.dumps(body).encode()) == 204
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
def test_a_report_that_is_not_right_is_refused(pod: Pod, body: bytes, token: str, status: int) -> None:
    pod.start("Train", WAITS_FOR_DRAIN)
    assert pod.report(body, token) == status
    assert pod.progress()["attempt"] is None


def test_a_follower_without_ranks_ends_at_once(pod: Pod) -> None:
    process = pod.start("Train", index=1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 30


def test_a_follower_waits_for_its_ranks(pod: Pod) -> None:
    process = pod.start("Train", index=1)
    with subprocess.Popen(["sleep", "3600"]) as rank:
        (pod.ranks / str(rank.pid)).touch()
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: pod.progress()["state"] == "Draining")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        rank.kill()
    assert process.wait(10) == 30


async def test_a_follower_ends_when_its_head_says_so(pod: Pod) -> None:
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
    assert await asyncio.to_thread(process.wait, 60) == 0
    assert asked == ["", "job-train-0-1"]
    await runner.cleanup()
