"""The node's own object and its heartbeat."""

import asyncio
import logging
import os
import platform
from datetime import UTC, datetime

from trainingjob_local.node.config import NodeConfig
from trainingjob_local.node.kube import STRATEGIC_PATCH, ApiError, KubeClient, Object, RequestErrors
from trainingjob_local.node.status import timestamp

_LEASE_SECONDS = 40
_RENEW_SECONDS = 3
_SILENCE_SECONDS = 3 * _RENEW_SECONDS
_STATUS_SECONDS = 300
_RETRY_SECONDS = 0.5
_VERSION = "v1.37.2"

log = logging.getLogger(__name__)


async def keep_registered(client: KubeClient, config: NodeConfig, ready: asyncio.Event) -> None:
    """Create the Node, report it ready, renew its Lease; sets `ready` when the first is done. Runs until cancelled."""
    lease: Object = {}
    reported = renewed = float("-inf")
    while True:
        clock = asyncio.get_running_loop().time()
        try:
            # After a silence the node may have been declared lost: only a report takes that back.
            if clock - reported >= _STATUS_SECONDS or clock - renewed >= _SILENCE_SECONDS:
                await _report(client, config)
                reported = clock
            lease = await _renew(client, config.name, lease)
            renewed = clock
            ready.set()
        except RequestErrors as error:
            log.warning("heartbeat failed: %s", error)
            lease = {}
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        await asyncio.sleep(_RENEW_SECONDS)


async def _report(client: KubeClient, config: NodeConfig) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": config.name, "labels": labels(config.name)},
        "spec": {},
    }
    try:
        await client.post("/api/v1/nodes", node)
    except ApiError as error:
        if error.code != 409:
            raise
    await client.patch(f"/api/v1/nodes/{config.name}/status", {"status": node_status(config)}, STRATEGIC_PATCH)


def labels(name: str) -> dict[str, str]:
    """The labels that kubelets give their nodes."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": machine}


def node_status(config: NodeConfig) -> Object:
    """What the node reports: all well, with the capacity that it was told to have."""
    now = timestamp()
    well = {
        "MemoryPressure": ("False", "KubeletHasSufficientMemory", "not measured"),
        "DiskPressure": ("False", "KubeletHasNoDiskPressure", "not measured"),
        "PIDPressure": ("False", "KubeletHasSufficientPID", "not measured"),
        "Ready": ("True", "KubeletReady", "the process node is posting ready status"),
    }
    return {
        "capacity": config.capacity,
        "allocatable": config.capacity,
        "addresses": [
            {"type": "InternalIP", "address": config.address},
            {"type": "Hostname", "address": config.name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": config.port}},
        "conditions": [
            {
                "type": kind,
                "status": value,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            }
            for kind, (value, reason, message) in well.items()
        ],
        "nodeInfo": {
            "architecture": labels(config.name)["kubernetes.io/arch"],
            "operatingSystem": "linux",
            "kernelVersion": os.uname().release,
            "osImage": "the host's, as processes",
            "kubeletVersion": _VERSION,
            "kubeProxyVersion": "",
            "containerRuntimeVersion": "process://1",
            "machineID": "",
            "systemUUID": "",
            "bootID": "",
        },
    }


async def _renew(client: KubeClient, name: str, lease: Object) -> Object:
    """The Lease with a new renewTime; `lease` is what the last renewal returned, or {}."""
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    spec = {"holderIdentity": name, "leaseDurationSeconds": _LEASE_SECONDS, "renewTime": now}
    if lease:
        return await client.put(f"{leases}/{name}", lease | {"spec": spec})
    fresh = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": spec,
    }
    try:
        return await client.post(leases, fresh)
    except ApiError as error:
        if error.code != 409:
            raise
        return await client.patch(f"{leases}/{name}", {"spec": spec})
