"""A pod's status, computed from what its containers are doing. Pure: no clock, no I/O."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from trainingjob_local.node.kube import Object

FINISHED = ("Succeeded", "Failed")


@dataclass
class ContainerState:
    """What is known of one container. `state` and `last` are a ContainerState of the API."""

    name: str
    image: str
    state: Object = field(default_factory=lambda: waiting("ContainerCreating"))
    last: Object = field(default_factory=dict)
    restarts: int = 0
    container_id: str = ""
    started: bool = False  # running, and its startup probe (if any) has succeeded
    ready: bool = False

    @property
    def exit_code(self) -> int | None:
        """The exit code, once the container has terminated."""
        terminated = self.state.get("terminated")
        return None if terminated is None else int(terminated["exitCode"])

    @property
    def has_run(self) -> bool:
        """Whether the container was ever started."""
        return "waiting" not in self.state or "terminated" in self.last

    def to_api(self) -> Object:
        """A ContainerStatus of the API."""
        status: Object = {
            "name": self.name,
            "image": self.image,
            "imageID": self.image if self.container_id else "",
            "state": self.state,
            "lastState": self.last,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
        }
        return status | ({"containerID": self.container_id} if self.container_id else {})


def waiting(reason: str, message: str = "") -> Object:
    """The state of a container that does not run yet."""
    return {"waiting": {"reason": reason} | ({"message": message} if message else {})}


def running(started_at: str) -> Object:
    """The state of a container that runs."""
    return {"running": {"startedAt": started_at}}


def terminated(
    code: int, started_at: str, finished_at: str, message: str = "", reason: str | None = None, container_id: str = ""
) -> Object:
    """The state of a container that ended; `reason` follows from the exit code unless given."""
    ended: Object = {"exitCode": code, "reason": reason or ("Error" if code else "Completed")}
    if code > 128 and reason is None:
        ended["signal"] = code - 128
    ended |= {"startedAt": started_at, "finishedAt": finished_at}
    ended |= {"message": message} if message else {}
    return {"terminated": ended | ({"containerID": container_id} if container_id else {})}


def restarts(policy: str, code: int) -> bool:
    """Whether a container that ended with `code` is started again under the pod's restartPolicy."""
    return policy == "Always" or (policy == "OnFailure" and code != 0)


def phase(policy: str, init: Sequence[ContainerState], main: Sequence[ContainerState]) -> str:
    """The pod's phase, as a kubelet derives it."""
    for container in init:
        if container.exit_code == 0:
            continue
        failed = container.exit_code is not None and not restarts(policy, container.exit_code)
        return "Failed" if failed else "Pending"
    if any(not container.has_run for container in main):
        return "Pending"
    if any("terminated" not in container.state for container in main):
        return "Running"
    codes = [container.exit_code or 0 for container in main]
    if any(restarts(policy, code) for code in codes):
        return "Running"
    return "Failed" if any(codes) else "Succeeded"


def conditions(
    phase: str,
    init: Sequence[ContainerState],
    main: Sequence[ContainerState],
    *,
    has_network: bool,
    previous: Iterable[Object],
    now: str,
) -> list[Object]:
    """The conditions that a kubelet writes; a transition time changes only with the condition's status."""
    initialized = all(container.exit_code == 0 for container in init) or phase == "Succeeded"
    unready = [container.name for container in main if not container.ready]
    why: tuple[str, str] = ("", "")
    if phase in FINISHED:
        why = ("PodCompleted" if phase == "Succeeded" else "PodFailed", "")
    elif unready:
        why = ("ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    incomplete = [container.name for container in init if container.exit_code != 0]
    wanted = {
        "PodReadyToStartContainers": (has_network, "", ""),
        "Initialized": (
            initialized,
            "" if initialized else "ContainersNotInitialized",
            "" if initialized else f"containers with incomplete status: [{' '.join(incomplete)}]",
        ),
        "ContainersReady": (not unready and phase not in FINISHED, *why),
        "Ready": (not unready and phase not in FINISHED, *why),
    }
    former = {item["type"]: item for item in previous}
    made = []
    for kind, (holds, reason, message) in wanted.items():
        value = "True" if holds else "False"
        old = former.get(kind, {})
        since = old["lastTransitionTime"] if old.get("status") == value else now
        item = {"type": kind, "status": value, "lastProbeTime": None, "lastTransitionTime": since}
        made.append(item | ({"reason": reason} if reason else {}) | ({"message": message} if message else {}))
    return made


def timestamp(moment: datetime | None = None) -> str:
    """RFC 3339 in UTC to the second, as the API has times; now without an argument."""
    return (moment or datetime.now(UTC)).isoformat(timespec="seconds").replace("+00:00", "Z")
