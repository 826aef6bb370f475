"""The pod's network, as gloo and NCCL want to be told of it."""

from __future__ import annotations

import fcntl
import socket
import struct

from .errors import TrainerError


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
