"""The pods of the gang as nodes of its Ray cluster: which are there, which to wait for, and who joins later."""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.error
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from .agent.pod import AGENT_PORT, Pod
from .errors import Drained, Hang, TrainerError, WorkerLost
from .network import ask_pod, nobody_there
from .ray_node import INCARNATION_LABEL, INDEX_LABEL, RANK_RESOURCE

logger = logging.getLogger(__name__)

POLL = 0.25  # seconds
# Seconds that an elastic run waits for a pod's successor before it goes on without. On two cores under a load of 14 one
# joined 20 s after it got a node (measured); waiting much longer costs more than the attempt that takes it in later.
PATIENCE = 20.0
# Seconds that all pods may be there and yet not be a gang. While one is not there, as behind a quota, nothing is
# counted: what keeps it is in the job's status, and startDeadlineSeconds bounds it.
JOIN_LIMIT = 600.0
LOOK_AROUND = 2.0  # seconds between two looks for pods that joined, or that are missing
# Seconds that nothing must have changed about the pods that joined before they are taken in: those of one scale-up come
# one after another, and each time they are taken in costs the start of an attempt.
SETTLE = 10.0
# A pod is silent when it has not answered so many times, in so many seconds each.
TRIES = 3
ANSWER = 1.0
ASKED_AT_ONCE = 64

State = Literal["ready", "leaving", "silent"]


@dataclass(frozen=True)
class Node:
    """A pod that Ray counts as alive. A lost one without a successor does until it has missed its health checks."""

    id: str
    index: int
    incarnation: int
    state: State
    slots: float
    """Ranks that fit in."""
    free: float
    gpus: float


@dataclass(frozen=True)
class Gang:
    """What an attempt asks for: the pods of these indexes, or fewer of them.

    patience: seconds to wait for the missing ones once the `fewest` are there.
    """

    wanted: frozenset[int]
    fewest: int
    patience: float = PATIENCE

    def waits_for(self, nodes: Sequence[Node], waited: float) -> str | None:
        """What has to be waited for; None: the ready ones of `nodes` can begin. waited: since the fewest are there."""
        ready = [node for node in nodes if node.state == "ready"]
        there = {node.index for node in ready}
        missing = self.wanted - there
        if missing and (len(there) < self.fewest or waited < self.patience):
            return f"Waiting for {len(missing)} of {len(self.wanted)} pods to join."
        if any(node.state == "silent" for node in nodes) and waited < PATIENCE:
            return "Waiting for a pod to answer, or to leave Ray's list of nodes."
        # Ranks are placed by pod, and a pod in which Ray was started again has two nodes for a while.
        if sum(node.index in there for node in nodes) > len(there):
            return "Waiting for lost pods to leave Ray's list of nodes."
        if any(node.free < node.slots for node in ready):
            return "Waiting for the last attempt's ranks to end."
        return None


def wait_for(gang: Gang, pod: Pod, say: Callable[[str], None], check: Callable[[], None] = lambda: None) -> list[Node]:
    """Wait until the gang's pods are part of Ray's cluster; returns them, by index.

    Raises `Drained`; `WorkerLost` or `Hang` if it comes to nothing although all pods are there; and what `check`
    raises, which is called now and then.
    """
    said, looked = "", 0.0
    enough_since: float | None = None
    stuck_since: float | None = None
    while True:
        if pod.drain_flag.exists():
            raise Drained("The pod was asked to stop before training began.")
        now, nodes = time.monotonic(), look(pod)
        ready = sorted((node for node in nodes if node.state == "ready"), key=lambda node: node.index)
        enough = len({node.index for node in ready}) >= gang.fewest
        enough_since = (enough_since or now) if enough else None
        message = gang.waits_for(nodes, now - enough_since if enough_since is not None else 0.0)
        if message is None:
            return ready
        if message != said:
            say(message)
            said = message
        missing = gang.wanted - {node.index for node in ready}
        if now - looked > LOOK_AROUND:
            looked = now
            check()
            there = {node.index for node in nodes}
            stuck = all(index in there or _is_there(pod, index) for index in sorted(missing))
            stuck_since = (stuck_since or now) if stuck else None
        if stuck_since is not None and now - stuck_since > JOIN_LIMIT:
            raise _stuck(pod, missing, message)
        time.sleep(POLL)


