"""What the node tells the launcher: one container's start, as JSON on the launcher's standard input."""

from typing import TypedDict


class Mount(TypedDict):
    """`source` (a file or directory of the node, no symlink) bound at `target` in the container."""

    source: str
    target: str
    readOnly: bool


class Identity(TypedDict):
    """Who the container's process is; `capabilities` is what stays in its bounding set (numbers)."""

    uid: int
    gid: int
    groups: list[int]
    capabilities: list[int]
    noNewPrivileges: bool


class Process(TypedDict):
    """The command; `argv[0]` is looked up in the PATH of `env`, as container runtimes do."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    identity: Identity


class Plan(TypedDict):
    """A container to start.

    `namespaces`: inherited descriptors of the pod's network, IPC and UTS namespaces. `statusFd`: inherited; the
    launcher writes one JSON line `{"pid": n}`, then, only if the start failed, `{"error": "..."}`; end of file
    without it means that the command runs. `image`: host paths that must be reachable by any user (Python, sources).
    `nodeRoot`: the node's own directory, whose mounts are none of the container's business.
    """

    statusFd: int
    namespaces: list[int]
    image: list[str]
    nodeRoot: str
    mounts: list[Mount]
    readOnlyRoot: bool
    process: Process


class ExecPlan(TypedDict):
    """A command to run inside a running container, whose first process is `pid` (as the node sees it)."""

    statusFd: int
    pid: int
    process: Process
