"""A container's file system, made of the host's: see `build`.

Runs inside the container's own mount and process-id namespaces, before the command. A single overlay over `/` fails
in a user namespace, so there is one per top-level directory; where something is mounted below a directory, it is
rebuilt entry by entry, because an overlay does not show what is mounted below its lower directory.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from trainingjob_local import linux
from trainingjob_local.node import syscalls

if TYPE_CHECKING:
    from trainingjob_local.node.plan import Mount

_PRIVATE = {"dev", "proc", "sys", "tmp", "run"}  # never the host's
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_PROC_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_SHM_SIZE = "64m"  # what container runtimes give
_OLD = "/.host"


def build(scratch: str, node_root: str, image: list[str], mounts: list[Mount], *, read_only: bool) -> None:
    """Make this mount namespace the container's and enter it; raises OSError.

    A tmpfs over `scratch` becomes the root: it holds copy-on-write views of the host's top-level directories, an
    empty /tmp and /run, a private /proc and /dev, /sys read-only, and `mounts`. With `read_only` nothing but the
    mounts, /dev and /proc can be written. Every path of `image` is reachable, whatever the modes of its parents are
    and whatever is mounted over them.
    """
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", scratch, "tmpfs", linux.MS_NODEV | linux.MS_NOSUID, "mode=755")
    layers, root = f"{scratch}/layers", f"{scratch}/root"
    os.mkdir(layers)
    os.mkdir(root)
    # pivot_root wants the new root to be a mount of its own; the layers lie outside it.
    linux.mount("tmpfs", root, "tmpfs", linux.MS_NODEV | linux.MS_NOSUID, "mode=755")
    tree = _Tree(layers, len(root), _submounts(node_root), image)
    for entry in os.scandir("/"):
        if entry.name not in _PRIVATE:
            tree.show(f"/{entry.name}", f"{root}/{entry.name}")
    for path in _outside(image, _PRIVATE):
        _make_mount_point(path, f"{root}{path}")
        tree.show(path, f"{root}{path}")
    os.mkdir(f"{root}{_OLD}", 0o700)
    syscalls.pivot_root(root, f"{root}{_OLD}")
    os.chdir("/")
    _complete(image, mounts, tree.overlays if read_only else [])
    syscalls.unmount(_OLD)
    os.rmdir(_OLD)
    if read_only:
        syscalls.set_mount_flags("/", syscalls.MOUNT_ATTR_RDONLY, recursive=False)


class _Tree:
    """Shows parts of the host's tree in the container, copy-on-write wherever that can be had.

    `overlays`: where the container can write, as it will see these paths; all else is read-only from the start.
    """

    def __init__(self, layers: str, root_length: int, submounts: list[str], image: list[str]) -> None:
        self.overlays: list[str] = []
        self._layers = layers
        self._root_length = root_length
        self._submounts = submounts
        parents = {parent for path in image for parent in _parents(path)}
        self._parents = sorted(path for path in parents if os.path.realpath(path) == path)

    def show(self, source: str, target: str) -> None:
        """Make the host's `source` visible at `target`, whose parent exists."""
        try:
            info = os.lstat(source)
            if stat.S_ISLNK(info.st_mode):
                os.symlink(os.readlink(source), target)
            elif not stat.S_ISDIR(info.st_mode):
                self._bind(source, target)
            elif any(mount.startswith(f"{source}/") for mount in self._submounts):
                self._rebuild(source, target, info)
            else:
                self._overlay(source, target, info)
        except PermissionError:
            return  # what the node itself may not read, the container does not see

    def _overlay(self, source: str, target: str, info: os.stat_result) -> None:
        upper = f"{self._layers}/{len(os.listdir(self._layers))}"
        work = f"{upper}.work"
        os.mkdir(upper)
        os.mkdir(work)
        # The merged directory takes owner and mode from its upper layer.
        self._copy_attributes(source, upper, info)
        for parent in self._parents:
            if not parent.startswith(f"{source}/"):
                continue
            twin = upper + parent[len(source) :]
            os.mkdir(twin)
            self._copy_attributes(parent, twin, os.stat(parent))
        os.makedirs(target, exist_ok=True)
        options = f"lowerdir={_escape(source)},upperdir={upper},workdir={work}"
        try:
            linux.mount("overlay", target, "overlay", linux.MS_NODEV, options)
        except OSError:  # a file system that can't be a lower layer
            self._bind(source, target)
        else:
            self.overlays.append(target[self._root_length :])

    def _rebuild(self, source: str, target: str, info: os.stat_result) -> None:
        os.makedirs(target, exist_ok=True)
        self._copy_attributes(source, target, info)
        for name in os.listdir(source):
            self.show(f"{source}/{name}", f"{target}/{name}")

    def _bind(self, source: str, target: str) -> None:
        _make_mount_point(source, target)
        syscalls.bind(source, target)
        syscalls.set_mount_flags(target, syscalls.MOUNT_ATTR_RDONLY, recursive=True)

    def _copy_attributes(self, source: str, target: str, info: os.stat_result) -> None:
        extra = 0o111 if source in self._parents else 0
        with contextlib.suppress(PermissionError, OSError):  # an owner that a user namespace does not map
            os.chown(target, info.st_uid, info.st_gid)
        os.chmod(target, stat.S_IMODE(info.st_mode) | extra)