def look(pod: Pod) -> list[Node]:
    """Ray's living nodes, each with what its agent says, but for pods that have successors.

    Ray takes a while to see that such a pod is gone, and never does if only its node's kubelet is.
    """
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    alive = [each for each in ray.nodes() if each["Alive"]]
    newest: dict[int, int] = {}
    for index, incarnation in map(_place, alive):
        newest[index] = max(newest.get(index, 0), incarnation)
    return [_node(each, free, pod) for each in alive if _place(each) in newest.items()]


def unheard(pod: Pod, indexes: Iterable[int]) -> list[int]:
    """Those of the gang's pods that do not answer this one, though they are there."""

    def is_silent(index: int) -> bool:
        return all(_state(pod.peer(index), pod) == "silent" for _ in range(TRIES))

    others = [index for index in indexes if index != pod.index]
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        return [index for index, silent in zip(others, threads.map(is_silent, others), strict=True) if silent]


@contextmanager
def watch_for_joiners(pod: Pod, nodes: Sequence[Node]) -> Iterator[None]:
    """While ranks train on `nodes`, set the pod's resize flag once others could take part and no more are coming."""
    known, over = {node.id for node in nodes}, threading.Event()

    def watch() -> None:
        joined, since = set[int](), 0.0
        while not over.wait(LOOK_AROUND):
            try:
                found = {node.index for node in look(pod) if node.id not in known and node.state == "ready"}
            except Exception:  # Ray's client has no class for "the head is busy"
                logger.warning("Cannot look for pods that joined", exc_info=True)
                continue
            if found - joined:  # one that is slow to answer now and then does not begin the wait anew
                joined, since = joined | found, time.monotonic()
            if found and time.monotonic() - since >= SETTLE:
                logger.info("Pods %s joined: the attempt ends at the next step, which is committed", sorted(found))
                pod.resize_flag.touch()
                return

    pod.resize_flag.unlink(missing_ok=True)
    thread = threading.Thread(target=watch, name="joiners", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _place(ray_node: dict[str, Any]) -> tuple[int, int]:
    """Index and incarnation of the node's pod."""
    labels = ray_node["Labels"]
    return int(labels[INDEX_LABEL]), int(labels[INCARNATION_LABEL])


def _node(ray_node: dict[str, Any], free: dict[str, dict[str, float]], pod: Pod) -> Node:
    resources, address = ray_node["Resources"], ray_node["NodeManagerAddress"]
    index, incarnation = _place(ray_node)
    return Node(
        id=ray_node["NodeID"],
        index=index,
        incarnation=incarnation,
        state="ready" if address == pod.ip else _state(address, pod),
        slots=resources.get(RANK_RESOURCE, 0),
        free=free.get(ray_node["NodeID"], {}).get(RANK_RESOURCE, 0),
        gpus=resources.get("GPU", 0),
    )


def _state(address: str, pod: Pod) -> State:
    """What the agent at `address` makes of its pod. One that refuses the connection has ended, or has not begun."""
    try:
        with ask_pod(f"http://{address}:{AGENT_PORT}/progress", ANSWER) as response:
            seen = json.load(response)
    except urllib.error.URLError as error:
        return "leaving" if nobody_there(error.reason) else "silent"
    except (OSError, ValueError):
        return "silent"
    if seen.get("jobUid") != pod.job_uid:
        return "leaving"  # the address is another's by now
    return "leaving" if seen.get("state") in ("Draining", "Done") else "ready"


def _is_there(pod: Pod, index: int) -> bool:
    """Whether the pod of `index`, found by its name, runs: one that is cut off does, and says nothing."""
    return _state(pod.peer(index), pod) != "leaving"


def _stuck(pod: Pod, missing: frozenset[int], message: str) -> TrainerError:
    minutes = f"{JOIN_LIMIT / 60:.0f} minutes"
    if not missing:
        return Hang(f"{message.rstrip('.')} for {minutes}, in vain.", "Look at the pods' logs.")
    names = ", ".join(pod.peer(index) for index in sorted(missing)[:5])
    return WorkerLost(
        f"{names} did not join Ray's cluster within {minutes}, though {'it is' if len(missing) == 1 else 'they are'} "
        "there.",
        "Look at their logs. A NetworkPolicy must let the pods of a job reach each other (docs: NetworkPolicy).",
    )
