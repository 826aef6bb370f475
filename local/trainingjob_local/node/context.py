"""What the parts of a pod share: the node's services, and the pod's own place on it."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from trainingjob_local.node.addresses import AddressPool
from trainingjob_local.node.config import NodeConfig
from trainingjob_local.node.events import EventRecorder
from trainingjob_local.node.kube import KubeClient, Object
from trainingjob_local.node.podnet import PodNetwork

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Services:
    """What the node offers to all of its pods."""

    config: NodeConfig
    client: KubeClient
    events: EventRecorder
    addresses: AddressPool
    probes: aiohttp.ClientSession
    image: tuple[str, ...] = field(default_factory=lambda: image_paths())

    def base_environment(self, host: str) -> dict[str, str]:
        """All that a container gets besides what its pod declares: what images, runtimes and kubelets set."""
        server = urlsplit(self.client.server)
        at = server.hostname or ""
        return {
            "PATH": f"{sys.prefix}/bin:{_SYSTEM_PATH}",
            "LANG": "C.UTF-8",
            "HOSTNAME": host,
            # A pod's own loopback is not the node's.
            "KUBERNETES_SERVICE_HOST": self.config.address if at.startswith("127.") else at,
            "KUBERNETES_SERVICE_PORT": str(server.port or 443),
        }


@dataclass
class PodPlace:
    """A pod's files on the node: volumes, logs, /etc/hosts; and its network, while it has one."""

    directory: Path
    network: PodNetwork | None = None

    @classmethod
    def of(cls, config: NodeConfig, pod: Object) -> "PodPlace":
        """The place of this pod, by its uid."""
        return cls(config.root / "pods" / pod["metadata"]["uid"])

    def volume(self, name: str) -> Path:
        """Where a volume is."""
        return self.directory / "volumes" / name

    def log(self, container: str, run: int) -> Path:
        """The log of a container's run (0 is its first)."""
        return self.directory / "logs" / container / f"{run}.log"

    def termination_message(self, container: str, run: int) -> Path:
        """The file behind terminationMessagePath."""
        return self.directory / "termination" / f"{container}.{run}"

    def pid(self, container: str) -> Path:
        """A file with the process id of the container's first process, for people (nsenter) and tests."""
        return self.directory / f"{container}.pid"

    def etc(self, name: str) -> Path:
        """A file that the node provides in /etc."""
        return self.directory / "etc" / name


def image_paths() -> tuple[str, ...]:
    """The "image": this Python environment, its interpreter and all that it imports from elsewhere."""
    prefixes = (sys.prefix, sys.base_prefix)
    outside = [path for path in sys.path if path and Path(path).is_dir() and not path.startswith(prefixes)]
    paths = {str(path) for path in (*prefixes, *outside)}
    return tuple(sorted(paths | {os.path.realpath(path) for path in paths}))
