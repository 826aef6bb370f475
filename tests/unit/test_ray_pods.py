"""Which pods an attempt waits for, with Ray's list of nodes and the pods' agents played."""

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support import runs
from trainingjob_trainer import ray_node, ray_pods
from trainingjob_trainer.agent.pod import Pod
from trainingjob_trainer.errors import Drained, Hang, TrainerError, WorkerLost
from trainingjob_trainer.network import nobody_there
from trainingjob_trainer.ray_pods import JOIN_LIMIT, PATIENCE, Gang, Node, State, wait_for, watch_for_joiners
from trainingjob_trainer.reporting import ask

ALL = frozenset({0, 1, 2})
FIXED, ELASTIC, AT_ONCE = Gang(ALL, 3), Gang(ALL, 2), Gang(ALL, 2, patience=0.0)


def node(index: int, state: State = "ready", free: float = 1.0) -> Node:
    return Node(f"{index}-{state}", index, 1, state, slots=1.0, free=free, gpus=0.0)


def nodes(*states: State | None) -> list[Node]:
    return [node(index, state) for index, state in enumerate(states) if state is not None]


LATE = PATIENCE + 1


@pytest.mark.parametrize(
    ("gang", "there", "waited", "message"),
    [
        (FIXED, nodes("ready", "ready", "ready"), 0, None),
        (FIXED, nodes("ready", "ready"), 3600, "Waiting for 1 of 3 pods to join."),
        (FIXED, nodes("ready", "ready", "leaving"), 3600, "Waiting for 1 of 3 pods to join."),
        (FIXED, [*nodes("ready", "ready", "ready"), node(1, "silent")], 3600, "Waiting for lost pods to leave"),
        (FIXED, [*nodes("ready", "ready"), node(2, free=0)], 0, "Waiting for the last attempt's ranks to end."),
        (ELASTIC, nodes("ready", "ready", "ready"), 0, None),
        (ELASTIC, nodes("ready", "ready"), PATIENCE - 1, "Waiting for 1 of 3 pods to join."),
        (ELASTIC, nodes("ready", "ready"), LATE, None),
        (ELASTIC, nodes("ready", None, "ready"), LATE, None),
        (ELASTIC, nodes("ready"), LATE, "Waiting for 2 of 3 pods to join."),
        (ELASTIC, nodes("ready", "ready", "silent"), LATE, None),
        (ELASTIC, [*nodes("ready", "ready"), node(1, "leaving")], LATE, "Waiting for lost pods to leave"),
        (ELASTIC, [*nodes("ready", "ready", "ready"), node(3)], 0, None),
        (AT_ONCE, nodes("ready", "ready", "leaving"), 0, None),
        (AT_ONCE, nodes("ready", "ready"), 0, None),
        (AT_ONCE, nodes("ready", "ready", "silent"), 1, "Waiting for a pod to answer, or to leave"),
        (AT_ONCE, nodes("ready", "leaving", "leaving"), LATE, "Waiting for 2 of 3 pods to join."),
        (AT_ONCE, [node(0), node(1, free=0), node(2, "leaving", free=0)], 0, "Waiting for the last attempt's"),
    ],
)
def test_what_an_attempt_waits_for(gang: Gang, there: list[Node], waited: float, message: str | None) -> None:
    said = gang.waits_for(there, waited)
    assert said == message or (message is not None and said is not None and said.startswith(message))


