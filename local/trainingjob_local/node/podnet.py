"""A pod's network, IPC and UTS namespaces: made by a thread that enters them and ends, held by descriptors.

When the node closes them (or dies) and the pod's processes are gone, the kernel removes them, and the veth pair.
"""

import asyncio
import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from trainingjob_local import linux
from trainingjob_local.node import syscalls

_INTERFACE = "eth0"


@dataclass(frozen=True)
class PodNetwork:
    """A pod's namespaces, as descriptors (network, IPC, UTS), and its host-side interface."""

    address: str
    namespaces: tuple[int, ...]
    link: str

    async def close(self) -> None:
        """Release the namespaces and remove the interface."""
        for fd in self.namespaces:
            os.close(fd)
        await asyncio.to_thread(self._remove_link)

    def _remove_link(self) -> None:
        with IPRoute() as ip, contextlib.suppress(NetlinkError):
            for index in ip.link_lookup(ifname=self.link):
                ip.link("del", index=index)


def link_of(address: str) -> str:
    """Name of the host-side interface of the pod with this address."""
    return "tj" + "".join(f"{int(part):02x}" for part in address.split("."))


async def create(
    bridge: str, address: str, prefix: int, gateway: str, host: str, sysctls: dict[str, str]
) -> PodNetwork:
    """Make a pod's namespaces: `address`/`prefix` on eth0 behind a veth pair into `bridge`; raises OSError."""
    return await asyncio.to_thread(_create, bridge, address, prefix, gateway, host, sysctls)


def _create(bridge: str, address: str, prefix: int, gateway: str, host: str, sysctls: dict[str, str]) -> PodNetwork:
    link = link_of(address)
    maker = _Maker(address, prefix, gateway, host, sysctls)
    maker.start()
    maker.made.wait()
    try:
        if maker.namespaces:
            peer = {"ifname": _INTERFACE, "net_ns_fd": maker.namespaces[0], "address": _mac(address)}
            with IPRoute() as ip:
                (index,) = ip.link_lookup(ifname=bridge)
                ip.link("add", ifname=link, kind="veth", peer=peer, master=index, state="up")
    except (NetlinkError, ValueError) as error:
        maker.error = maker.error or OSError(f"pod network: {error}")
    finally:
        maker.linked.set()
        maker.join()
    if maker.error:
        for fd in maker.namespaces:
            os.close(fd)
        raise maker.error
    return PodNetwork(address, tuple(maker.namespaces), link)


class _Maker(threading.Thread):
    """Leaves the node's namespaces for new ones, so it must end, and never be a pool's thread."""

    def __init__(self, address: str, prefix: int, gateway: str, host: str, sysctls: dict[str, str]) -> None:
        super().__init__(name=f"pod-network-{address}", daemon=True)
        self.made = threading.Event()
        self.linked = threading.Event()
        self.namespaces: list[int] = []
        self.error: OSError | None = None
        self._address = address
        self._prefix = prefix
        self._gateway = gateway
        self._host = host
        self._sysctls = sysctls

    def run(self) -> None:
        try:
            linux.unshare(linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
            syscalls.sethostname(self._host)
            names = ("net", "ipc", "uts")
            self.namespaces = [os.open(f"/proc/thread-self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in names]
            self.made.set()
            self.linked.wait()
            if self.error is None:
                self._configure()
        except NetlinkError as error:
            self.error = OSError(f"pod network: {error}")
        except OSError as error:
            self.error = error
        finally:
            self.made.set()

    def _configure(self) -> None:
        for name, value in self._sysctls.items():
            Path("/proc/sys", *name.split(".")).write_text(value)
        with IPRoute() as ip:
            for name in ("lo", _INTERFACE):
                (index,) = ip.link_lookup(ifname=name)
                if name == _INTERFACE:
                    ip.addr("add", index=index, address=self._address, prefixlen=self._prefix)
                ip.link("set", index=index, state="up")
            ip.route("add", dst="default", gateway=self._gateway)


def _mac(address: str) -> str:
    """A hardware address that belongs to the IP address: one that is used again stays right in neighbours' caches."""
    return "0a:58:" + ":".join(f"{int(part):02x}" for part in address.split("."))
