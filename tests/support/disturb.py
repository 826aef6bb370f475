"""What people, Kubernetes and nodes do to the pods of a played job, through the real API."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kubernetes import client
from pyroute2 import IPRoute
from trainingjob_local.crash import first_process
from trainingjob_local.node import syscalls
from trainingjob_local.node.podnet import link_of

from support.played import Object, PlayedJob
from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

T = TypeVar("T")


def node_of(job: PlayedJob) -> str:
    """Name of a node that does not exist. Kubernetes looks for it for 40 s before it removes its pods, so each job has
    one of its own.
    """
    return f"elsewhere-{job.namespace}-{job.name}"


def place(job: PlayedJob, *names: str) -> None:
    """These pods are on a node, which answers for nothing: what is told to end has its grace, and stays."""
    for name in names:
        job.bind(name, node_of(job))


def evict(job: PlayedJob, name: str) -> None:
    """What `kubectl drain` does to a pod."""
    pod = f"{job.name}-{name}"
    body = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod, namespace=job.namespace))
    job.core.create_namespaced_pod_eviction(pod, job.namespace, body)


def delete_pod(job: PlayedJob, name: str) -> None:
    """What `kubectl delete pod` does: a pod that is on a node has its grace."""
    job.core.delete_namespaced_pod(f"{job.name}-{name}", job.namespace)


def label(job: PlayedJob, name: str, **labels: str | None) -> None:
    """Set or remove (None) labels `trainingjob.io/...` of a pod; `job_uid` stands for `job-uid`."""
    changed = {f"trainingjob.io/{key.replace('_', '-')}": value for key, value in labels.items()}
    job.core.patch_namespaced_pod(f"{job.name}-{name}", job.namespace, {"metadata": {"labels": changed}})


def edit_status(job: PlayedJob, **fields: object) -> None:
    """Somebody writes into the job's status by hand."""
    patch = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": fields}))
    job.cluster.kubectl("-n", job.namespace, "patch", "tj", job.name, *patch)


def find_no_node(job: PlayedJob, name: str) -> None:
    """The scheduler has looked for a node in vain."""
    said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}
    job.core.patch_namespaced_pod_status(f"{job.name}-{name}", job.namespace, {"status": {"conditions": [said]}})


def terminating(job: PlayedJob) -> dict[str, int]:
    """Names of the job's pods that are on their way out, and the grace in seconds that they have."""
    return {
        name: pod["metadata"]["deletionGracePeriodSeconds"]
        for name, pod in job.pods().items()
        if "deletionTimestamp" in pod["metadata"]
    }


def addresses(job: PlayedJob, host: str) -> list[str]:
    """Addresses of a host name of the job's Service, as the cluster's DNS would serve them."""
    text = job.cluster.kubectl(
        *("-n", job.namespace, "get", "endpointslices", "-l", "kubernetes.io/service-name=gpt-tj", "-o", "json")
    )
    endpoints = [endpoint for part in json.loads(text)["items"] for endpoint in part.get("endpoints") or ()]
    return [address for each in endpoints if each.get("hostname") == host for address in each["addresses"]]


def audited(cluster: LocalCluster, word: str) -> list[Object]:
    """The API server's audit log: its entries with this word in them. An answer may be heard before its entry is there,
    and the last entry may be half written.
    """
    log = cluster.control_plane.audit_log
    assert log is not None
    whole, _, _ = log.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if word in line]


def writes(job: PlayedJob) -> list[tuple[str, str, str, int]]:
    """The operator's writes in the job's namespace, from the audit log: verb, resource, name and the answer's code."""
    entries = audited(job.cluster, job.namespace)
    return [_written(entry) for entry in entries if _is_write(entry, job.namespace)]


def _is_write(entry: Object, namespace: str) -> bool:
    agent: str = entry.get("userAgent", "")
    of_operator = agent.startswith("trainingjob-operator")
    mutating = entry["verb"] in ("create", "update", "patch", "delete")
    return of_operator and mutating and entry.get("objectRef", {}).get("namespace") == namespace


def _written(entry: Object) -> tuple[str, str, str, int]:
    what: dict[str, Any] = entry["objectRef"]
    return entry["verb"], what["resource"], what.get("name", ""), entry["responseStatus"]["code"]


