"""The pod's network: how pods ask each other, what gloo and NCCL are told of it, what a failed connection tells."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import urllib.request
from typing import Any

from .errors import TrainerError

_NOBODY = (errno.ECONNREFUSED, socket.EAI_NONAME, socket.EAI_NODATA)


def ask_pod(request: str | urllib.request.Request, timeout: float) -> Any:
    """A pod's answer, as `urlopen` has it, but never through a proxy: one that the environment names leads outside."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)


def nobody_there(error: object) -> bool:
    """Whether a connection failed because no process is there: the name has no address, or its port is closed.

    No answer, no route, no DNS: that is what a pod sees that is cut off, or that speaks to one that is.
    """
    return getattr(error, "errno", None) in _NOBODY


def interface_of(ip: str) -> str:
    """Name of the network interface that has address `ip`. Raises `TrainerError`."""
    get_address = 0x8915  # SIOCGIFADDR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, get_address, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == ip:
                return name
    raise TrainerError(f"No network interface of the pod has the address {ip}.", "Look at the pod's network.")
