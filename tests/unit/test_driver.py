"""The driver: attempts and their bounds, with Ray's part played; stages that need no Ray as real processes."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support import runs
from support.runs import RUN_PATIENCE
from trainingjob_trainer import driver, ray_train, reporting
from trainingjob_trainer.agent.pod import Pod
from trainingjob_trainer.agent.progress import Progress
from trainingjob_trainer.agent.server import Server
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.commits import Commit, publish
from trainingjob_trainer.config import JobConfig, Storage
from trainingjob_trainer.errors import Drained, Fenced, Hang, TrainerError, UserError, WorkerLost
from trainingjob_trainer.ray_pods import PATIENCE, Gang, Node
from trainingjob_trainer.records import Evaluation, Incident, RunResult, load_result
from trainingjob_trainer.reporting import Reporter
from trainingjob_trainer.standstill import Stand
from trainingjob_trainer.storage import Store, open_store

Play = Callable[[Attempt], dict[str, Any]]
Train = Callable[..., RunResult]


class Head:
    """The agent's HTTP, which takes reports."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                head.reports.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"progress": {"step": 117}}')

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/report"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class PlayedCluster:
    """The pods that are there for each attempt in turn, the last ones from then on; and what the driver asked for."""

    def __init__(self, *there: Sequence[int]) -> None:
        self._there = list(there)
        self.asked: list[Gang] = []
        self.checks = True

    def wait_for(self, gang: Gang, pod: Pod, say: Callable[[str], None], check: Callable[[], None]) -> list[Node]:
        self.asked.append(gang)
        if self.checks:
            check()
        indexes = self._there.pop(0) if len(self._there) > 1 else self._there[0]
        return [Node(f"node-{index}", index, 1, "ready", slots=1, free=1, gpus=0) for index in indexes]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "ANSWER", runs.PATIENCE)
    monkeypatch.setattr(reporting, "LAST", runs.PATIENCE)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    head = Head()
    monkeypatch.setenv("TRAININGJOB_REPORT_URL", head.url)
    yield head
    head.close()


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    (tmp_path / "token").write_text("secret")
    config = {
        "name": "job",
        "namespace": "default",
        "ranksPerPod": 1,
        "maxRestarts": 2,
        "outputUri": str(tmp_path / "run"),
        "data": {"train": {"uri": str(tmp_path / "raw.jsonl")}},
        "model": {"preset": "gpt-nano"},
        "training": {"steps": 300},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    pod = Pod.of(environment(tmp_path))
    pod.ranks.mkdir(parents=True)
    return pod


def environment(directory: Path) -> dict[str, str]:
    return {
        "TRAININGJOB_CONFIG": str(directory / "config.json"),
        "TRAININGJOB_JOB_UID": "job-uid",
        "TRAININGJOB_ROLE": "train",
        "TRAININGJOB_INDEX": "0",
        "TRAININGJOB_INCARNATION": "1",
        "TRAININGJOB_REPLICAS": "1",
        "TRAININGJOB_HEAD": "localhost",
        "TRAININGJOB_TERMINATION_LOG": str(directory / "termination-log"),
        "POD_NAME": "job-train-0-1",
        "POD_UID": "pod-uid",
        "POD_IP": "127.0.0.9",
        "RAY_AUTH_TOKEN_PATH": str(directory / "token"),
        "TMPDIR": str(directory),
    }


@pytest.fixture
def store(pod: Pod) -> Store:
    return open_store(pod.config().output_uri, Storage())


def result(config: JobConfig, attempt: int = 1) -> RunResult:
    evaluation = Evaluation(split="test", step=300, metrics={"loss": 3.3})
    return RunResult(
        plan_hash=config.plan_hash(),
        attempt=attempt,
        step=300,
        model_uri="/run/model",
        report_uri="/run/reports",
        evaluation=evaluation,
    )


@pytest.fixture
def train(pod: Pod, store: Store, head: Head, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train with a played `fit`."""

    def train(play: Play, cluster: PlayedCluster | None = None, **config: Any) -> RunResult:
        monkeypatch.setattr(driver, "fit", lambda pod, config, attempt, nodes, url: play(attempt))
        monkeypatch.setattr(driver, "wait_for", (cluster or PlayedCluster([0])).wait_for)
        with Reporter(head.url, pod.token) as reporter:
            return driver.Training(pod, pod.config().model_copy(update=config), reporter, store).run()

    return train


def commit(attempt: Attempt, step: int) -> None:
    publish(Commit(step=step, attempt=attempt.number, world_size=1, identity_hash="id", objects=[]), attempt)


def incidents(store: Store) -> list[Incident]:
    return [Incident.model_validate_json(store.get(found.key)) for found in store.list("incidents/")]


def test_a_lost_worker_is_written_down_and_tried_again(train: Any, store: Store, pod: Pod, head: Head) -> None:
    def play(attempt: Attempt) -> dict[str, Any]:
        if attempt.number == 1:
            raise WorkerLost("Rank 1 was lost.", rank=1)
        return {"result": result(pod.config(), attempt.number).wire()}

    assert train(play).attempt == 2
    (incident,) = incidents(store)
    assert (incident.attempt, incident.error_class, incident.rank, incident.step) == (1, "WorkerLost", 1, 117)
    assert any(report.get("incidents") for report in head.reports)


def test_failures_without_progress_are_bounded(train: Any, store: Store) -> None:
    def play(attempt: Attempt) -> dict[str, Any]:
        raise WorkerLost(f"Lost in attempt {attempt.number}.")

    with pytest.raises(WorkerLost, match="attempt 3"):  # maxRestarts is 2
        train(play)
    assert len(incidents(store)) == 3


def test_progress_forgives_earlier_failures(train: Any, store: Store, pod: Pod) -> None:
    def play(attempt: Attempt) -> dict[str, Any]:
        if attempt.number == 9:
            return {"result": result(pod.config(), attempt.number).wire()}
        commit(attempt, 10 * attempt.number)
        raise WorkerLost("Lost again.")

    assert train(play).attempt == 9
    resumed = [json.loads(store.get(f"attempts/{n}.json"))["resumesFromStep"] for n in range(1, 10)]
    assert resumed == [0, 10, 20, 30, 40, 50, 60, 70, 80]


@pytest.mark.parametrize(("failure", "written"), [(UserError("lr"), 1), (Fenced("newer"), 0)])
def test_what_a_retry_cannot_cure_is_not_tried_again(
    train: Any, store: Store, failure: TrainerError, written: int
) -> None:
    def play(attempt: Attempt) -> dict[str, Any]:
        raise failure

    with pytest.raises(type(failure)):
        train(play)
    assert [found.key for found in store.list("attempts/")] == ["attempts/1.json"]
    assert len(incidents(store)) == written


@pytest.mark.parametrize("waits", [True, False])
def test_a_driver_that_lost_its_pods_to_its_successor_ends(train: Any, store: Store, waits: bool) -> None:
    """Its node was cut off: the workers have gone over to the new head, whose attempt it must not fence."""
    cluster = PlayedCluster([0])
    cluster.checks = waits

    def play(attempt: Attempt) -> dict[str, Any]:
        assert Attempt.take(store, 20).number == attempt.number + 1
        raise WorkerLost("Rank 1 was lost.", rank=1)

    with pytest.raises(Fenced, match="Attempt 2 of this run has started"):
        train(play, cluster)
    assert [found.key for found in store.list("attempts/")] == ["attempts/1.json", "attempts/2.json"]


def test_a_drain_of_this_pod_ends_the_driver(train: Any, pod: Pod, store: Store) -> None:
    pod.drain_flag.touch()
    with pytest.raises(Drained, match="step 120 is committed") as drained:
        train(lambda attempt: {"drained": 120})
    assert drained.value.step == 120
    assert incidents(store) == []


def test_a_drain_of_another_pod_leads_to_the_next_attempt(train: Any, pod: Pod, store: Store) -> None:
    def play(attempt: Attempt) -> dict[str, Any]:
        return {"drained": 120} if attempt.number == 1 else {"result": result(pod.config(), 2).wire()}

    assert train(play).attempt == 2
    assert incidents(store) == []


def test_an_elastic_run_goes_on_with_the_pods_that_are_there(train: Any, pod: Pod, store: Store, head: Head) -> None:
    """Three pods; one is lost, then its successor joins, then one is drained. No attempt waits longer than it must."""
    cluster = PlayedCluster([0, 1, 2], [0, 2], [0, 1, 2], [0, 2])

    def play(attempt: Attempt) -> dict[str, Any]:
        commit(attempt, 10 * attempt.number)
        if attempt.number == 1:
            raise WorkerLost("Rank 1 was lost.", rank=1)
        if attempt.number == 2:
            pod.resize_flag.touch()
        return {"drained": 10 * attempt.number} if attempt.number < 4 else {"result": result(pod.config(), 4).wire()}

    assert train(play, cluster, min_replicas=2).attempt == 4
    all_three, two = frozenset({0, 1, 2}), frozenset({0, 2})
    waits = [(gang.wanted, gang.fewest, gang.patience) for gang in cluster.asked[1:]]
    assert waits == [(all_three, 2, PATIENCE), (two, 2, 0.0), (all_three, 2, 0.0)]
    ends = [(i.attempt, i.error_class, i.step) for i in sorted(incidents(store), key=lambda i: i.attempt)]
    assert ends == [(1, "WorkerLost", 117), (2, "Resized", 20), (3, "Drained", 30)]
    assert [report["pods"] for report in head.reports if "pods" in report][-1] == [0, 2]


def test_changes_of_size_are_no_failures(train: Any, pod: Pod) -> None:
    """More of them than failures are allowed, and none commits anything."""

    def play(attempt: Attempt) -> dict[str, Any]:
        return {"drained": 0} if attempt.number < 9 else {"result": result(pod.config(), 9).wire()}

    assert train(play, PlayedCluster([0, 1]), min_replicas=1).attempt == 9


def test_a_gang_of_fixed_size_is_asked_for_whole_after_a_drain_too(train: Any, pod: Pod) -> None:
    cluster = PlayedCluster([0])

    def play(attempt: Attempt) -> dict[str, Any]:
        return {"drained": 120} if attempt.number == 1 else {"result": result(pod.config(), 2).wire()}

    train(play, cluster)
    assert cluster.asked == [Gang(frozenset({0}), 1)] * 2


def test_a_result_is_replaced_only_by_one_of_another_plan(pod: Pod, store: Store) -> None:
    first = result(pod.config(), 1).save(store)
    assert result(pod.config(), 2).save(store) == first
    changed = result(pod.config(), 3).model_copy(update={"plan_hash": "longer"})
    assert changed.save(store) == changed == load_result(store)


def run_pod(directory: Path, stage: str) -> tuple[int, dict[str, Any]]:
    """Run a real pod's command; its exit code and termination message."""
    command = [sys.executable, "-m", "trainingjob_trainer.agent", stage]
    ended = subprocess.run(command, env={**os.environ, **environment(directory)}, timeout=RUN_PATIENCE, check=False)
    message: dict[str, Any] = json.loads((directory / "termination-log").read_bytes())
    return ended.returncode, message


def test_a_successor_answers_with_the_stored_result_without_ray(pod: Pod, store: Store, tmp_path: Path) -> None:
    result(pod.config()).save(store)
    code, message = run_pod(tmp_path, "train")
    assert (code, message["outcome"], message["result"]["modelUri"]) == (0, "Finished", "/run/model")
    assert not (tmp_path / "ray").exists()


def test_a_check_finds_that_data_is_missing(pod: Pod, tmp_path: Path) -> None:
    code, message = run_pod(tmp_path, "check")
    assert (code, message["outcome"]) in ((10, None), (11, None))
    assert "raw.jsonl" in message["cause"]
    assert message["nextStep"]


def test_a_check_says_that_data_must_be_prepared(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text('{"text": "once upon a time"}\n')
    code, message = run_pod(tmp_path, "check")
    assert (code, message["outcome"]) == (0, "PrepareData")


async def test_where_ranks_stand_still_is_known_to_the_driver_when_they_end(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(code: int) -> NoReturn:
        raise SystemExit(code)

    def slowly(reporter: Reporter, fields: dict[str, Any]) -> None:
        threading.Event().wait(0.2)
        send(reporter, fields)

    send = Reporter._send
    monkeypatch.setattr(Reporter, "_send", slowly)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(ray_train, "unheard", lambda _, pods: [2] if 2 in pods else [])
    server = Server(Progress("job-uid", "pod-uid", "Train", 300), pod.token)
    await server.start("127.0.0.1", 0)
    try:
        await asyncio.to_thread(stand_still, f"http://127.0.0.1:{server._runner.addresses[0][1]}/report", pod)
    finally:
        await server.stop()


def stand_still(url: str, pod: Pod) -> None:
    """Three ranks on three pods, of which one is not heard, and one goes on after all."""
    stand = Stand(step=7, seconds=300, where="all_reduce", waits=True)
    reporters = [Reporter(url, pod.token) for _ in range(3)]
    ranks = [ray_train.RankHooks(reporters[rank], 3, rank, pod, [0, 1, 2][: rank + 2]) for rank in range(3)]
    assert ray_train._stands(url, 3) == {}
    for rank in ranks:
        rank.stands(stand)
    for rank in ranks[:0:-1]:
        with pytest.raises(SystemExit, match="21"):
            rank.hung(Hang("It stands.", step=7))
        assert rank._rank in ray_train._stands(url, 3)
    ranks[0].stands(None)
    reporters[0].close()
    assert ray_train._stands(url, 3) == {rank: stand.model_copy(update={"unheard": [2]}) for rank in (1, 2)}
    assert ray_train._stands(url, 4) == {}, "of an older attempt"
    with Reporter(url, pod.token) as driver:
        driver.report({"attempt": 4})
    assert ray_train._stands(url, 4) == {}, "of an older attempt"
    assert ray_train._stands("http://127.0.0.1:1/report", 4) == {}