@contextmanager
def silent_node(cluster: LocalCluster, name: str, seconds: int = 8) -> Iterator[None]:
    """The node's agent stands still, its pods' processes go on; it counts as lost after `seconds`.

    Afterwards it lives again, and takes pods. What they print meanwhile is lost.
    """
    agent = cluster.nodes[name]
    with cluster.control_plane.node_grace(seconds), _output_taken(agent.pid):
        agent.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            agent.signal(signal.SIGCONT)
            taints = "jsonpath={.spec.taints}"
            wait_until(f"{name} is back", lambda: not cluster.kubectl("get", "node", name, "-o", taints))


@contextmanager
def _output_taken(pid: int) -> Iterator[None]:
    """The pipes from which a node's agent reads its pods' output are read besides, as containerd's shims would do.

    Who prints into a pipe that nobody reads stands still as soon as it is full.
    """
    over, (ended, end) = selectors.DefaultSelector(), os.pipe()
    files = [ended, *_pipes_to(pid)]
    for file in files:
        over.register(file, selectors.EVENT_READ)

    def read() -> None:
        while True:
            for key, _ in over.select():
                if key.fd == ended:
                    return
                with contextlib.suppress(BlockingIOError):
                    if not os.read(key.fd, 1 << 16):
                        over.unregister(key.fd)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        os.close(end)
        reader.join()
        over.close()
        for file in files:
            os.close(file)


def _pipes_to(pid: int) -> list[int]:
    """The read ends of a process's pipes, opened once more."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        info = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
        (flags,) = [int(line.split()[1], 8) for line in info.splitlines() if line.startswith("flags:")]
        if str(link.readlink()).startswith("pipe:") and flags & os.O_ACCMODE == os.O_RDONLY:
            found.append(os.open(link, os.O_RDONLY | os.O_NONBLOCK))
    return found


def cut_off(address: str) -> None:
    """Nobody reaches the pod with this address any more, nor it anybody. Its processes go on, and its node knows."""
    with IPRoute() as ip:
        (index,) = ip.link_lookup(ifname=link_of(address))
        ip.link("set", index=index, state="down")


def lose_on_the_way(pod: Object, other: Object) -> None:
    """What the one pod sends to the other is lost; what that one sends arrives, and all others hear and are heard.

    To the pod, the other's address belongs to a network card that nobody has.
    """

    _as_neighbour(pod, other, "replace", lladdr="0a:58:00:00:00:00", state="permanent")


@contextmanager
def cut_apart(pod: Object, other: Object) -> Iterator[None]:
    """Nothing that one of the two pods sends to the other arrives. All others hear both and are heard."""
    for each, its in ((pod, other), (other, pod)):
        lose_on_the_way(each, its)
    try:
        yield
    finally:
        for each, its in ((pod, other), (other, pod)):
            _as_neighbour(each, its, "delete")


def _as_neighbour(pod: Object, other: Object, do: str, **entry: str) -> None:
    """Change what the pod's network knows of the other's address."""

    def tell() -> None:
        with IPRoute() as ip:
            (index,) = ip.link_lookup(ifname="eth0")
            ip.neigh(do, dst=other["status"]["podIP"], ifindex=index, **entry)

    _in_network_of(pod, tell)


def is_heard(pod: Object, other: Object) -> bool:
    """Whether what the one pod sends arrives at the other within a second."""
    datagrams = partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with _in_network_of(pod, datagrams) as sender, _in_network_of(other, datagrams) as receiver:
        receiver.bind((other["status"]["podIP"], 0))
        receiver.settimeout(1)
        sender.sendto(b"?", receiver.getsockname())
        with contextlib.suppress(TimeoutError):
            return receiver.recv(1) == b"?"
    return False


def _in_network_of(pod: Object, do: Callable[[], T]) -> T:
    """What `do` gives in the pod's network, in a thread that leaves this one. A socket belongs to where it was made."""

    def move_and_do() -> T:
        with Path(f"/proc/{first_process(pod['metadata']['uid'])}/ns/net").open() as namespace:
            syscalls.setns(namespace.fileno())
        return do()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(move_and_do).result()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