def test_a_pod_that_has_a_successor_is_past_whatever_ray_and_its_agent_say(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray._private import state

    def seen(name: str, index: int, incarnation: int, alive: bool = True) -> dict[str, Any]:
        labels = {ray_node.INDEX_LABEL: str(index), ray_node.INCARNATION_LABEL: str(incarnation)}
        resources = {"rank": 1.0}
        return {"NodeID": name, "Alive": alive, "NodeManagerAddress": name, "Labels": labels, "Resources": resources}

    asked: list[str] = []
    monkeypatch.setattr(ray_pods, "_state", lambda address, _: asked.append(address) or "ready")
    monkeypatch.setattr(state, "available_resources_per_node", lambda: {"new": {"rank": 1.0}})
    there = [seen("gone", 1, 3, alive=False), seen("old", 1, 1), seen("other", 2, 1), seen("new", 1, 2)]
    monkeypatch.setattr(ray, "nodes", lambda: there)
    found = {node.id: (node.index, node.incarnation, node.free) for node in ray_pods.look(pod)}
    assert found == {"other": (2, 1, 0), "new": (1, 2, 1)}
    assert asked == ["other", "new"], "whoever is past may take long to answer"


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    (tmp_path / "trainingjob").mkdir()
    env = {
        "TRAININGJOB_CONFIG": str(tmp_path / "config.json"),
        "TRAININGJOB_JOB_UID": "job-uid",
        "TRAININGJOB_ROLE": "train",
        "TRAININGJOB_INDEX": "0",
        "TRAININGJOB_INCARNATION": "1",
        "TRAININGJOB_REPLICAS": "3",
        "TRAININGJOB_HEAD": "train-0.gpt-tj",
        "POD_NAME": "gpt-train-0-1",
        "POD_UID": "pod-uid",
        "POD_IP": "10.0.0.1",
        "TMPDIR": str(tmp_path),
    }
    return Pod.of(env)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def play(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Node], float]]:
    """`wait_for`, with nodes as a function of the seconds passed; the nodes it gave, and after how many seconds."""

    def play(gang: Gang, seen: Callable[[float], list[Node]], there: Any = ()) -> tuple[list[Node], float]:
        clock = Clock()
        monkeypatch.setattr(ray_pods, "time", clock)
        monkeypatch.setattr(ray_pods, "look", lambda _: seen(clock.now - 1000))
        monkeypatch.setattr(ray_pods, "_is_there", lambda _, index: index in there)
        found = wait_for(gang, pod, lambda message: None)
        return found, clock.now - 1000

    return play


def test_an_elastic_gang_is_waited_for_from_when_enough_are_there(play: Any) -> None:
    found, seconds = play(ELASTIC, lambda now: nodes("ready", "ready" if now > 100 else None))
    assert [each.index for each in found] == [0, 1]
    assert seconds == pytest.approx(100 + PATIENCE, abs=1)


def test_pods_that_are_not_there_are_waited_for_without_limit(play: Any) -> None:
    """As behind a quota: hours later the last one comes."""
    hours = 5 * 3600
    found, seconds = play(FIXED, lambda now: nodes("ready", "ready", "ready" if now > hours else None))
    assert len(found) == 3
    assert seconds == pytest.approx(hours, abs=1)


@pytest.mark.parametrize(
    ("there", "error", "said"),
    [
        (nodes("ready", "ready"), WorkerLost, "train-2.gpt-tj did not join"),
        ([*nodes("ready", "ready"), node(2, free=0)], Hang, "Waiting for the last attempt's ranks to end for 10 min"),
    ],
)
def test_pods_that_are_there_and_form_no_gang_end_the_wait(
    play: Any, there: list[Node], error: type[TrainerError], said: str
) -> None:
    with pytest.raises(error, match=said) as raised:
        play(FIXED, lambda now: there, there={2})
    assert raised.value.next_step


def test_the_limit_counts_only_while_all_pods_are_there(play: Any) -> None:
    """Two are there most of the time, but for some seconds in every nine minutes."""
    window = JOIN_LIMIT - 60

    def seen(now: float) -> list[Node]:
        return nodes("ready", "ready", "ready" if now > 5 * JOIN_LIMIT else "silent" if now % window > 10 else None)

    assert len(play(FIXED, seen)[0]) == 3


def test_a_drain_ends_the_wait(play: Any, pod: Pod) -> None:
    pod.drain_flag.touch()
    with pytest.raises(Drained):
        play(FIXED, lambda now: nodes("ready"))


