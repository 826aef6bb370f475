"""The node as a whole: follows the pods that are bound to it, and runs a worker for each."""

import asyncio
import logging
import shutil
from pathlib import Path

import aiohttp

from trainingjob_local.node import api, registration
from trainingjob_local.node.addresses import AddressPool
from trainingjob_local.node.config import NodeConfig
from trainingjob_local.node.context import Services
from trainingjob_local.node.events import EventRecorder
from trainingjob_local.node.hostsfiles import HostsFiles
from trainingjob_local.node.kube import KubeClient, Object
from trainingjob_local.node.logs import LogFile
from trainingjob_local.node.pod import PodWorker

log = logging.getLogger(__name__)


async def run(config: NodeConfig) -> None:
    """Be a node until cancelled."""
    for name in ("pods", "scratch"):
        (config.root / name).mkdir(parents=True, exist_ok=True)
    async with (
        KubeClient.from_kubeconfig(config.kubeconfig) as client,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0)) as probes,
    ):
        services = Services(config, client, EventRecorder(client, config.name), AddressPool(config.pod_ips), probes)
        pods = Pods(services)
        server = await api.serve(config, pods.log)
        registered = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(services.events.run())
                tasks.create_task(pods.hosts.follow(client))
                tasks.create_task(registration.keep_registered(client, config, registered))
                await registered.wait()
                log.info("node %s is ready", config.name)
                tasks.create_task(pods.follow())
        finally:
            await server.cleanup()


class Pods:
    """The workers of this node's pods, by uid."""

    def __init__(self, services: Services) -> None:
        self.hosts = HostsFiles()
        self._services = services
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._names: dict[tuple[str, str], str] = {}  # (namespace, name) -> uid of the newest

    async def follow(self) -> None:
        """Watch the pods that are bound to this node until cancelled."""
        selector = {"fieldSelector": f"spec.nodeName={self._services.config.name}"}
        await self._services.client.follow("/api/v1/pods", selector, self._replace, self._change)

    def log(self, namespace: str, name: str, container: str, previous: bool) -> LogFile:
        """A container's log; raises LookupError."""
        uid = self._names.get((namespace, name), "")
        if uid not in self._workers:
            raise LookupError(f'pod "{name}" in namespace "{namespace}" is not on this node')
        return self._workers[uid].log(container, previous=previous)

    def _replace(self, items: list[Object]) -> None:
        listed = {item["metadata"]["uid"]: item for item in items}
        if not self._workers:
            _remove_strangers(self._services.config.root / "pods", set(listed))
        for uid in set(self._workers) - set(listed):
            self._workers[uid].gone()
        for item in items:
            self._change("MODIFIED", item)

    def _change(self, kind: str, pod: Object) -> None:
        metadata = pod["metadata"]
        uid = metadata["uid"]
        worker = self._workers.get(uid)
        if kind == "DELETED":
            if worker is not None:
                worker.gone(pod)
        elif worker is not None:
            worker.update(pod)
        else:
            worker = self._workers[uid] = PodWorker(self._services, self.hosts, pod)
            self._names[metadata["namespace"], metadata["name"]] = uid
            task = self._tasks[uid] = asyncio.create_task(worker.run())
            task.add_done_callback(lambda task: self._finished(uid, task))

    def _finished(self, uid: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(uid, None)
        self._workers.pop(uid, None)
        self._names = {key: value for key, value in self._names.items() if value != uid}
        if not task.cancelled() and task.exception() is not None:
            log.error("the worker of pod %s failed", uid, exc_info=task.exception())


def _remove_strangers(directory: Path, known: set[str]) -> None:
    """Remove what pods left that are no longer bound to this node."""
    for entry in directory.iterdir():
        if entry.name not in known:
            shutil.rmtree(entry, ignore_errors=True)
