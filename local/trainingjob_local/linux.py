"""The few Linux calls that Python 3.11 does not offer: unshare, mount, and the parent-death signal.

See unshare(2), mount(2) and PR_SET_PDEATHSIG in prctl(2).
"""

import ctypes
import os
import signal
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Move this process (or with CLONE_NEWPID: its future children) to new namespaces; raises OSError."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str | Path, filesystem: str | None, flags: int, options: str = "") -> None:
    """Mount `source` at `target`; raises OSError."""
    kind = filesystem.encode() if filesystem else None
    result = _libc.mount(source.encode(), os.fsencode(target), kind, ctypes.c_ulong(flags), options.encode() or None)
    _check(result, f"mount {target}")


def die_with_parent() -> None:
    """Ask the kernel to SIGKILL this process when its parent ends.

    "Parent" is the thread that forked: the caller must not fork from a thread that ends early.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def _check(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")
