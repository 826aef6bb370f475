"""The agent of a custom command as a process: what the command finds, how its end is the pod's, what it may report."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from support.agent_pod import AgentPod, alive
from support.runs import PATIENCE, wait_until

WAIT = "import time; time.sleep(3600)"
STATUS = {
    "progressPercentage": 40,
    "metrics": [{"name": "loss", "value": "2.5"}],
    "lastUpdatedTime": "2030-01-01T00:00:00Z",
}


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[AgentPod]:
    pod = AgentPod.at(tmp_path)
    yield pod
    pod.end()


def run(pod: AgentPod, program: str, **env: str) -> subprocess.Popen[bytes]:
    return pod.start_custom([sys.executable, "-c", program], TRAININGJOB_REPLICAS="1", **env)


def running(pod: AgentPod, program: str, **env: str) -> subprocess.Popen[bytes]:
    """As `run`, when the program has said that it is ready."""
    ready = pod.directory / "ready"
    process = run(pod, f"import pathlib; pathlib.Path({str(ready)!r}).touch()\n{program}", **env)
    wait_until("the command runs", ready.exists, every=0.02)
    return process


def test_the_command_finds_what_torch_and_torchrun_ask_for(pod: AgentPod) -> None:
    seen = pod.directory / "seen"
    program = f"import json, os, pathlib; pathlib.Path({str(seen)!r}).write_text(json.dumps(dict(os.environ)))"
    process = run(pod, program, PET_NPROC_PER_NODE="auto", HTTP_PROXY="http://proxy:3128", NO_PROXY="s3.internal")
    assert process.wait(PATIENCE) == 0
    env: dict[str, str] = json.loads(seen.read_text())
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("127.0.0.1", "29503")
    assert [env[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK")] == ["1", "0", "1", "0"]
    assert [env[f"PET_{name}"] for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")] == [
        "1",
        "0",
        "127.0.0.1",
        "29503",
    ]
    assert env["GLOO_SOCKET_IFNAME"] == env["NCCL_SOCKET_IFNAME"] == "lo"
    assert env["PET_NPROC_PER_NODE"] == "auto", "the pod's own environment wins"
    assert env["no_proxy"] == env["NO_PROXY"] == "s3.internal,127.0.0.1", "whom it reports to is no way outside"
    assert env["TRAININGJOB_OUTPUT_URI"] == "/out"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("raise SystemExit(10)", 10),
        ("raise SystemExit(30)", 1),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ],
)
def test_a_failed_command_ends_the_pod_with_its_code_and_its_own_last_words(pod: AgentPod, end: str, code: int) -> None:
    assert run(pod, end).wait(PATIENCE) == code
    assert not pod.termination.exists(), "so that Kubernetes takes the end of the log"


def test_a_command_that_cannot_be_started_is_the_users_error(pod: AgentPod) -> None:
    assert pod.start_custom(["no-such-program"], TRAININGJOB_REPLICAS="1").wait(PATIENCE) == 10
    assert pod.message()["class"] == "UserError"
    assert "no-such-program" in pod.message()["cause"]


def test_a_finished_command_leaves_its_last_progress(pod: AgentPod) -> None:
    stop = pod.directory / "stop"
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(stop)!r}).exists(): time.sleep(0.02)"
    process = running(pod, wait)
    metrics = [{"name": name, "value": str(value)} for name, value in {"current_step": 7, "total_steps": 9}.items()]
    assert post(pod, {**STATUS, "metrics": metrics}) == 200
    stop.touch()
    assert process.wait(PATIENCE) == 0
    said = pod.message()
    assert (said["outcome"], said["step"], said["attempt"]) == ("Finished", 7, 3)
    assert said["result"]["progress"]["steps"] == 9


def test_being_asked_to_stop_is_the_commands_business(pod: AgentPod) -> None:
    saved = pod.directory / "saved"
    program = (
        "import signal, sys\n"
        "def save(*_):\n"
        f"    pathlib.Path({str(saved)!r}).touch()\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"pathlib.Path({str(pod.directory / 'handling')!r}).touch()\n"
        "signal.pause()\n"
    )
    process = running(pod, program)
    wait_until("its handler", (pod.directory / "handling").exists, every=0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 30, "its exit code 0 does not mean that it has finished"
    assert saved.exists()
    assert pod.message()["class"] == "Drained"


def test_a_pod_without_its_command_stops_at_once(pod: AgentPod) -> None:
    process = pod.start_custom([sys.executable, "-c", WAIT], TRAININGJOB_INDEX="1", TRAININGJOB_HEAD="127.0.0.2")
    assert pod.progress()["message"] == "Waiting for the head 127.0.0.2."
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 30


def test_a_pod_whose_volume_takes_no_file_any_more_stops_all_the_same(pod: AgentPod) -> None:
    process = pod.start_custom([sys.executable, "-c", WAIT], TRAININGJOB_INDEX="1", TRAININGJOB_HEAD="127.0.0.2")
    assert pod.progress()["message"] == "Waiting for the head 127.0.0.2."
    (pod.work / "drain").symlink_to(pod.directory / "nowhere" / "drain")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 30


async def test_a_follower_starts_with_the_head_of_its_own_incarnation(pod: AgentPod) -> None:
    """An older head may still stand under the name: the command must not find it there."""
    attempt, asked = 2, 0

    async def progress(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        head = {"jobUid": "job-uid", "podUid": "head", "stage": "Train", "state": "Training", "attempt": attempt}
        return web.json_response(head)

    app = web.Application()
    app.router.add_get("/progress", progress)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.2", pod.port).start()
    follower = {"TRAININGJOB_INDEX": "1", "TRAININGJOB_HEAD": "127.0.0.2"}
    process = await asyncio.to_thread(pod.start_custom, [sys.executable, "-c", "pass"], **follower)
    await asyncio.to_thread(wait_until, "two questions", lambda: asked >= 2)
    assert (await asyncio.to_thread(pod.progress))["state"] == "Starting"
    attempt = 3
    assert await asyncio.to_thread(process.wait, PATIENCE) == 0
    await runner.cleanup()


def test_nothing_that_the_command_left_survives_the_pod(pod: AgentPod) -> None:
    pid = pod.directory / "orphan"
    program = (
        "import pathlib, subprocess\n"
        "orphan = subprocess.Popen(['sleep', '3600'], start_new_session=True)\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(orphan.pid))\n"
    )
    assert run(pod, program).wait(PATIENCE) == 0
    assert not alive(int(pid.read_text()))


def post(pod: AgentPod, status: Any, token: str | None = None) -> int:
    token = token or (pod.work / "kubeflow-token").read_text()
    return pod.post("progress", json.dumps({"trainerStatus": status}).encode(), token)


def test_only_who_has_the_pods_token_may_report(pod: AgentPod) -> None:
    running(pod, WAIT)
    token = pod.work / "kubeflow-token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert post(pod, STATUS, "wrong") == 401
    assert pod.progress()["progress"] is None
    assert post(pod, STATUS) == 200
    seen = pod.progress()
    assert (seen["state"], seen["attempt"]) == ("Training", 3)
    assert (seen["progress"]["percent"], seen["progress"]["loss"]) == (40, 2.5)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"trainerStatus": 3}', b'{"trainerStatus": {"progressPercentage": 101}}']
)
def test_what_is_no_status_is_refused(pod: AgentPod, body: bytes) -> None:
    running(pod, WAIT)
    assert pod.post("progress", body, (pod.work / "kubeflow-token").read_text()) == 400
    assert pod.progress()["progress"] is None
