"""Kubernetes events of this node's pods; what repeats is counted in one event, as a kubelet does."""

import asyncio
import logging
import secrets
from datetime import UTC, datetime

from trainingjob_local.node.kube import KubeClient, Object, RequestErrors

log = logging.getLogger(__name__)


class EventRecorder:
    """Writes events in the background, in order; what can't be written is logged and dropped."""

    def __init__(self, client: KubeClient, node: str) -> None:
        self._client = client
        self._node = node
        self._queue: asyncio.Queue[tuple[Object, str, str, str]] = asyncio.Queue()
        self._written: dict[tuple[str, str, str], tuple[str, int]] = {}  # (uid, reason, message) -> (name, count)

    def record(self, pod: Object, reason: str, message: str, *, warning: bool = False) -> None:
        """Record an event about a pod."""
        log.info("pod %s/%s: %s: %s", pod["metadata"]["namespace"], pod["metadata"]["name"], reason, message)
        self._queue.put_nowait((pod, "Warning" if warning else "Normal", reason, message[:1024]))

    def forget(self, uid: str) -> None:
        """The pod is gone: its events need no counting any more."""
        self._written = {key: value for key, value in self._written.items() if key[0] != uid}

    async def run(self) -> None:
        """Write events until cancelled."""
        while True:
            pod, kind, reason, message = await self._queue.get()
            try:
                await self._write(pod, kind, reason, message)
            except RequestErrors as error:
                log.warning("event %s of pod %s is lost: %s", reason, pod["metadata"]["name"], error)

    async def _write(self, pod: Object, kind: str, reason: str, message: str) -> None:
        metadata = pod["metadata"]
        key = (metadata["uid"], reason, message)
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        events = f"/api/v1/namespaces/{metadata['namespace']}/events"
        if key in self._written:
            name, count = self._written[key]
            await self._client.patch(f"{events}/{name}", {"count": count + 1, "lastTimestamp": now})
            self._written[key] = (name, count + 1)
            return
        name = f"{metadata['name']}.{secrets.token_hex(8)}"
        involved = {"apiVersion": "v1", "kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"]}
        await self._client.post(
            events,
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": metadata["namespace"]},
                "involvedObject": {**involved, "uid": metadata["uid"]},
                "reason": reason,
                "message": message,
                "type": kind,
                "count": 1,
                "firstTimestamp": now,
                "lastTimestamp": now,
                "source": {"component": "kubelet", "host": self._node},
                "reportingComponent": "kubelet",
                "reportingInstance": self._node,
            },
        )
        self._written[key] = (name, 1)