def _complete(image: list[str], mounts: list[Mount], freeze: list[str]) -> None:
    """All that is not the host's; runs after pivot_root, so that symbolic links (/var/run) lead nowhere else."""
    for name, mode in (("tmp", 0o1777), ("run", 0o755), ("proc", 0o555), ("dev", 0o755), ("sys", 0o555)):
        os.makedirs(f"/{name}", exist_ok=True)
        os.chmod(f"/{name}", mode)
    for mount in mounts:
        if not mount["target"].startswith("/dev/"):
            _make_mount_point(_OLD + mount["source"], mount["target"])
    for path in freeze:  # their mount points exist by now
        syscalls.set_mount_flags(path, syscalls.MOUNT_ATTR_RDONLY, recursive=False)
    _mount_proc()
    _mount_dev()
    syscalls.bind(f"{_OLD}/sys", "/sys")
    syscalls.set_mount_flags("/sys", syscalls.MOUNT_ATTR_RDONLY, recursive=True)
    for mount in mounts:
        _mount_volume(mount)
    for path in image:  # a volume (an emptyDir at /tmp, say) may have covered it
        if not os.path.exists(path):
            _make_mount_point(_OLD + path, path)
            syscalls.bind(_OLD + path, path)
            syscalls.set_mount_flags(path, syscalls.MOUNT_ATTR_RDONLY, recursive=True)


def _mount_volume(mount: Mount) -> None:
    source, target = _OLD + mount["source"], mount["target"]
    _make_mount_point(source, target)
    syscalls.bind(source, target)
    flags = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    if mount["readOnly"]:
        flags |= syscalls.MOUNT_ATTR_RDONLY
    syscalls.set_mount_flags(target, flags, recursive=True)


def _mount_proc() -> None:
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    for name in _PROC_READ_ONLY:
        path = f"/proc/{name}"
        if os.path.exists(path):
            syscalls.bind(path, path)
            syscalls.set_mount_flags(path, syscalls.MOUNT_ATTR_RDONLY, recursive=True)


def _mount_dev() -> None:
    linux.mount("tmpfs", "/dev", "tmpfs", linux.MS_NOSUID | linux.MS_NOEXEC, "mode=755,size=1m")
    for name in _DEVICES:
        _make_mount_point("/dev/null", f"/dev/{name}")
        syscalls.bind(f"{_OLD}/dev/{name}", f"/dev/{name}")
    os.mkdir("/dev/pts")
    linux.mount("devpts", "/dev/pts", "devpts", linux.MS_NOSUID | linux.MS_NOEXEC, "newinstance,ptmxmode=0666")
    os.mkdir("/dev/shm")
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("tmpfs", "/dev/shm", "tmpfs", flags, f"mode=1777,size={_SHM_SIZE}")
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1"}
    for name, target in {**links, "stderr": "/proc/self/fd/2"}.items():
        os.symlink(target, f"/dev/{name}")


def _make_mount_point(source: str, target: str) -> None:
    """Make `target` a directory or an empty file, as `source` is one."""
    if os.path.lexists(target):
        return
    if os.path.isdir(source):
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))


def _submounts(node_root: str) -> list[str]:
    """All mount points of this namespace that are not the node's own."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        points = [line.split(" ")[4].encode().decode("unicode_escape") for line in file]
    return [point for point in points if point != node_root and not point.startswith(f"{node_root}/")]


def _parents(path: str) -> list[str]:
    """The directories above `path` and `path` itself: "/a/b" -> ["/a", "/a/b"]."""
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[: count + 1]) for count in range(len(parts))]


def _outside(image: list[str], private: set[str]) -> list[str]:
    """Paths of the image that lie in a top-level directory that the container gets an own one of."""
    return [path for path in image if path.split("/")[1] in private]


def _escape(path: str) -> str:
    """`path` as overlayfs options want it."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
