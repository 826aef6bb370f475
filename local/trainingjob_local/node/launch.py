"""Start one container: `python -m trainingjob_local.node.launch`, with a Plan or ExecPlan (JSON) on standard input.

Three processes: the node; this launcher, which waits in the node's namespaces; and the container's first process,
PID 1 of a process-id namespace of its own, with whose end the kernel ends everything in it. The launcher

- passes SIGTERM on to that process, and on SIGUSR1 kills it (so the node never signals a process id that is gone);
- ends with its true exit code: 128 + n after signal n;
- dies with the node, and the container with the launcher (parent-death signals).

Its imports are few, because it starts once per container.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from trainingjob_local import linux
from trainingjob_local.node import rootfs, syscalls

if TYPE_CHECKING:
    from typing import NoReturn

    from trainingjob_local.node.plan import ExecPlan, Identity, Plan, Process

START_FAILED = 128  # what kubelets report with reason StartError
_SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD}
_NAMESPACES = {
    "user": linux.CLONE_NEWUSER,
    "mnt": linux.CLONE_NEWNS,
    "pid": linux.CLONE_NEWPID,
    "net": linux.CLONE_NEWNET,
    "ipc": linux.CLONE_NEWIPC,
    "uts": linux.CLONE_NEWUTS,
}


def main() -> int:
    """Read the plan, start the container, wait; returns its exit code."""
    parent = os.getppid()
    linux.die_with_parent()
    if os.getppid() != parent:
        return 128 + signal.SIGKILL
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    plan = json.loads(sys.stdin.buffer.read())
    status = plan["statusFd"]
    os.set_inheritable(status, False)
    try:
        if "pid" in plan:
            _join(plan["pid"])
        else:
            for fd in plan["namespaces"]:
                syscalls.setns(fd)
            linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID)
        child = os.fork()
    except OSError as error:
        _report(status, {"error": str(error)})
        return START_FAILED
    if child == 0:
        _become(plan, status)
    _report(status, {"pid": child})
    os.close(status)
    return _wait(child)


def _become(plan: Plan | ExecPlan, status: int) -> NoReturn:
    """In the child: make the file system, give up rights, execute."""
    try:
        linux.die_with_parent()
        if "pid" not in plan:
            rootfs.build(
                f"{plan['nodeRoot']}/scratch",
                plan["nodeRoot"],
                plan["image"],
                plan["mounts"],
                read_only=plan["readOnlyRoot"],
            )
        _exec(plan["process"], status)
    except BaseException as error:
        _report(status, {"error": str(error)})
    finally:
        os._exit(START_FAILED)


def _exec(process: Process, status: int) -> NoReturn:
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.closerange(3, status)
    os.closerange(status + 1, 1 << 16)
    identity, env, argv = process["identity"], process["env"], process["argv"]
    _give_up_rights(identity)
    os.umask(0o022)
    os.chdir(process["cwd"])
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would inherit that
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        os.execvpe(argv[0], argv, env)
    except FileNotFoundError:
        raise FileNotFoundError(f'exec: "{argv[0]}": executable file not found in $PATH') from None
    except OSError as error:
        raise OSError(f'exec: "{argv[0]}": {os.strerror(error.errno or 0)}') from None


def _give_up_rights(identity: Identity) -> None:
    if _one_user():
        if identity["uid"] != os.getuid():
            _rename_user(identity["uid"], identity["gid"])
        syscalls.keep_capabilities(identity["capabilities"])
    else:
        for fd in (1, 2):  # only the pipe's owner can open /dev/stdout
            os.fchown(fd, identity["uid"], identity["gid"])
        syscalls.keep_capabilities(identity["capabilities"])
        os.setgroups(identity["groups"])
        os.setresgid(identity["gid"], identity["gid"], identity["gid"])
        os.setresuid(identity["uid"], identity["uid"], identity["uid"])
    linux.die_with_parent()  # a change of user clears it
    if identity["noNewPrivileges"]:
        syscalls.set_no_new_privileges()


def _one_user() -> bool:
    """Whether this user namespace maps a single user (a rootless cluster): then nobody else can be had."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split()[2:] == ["1"]


def _rename_user(uid: int, gid: int) -> None:
    """Without root's rights: stay who we are, under the pod's numbers, in one more user namespace."""
    linux.unshare(linux.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} 0 1"), ("gid_map", f"{gid} 0 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _join(pid: int) -> None:
    """Enter the namespaces of a running container; what is forked next is inside its process-id namespace."""
    flags = 0
    for name, flag in _NAMESPACES.items():
        if os.readlink(f"/proc/self/ns/{name}") != os.readlink(f"/proc/{pid}/ns/{name}"):
            flags |= flag
    syscalls.setns(os.pidfd_open(pid), flags)


def _wait(child: int) -> int:
    while True:
        number = signal.sigwait(_SIGNALS)
        if number == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        else:
            os.kill(child, signal.SIGKILL if number == signal.SIGUSR1 else number)


def _report(status: int, message: dict[str, object]) -> None:
    os.write(status, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
