"""The node's settings, read once from its command line."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_CAPACITY = "cpu=16,memory=64Gi"
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")


@dataclass(frozen=True)
class NodeConfig:
    """One node: its name, where it keeps its files, its network, its kubelet API and what it claims to have."""

    name: str
    kubeconfig: Path
    root: Path
    bridge: str
    address: str  # of the node, on the bridge; also the pods' gateway
    port: int  # of the kubelet API
    tls_cert: Path
    tls_key: Path
    client_ca: Path
    pod_ips: str  # first-last
    capacity: dict[str, str]


def parse(arguments: list[str] | None = None) -> NodeConfig:
    """Settings from the command line; exits with a message when they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m trainingjob_local.node", description="A node of the local cluster")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--root", type=Path, required=True, help="directory for volumes, logs and the like")
    parser.add_argument("--bridge", default="tj0")
    parser.add_argument("--address", required=True, help="IP:PORT of the kubelet API")
    parser.add_argument("--tls-cert", type=Path, required=True)
    parser.add_argument("--tls-key", type=Path, required=True)
    parser.add_argument("--client-ca", type=Path, required=True)
    parser.add_argument("--pod-ips", required=True, help="FIRST-LAST")
    parser.add_argument("--capacity", type=_capacity, default=DEFAULT_CAPACITY, help="cpu=16,memory=64Gi,...")
    given = parser.parse_args(arguments)
    address, _, port = given.address.rpartition(":")
    if not address or not port.isdecimal():
        parser.error("--address must be IP:PORT")
    return NodeConfig(
        name=given.name,
        kubeconfig=given.kubeconfig,
        root=given.root.resolve(),
        bridge=given.bridge,
        address=address,
        port=int(port),
        tls_cert=given.tls_cert,
        tls_key=given.tls_key,
        client_ca=given.client_ca,
        pod_ips=given.pod_ips,
        capacity=given.capacity,
    )


def _capacity(text: str) -> dict[str, str]:
    """`name=quantity,...`; pods and ephemeral storage have defaults."""
    capacity = {"pods": "110", "ephemeral-storage": "100Gi"}
    for item in text.split(","):
        name, separator, value = item.partition("=")
        if not name or not separator or not _QUANTITY.fullmatch(value):
            raise argparse.ArgumentTypeError(f"{item!r} is not NAME=QUANTITY")
        capacity[name] = value
    return capacity
