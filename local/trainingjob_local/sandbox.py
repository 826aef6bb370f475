"""The ground that the local cluster stands on: one command in namespaces of its own.

`python -m trainingjob_local.sandbox -- COMMAND ...` runs the command with its own network (a bridge `tj0`,
10.244.0.1/24, and nothing that leads outside), mounts, process ids, host name and IPC, and ends with the
command's true exit code (128 + n after signal n). As root it uses root's rights; as anybody else, a user
namespace. Three processes:

    outer    the caller's child; waits, passes signals on, carries the exit code out
    init     PID 1 of the new process-id namespace; reaps, passes signals on; dies with `outer`
    command  what was asked for; when it ends, init ends, and the kernel kills whatever is left inside

So nothing that was started inside outlives the sandbox, whichever of the three is killed, and how.
"""

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pyroute2 import IPRoute

from trainingjob_local import linux

BRIDGE = "tj0"
HOST_IP = "10.244.0.1"
POD_NETWORK = "10.244.0.0/24"

_FORWARDED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_SI_KERNEL = 0x80
_SYSCTLS = {
    "kernel/unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
    "user/max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=10000"),
}


class SandboxError(RuntimeError):
    """The namespaces can't be made, or the caller is not inside them; the message says what to do."""


def inside() -> bool:
    """Whether this process runs in a sandbox: its network has the bridge."""
    return any(line.startswith(f"{BRIDGE}:") for line in _stripped_lines(Path("/proc/net/dev")))


def require() -> None:
    """Raise SandboxError unless this process runs in a sandbox."""
    if not inside():
        raise SandboxError(
            "this needs a network of its own; start it inside the sandbox: "
            "python -m trainingjob_local.sandbox -- COMMAND ..."
        )


def command_line(command: Sequence[str], *, outlive_parent: bool = False) -> list[str]:
    """The command line that runs `command` in a new sandbox."""
    flags = ["--outlive-parent"] if outlive_parent else []
    return [sys.executable, "-m", "trainingjob_local.sandbox", *flags, "--", *command]


def run(command: Sequence[str], *, outlive_parent: bool = False) -> int:
    """Run `command` in a new sandbox and return its exit code. Call it once, in a process without threads."""
    if not outlive_parent:
        parent = os.getppid()
        linux.die_with_parent()
        if os.getppid() != parent:
            return 128 + signal.SIGKILL
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED | {signal.SIGCHLD})
    uid, gid = os.getuid(), os.getgid()
    try:
        if uid != 0:
            linux.unshare(linux.CLONE_NEWUSER)
            _map_to_root(uid, gid)
        linux.unshare(
            linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWPID | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC
        )
    except OSError as error:
        raise SandboxError(_why_forbidden(error)) from error
    alive, outer_end = os.pipe()
    init = os.fork()
    if init == 0:
        os.close(outer_end)
        _init(command, alive)
    os.close(alive)
    return _wait(init)


def _map_to_root(uid: int, gid: int) -> None:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _init(command: Sequence[str], alive: int) -> NoReturn:
    """PID 1: make the ground, start the command, reap until it ends."""
    code = 1
    try:
        linux.die_with_parent()
        # The parent may have died before the line above; then the pipe's other end is closed.
        os.set_blocking(alive, False)
        with contextlib.suppress(BlockingIOError):
            if os.read(alive, 1) == b"":
                os._exit(1)
        os.set_inheritable(alive, False)
        _make_ground()
        child = os.fork()
        if child == 0:
            _exec(command)
        code = _wait(child)
    except OSError as error:
        _say(_why_forbidden(error))
    finally:
        os._exit(code)


def _make_ground() -> None:
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    address, prefix = HOST_IP, int(POD_NETWORK.partition("/")[2])
    with IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")
        ip.link("add", ifname=BRIDGE, kind="bridge")
        bridge = ip.link_lookup(ifname=BRIDGE)[0]
        ip.addr("add", index=bridge, address=address, prefixlen=prefix)
        ip.link("set", index=bridge, state="up")


def _exec(command: Sequence[str]) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED | {signal.SIGCHLD})
    # A proxy cannot be reached from here, and what is here needs none.
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    try:
        os.execvpe(command[0], list(command), environment)
    except OSError as error:
        _say(f"{command[0]}: {os.strerror(error.errno or 0)}")
        os._exit(127 if error.errno == errno.ENOENT else 126)


def _wait(child: int) -> int:
    """Pass signals on to `child` and reap until it ends; returns its exit code, 128 + n after signal n."""
    while True:
        info = signal.sigwaitinfo(_FORWARDED | {signal.SIGCHLD})
        if info.si_signo == signal.SIGCHLD:
            code = _reap(child)
            if code is not None:
                return code
        elif info.si_code != _SI_KERNEL:  # what the terminal sends reaches the whole process group already
            os.kill(child, info.si_signo)


def _reap(child: int) -> int | None:
    """Reap everything that has ended; the exit code of `child` once it is among it."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _why_forbidden(error: OSError) -> str:
    """What forbids the namespaces here, and what to do."""
    wrong = []
    for name, (bad, cure) in _SYSCTLS.items():
        file = Path("/proc/sys") / name
        if file.exists() and file.read_text().strip() == bad:
            wrong.append(f"{name.replace('/', '.')} is {bad}: an administrator can allow it with `{cure}`")
    if os.getuid() != 0 and not wrong:
        wrong.append(
            "this system (perhaps a container runtime's seccomp or AppArmor profile) forbids unprivileged user "
            "namespaces: run as root, or start the container with `--privileged` or "
            "`--security-opt seccomp=unconfined --security-opt apparmor=unconfined`"
        )
    elif not wrong:
        wrong.append("root lacks CAP_SYS_ADMIN here: start the container with `--privileged`, or use a plain machine")
    return f"the local cluster needs namespaces of its own, and making them failed ({error}); " + "; ".join(wrong)


def _stripped_lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines()]


def _say(message: str) -> None:
    sys.stderr.write(f"sandbox: {message}\n")


def main() -> int:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m trainingjob_local.sandbox", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--outlive-parent", action="store_true", help="stay when the calling process ends")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        parser.error("a command is needed")
    try:
        return run(command, outlive_parent=arguments.outlive_parent)
    except SandboxError as error:
        _say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