def test_a_pod_that_joins_while_others_train_asks_for_the_next_attempt(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pods of one scale-up are taken in together: not before ten seconds in which no other one came."""
    monkeypatch.setattr(ray_pods, "LOOK_AROUND", 0.01)
    now, looked = 0.0, list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def look(_: Pod) -> list[Node]:
        nonlocal now
        now += 4.0
        looked.append(now)
        third: State = "ready" if now > 8 and now != 24 else "silent"  # slow to answer once
        return nodes("ready", "ready", third, "ready" if now > 16 else None)

    monkeypatch.setattr(ray_pods, "look", look)
    pod.resize_flag.touch()
    with watch_for_joiners(pod, nodes("ready", "ready")):
        assert not pod.resize_flag.exists() or looked, "a flag of the last attempt is gone"
        for thread in threading.enumerate():
            if thread.name == "joiners":
                thread.join(runs.PATIENCE)
    assert pod.resize_flag.exists()
    assert looked[-1] == 32.0, "the first pod came at 12, the second one at 20"


class Agent(BaseHTTPRequestHandler):
    """The answer of a pod's agent."""

    answer: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


class Mute(Agent):
    """An agent that does not answer."""

    def do_GET(self) -> None:
        """Breaks off."""


@contextmanager
def serving(address: str, port: int, handler: type[Agent]) -> Iterator[int]:
    """Serve at an address; the port."""
    with ThreadingHTTPServer((address, port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ({"jobUid": "job-uid", "state": "Starting"}, "ready"),
        ({"jobUid": "job-uid", "state": "Draining"}, "leaving"),
        ({"jobUid": "job-uid", "state": "Done"}, "leaving"),
        ({"jobUid": "of another pod, whose address it was", "state": "Training"}, "leaving"),
        ("nonsense", "silent"),
    ],
)
def test_a_pod_is_what_its_agent_says(pod: Pod, monkeypatch: pytest.MonkeyPatch, answer: Any, state: State) -> None:
    monkeypatch.setattr(Agent, "answer", answer.encode() if isinstance(answer, str) else json.dumps(answer).encode())
    monkeypatch.setattr(ray_pods, "ANSWER", runs.PATIENCE)
    with serving("127.0.0.1", 0, Agent) as port:
        monkeypatch.setattr(ray_pods, "AGENT_PORT", port)
        assert ray_pods._state("127.0.0.1", pod) == state
    assert ray_pods._state("127.0.0.1", pod) == "leaving", "whoever refuses the connection has ended"


def test_pods_are_not_asked_through_the_proxy_that_leads_outside(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it has read the environment before
    monkeypatch.setattr(Agent, "answer", json.dumps({"jobUid": "job-uid", "state": "Training"}).encode())
    with serving("127.0.0.1", 0, Agent) as port:
        monkeypatch.setattr(ray_pods, "AGENT_PORT", port)
        assert ray_pods._state("127.0.0.1", pod) == "ready"
        assert ask(f"http://127.0.0.1:{port}/report", "progress") == {"jobUid": "job-uid", "state": "Training"}


def test_a_pod_is_there_if_its_name_has_an_address_whose_port_is_not_closed(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is cut off runs, and neither answers nor refuses. To one that is cut off from DNS all are there."""
    peers = ["127.0.0.1", "train-7.gpt-tj.invalid", "127.0.0.2"]
    look_up = socket.getaddrinfo

    def resolve(host: str, *args: Any) -> Any:
        """Whether a name has an address is not for a busy resolver to say."""
        if host == peers[1]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(Pod, "peer", lambda _, index: peers[index])
    with socket.create_server(("127.0.0.2", 0)) as silent:
        monkeypatch.setattr(ray_pods, "AGENT_PORT", silent.getsockname()[1])
        assert [ray_pods._is_there(pod, index) for index in range(3)] == [False, False, True]
    assert not nobody_there(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))


def test_pods_that_are_there_and_silent_are_not_heard(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """One answers, one has ended, one does not answer; of itself the pod does not ask."""
    peers = ["127.0.0.3", "127.0.0.1", "127.0.0.2", "127.0.0.4"]
    monkeypatch.setattr(Pod, "peer", lambda _, index: peers[index])
    monkeypatch.setattr(Agent, "answer", json.dumps({"jobUid": "job-uid", "state": "Training"}).encode())
    monkeypatch.setattr(ray_pods, "ANSWER", runs.PATIENCE)
    with serving("127.0.0.1", 0, Agent) as port, serving("127.0.0.2", port, Mute):
        monkeypatch.setattr(ray_pods, "AGENT_PORT", port)
        assert ray_pods.unheard(pod, [0, 1, 2, 3]) == [2]
