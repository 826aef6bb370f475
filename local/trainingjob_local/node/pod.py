"""One pod on this node, from the moment it is bound until its object is gone."""

import asyncio
import logging
import shutil
from datetime import UTC, datetime
from typing import Any

from trainingjob_local.node import fields, podnet, status, volumes
from trainingjob_local.node.addresses import AddressesExhausted
from trainingjob_local.node.container import ContainerRunner
from trainingjob_local.node.context import PodPlace, Services
from trainingjob_local.node.hosts import DOMAIN, host_name
from trainingjob_local.node.hostsfiles import HostsFiles
from trainingjob_local.node.kube import STRATEGIC_PATCH, ApiError, Object, RequestErrors
from trainingjob_local.node.logs import LogFile

_PREFIX_LENGTH = 24
_FIRST_RETRY, _LONGEST_RETRY = 0.5, 122.0  # of what can't be set up, as a kubelet's volume manager
_DEFAULT_GRACE = 30

log = logging.getLogger(__name__)


class PodWorker:
    """Carries out one pod; `update` and `gone` tell it what the API server says."""

    def __init__(self, services: Services, hosts: HostsFiles, pod: Object) -> None:
        self._services = services
        self._hosts = hosts
        self._pod = pod
        self._place = PodPlace.of(services.config, pod)
        self._start_time = pod.get("status", {}).get("startTime") or status.timestamp()
        self._conditions: list[Object] = pod.get("status", {}).get("conditions", [])
        self._address = ""
        self._verdict: tuple[str, str, str] | None = None  # phase, reason, message that the containers don't tell
        self._delete_requested = asyncio.Event()
        self._gone = False
        self._stopping: float | None = None  # the grace that the containers were given
        self._dirty = asyncio.Event()
        self._written: Object = {}
        self._writing = asyncio.Lock()
        self._init = self._runners("initContainers", "initContainerStatuses", init=True)
        self._main = self._runners("containers", "containerStatuses", init=False)
        self._note_deletion()

    # --- what the API server says

    def update(self, pod: Object) -> None:
        """The pod's object changed."""
        self._pod = pod
        self._note_deletion()

    def gone(self, pod: Object | None = None) -> None:
        """The pod's object is no more; `pod` is how it was last, where the watch told."""
        self._gone = True
        self._pod = pod or self._pod
        self._delete_requested.set()

    def log(self, container: str, *, previous: bool) -> LogFile:
        """A container's log; raises LookupError with a kubelet's message when there is none."""
        name = self._pod["metadata"]["name"]
        for runner in (*self._init, *self._main):
            if runner.spec["name"] == container:
                found = runner.log(previous=previous)
                if found is None and previous:
                    raise LookupError(f'previous terminated container "{container}" in pod "{name}" not found')
                if found is None:
                    reason = runner.state.state.get("waiting", {}).get("reason", "no log")
                    raise LookupError(f'container "{container}" in pod "{name}" is waiting to start: {reason}')
                return found
        raise LookupError(f"container {container} is not valid for pod {name}")

    def _note_deletion(self) -> None:
        if self._pod["metadata"].get("deletionTimestamp"):
            self._delete_requested.set()
            if self._stopping is not None and self._grace() < self._stopping:
                self._hurry = asyncio.create_task(self._stop_all())  # asked again, with less grace

    def _grace(self) -> float:
        spec, metadata = self._pod["spec"], self._pod["metadata"]
        asked = metadata.get("deletionGracePeriodSeconds")
        return float(spec.get("terminationGracePeriodSeconds", _DEFAULT_GRACE) if asked is None else asked)

    # --- the pod's life

    async def run(self) -> None:
        """Carry the pod out; returns when its object is gone. Cancelling leaves everything as it is."""
        writer = asyncio.create_task(self._write_changes())
        try:
            if self._pod.get("status", {}).get("phase") not in status.FINISHED:
                await self._run_containers()
                await self._write()
            await self._delete_requested.wait()
            await self._confirm_deletion()
        finally:
            writer.cancel()
        self._services.events.forget(self._pod["metadata"]["uid"])
        await asyncio.to_thread(shutil.rmtree, self._place.directory, ignore_errors=True)

    async def _run_containers(self) -> None:
        refused = fields.unsupported(self._pod["spec"])
        if refused:
            message = "this node does not implement " + ", ".join(refused)
            self._services.events.record(self._pod, "UnsupportedPodField", message, warning=True)
            self._verdict = ("Failed", "UnsupportedPodField", message)
            return
        lifetime = asyncio.create_task(self._live())
        deletion = asyncio.create_task(self._delete_requested.wait())
        await asyncio.wait({lifetime, deletion}, timeout=self._seconds_left(), return_when="FIRST_COMPLETED")
        if not lifetime.done() and not deletion.done():
            self._verdict = ("Failed", "DeadlineExceeded", "Pod was active on the node longer than its deadline")
            self._services.events.record(self._pod, "DeadlineExceeded", self._verdict[2])
        lifetime.cancel()
        deletion.cancel()
        await asyncio.wait({lifetime})
        if not lifetime.cancelled() and (error := lifetime.exception()) is not None:
            log.error("pod %s ends by a fault of the node", self._pod["metadata"]["name"], exc_info=error)
            self._verdict = ("Failed", "NodeFault", repr(error))
        await self._stop_containers()
        await self._tear_down()

    async def _live(self) -> None:
        """From nothing to the end of the last container."""
        if self._phase() in status.FINISHED:  # ended with the node's former life
            return
        await self._until_done(self._make_network, "FailedCreatePodSandBox")
        self._changed()
        await self._until_done(self._make_volumes, "FailedMount")
        for runner in self._init:
            if await runner.run() != 0:
                return
        await asyncio.gather(*(runner.run() for runner in self._main))

    async def _until_done(self, step: Any, reason: str) -> None:
        pause = _FIRST_RETRY
        while True:
            try:
                await step()
                return
            except (volumes.MountFailed, AddressesExhausted, OSError, *RequestErrors) as error:
                self._services.events.record(self._pod, reason, str(error), warning=True)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_RETRY)

    async def _make_network(self) -> None:
        config = self._services.config
        host = host_name(self._pod)
        security = self._pod["spec"].get("securityContext") or {}
        sysctls = {item["name"]: item["value"] for item in security.get("sysctls", [])}
        address = self._services.addresses.take()
        making = asyncio.ensure_future(
            podnet.create(config.bridge, address, _PREFIX_LENGTH, config.address, host, sysctls)
        )
        try:
            self._place.network = await asyncio.shield(making)
        except asyncio.CancelledError:
            self._place.network = await making
            raise
        except OSError:
            self._services.addresses.release(address)
            raise
        self._address = address
        self._make_etc(host)

    def _make_etc(self, host: str) -> None:
        namespace = self._pod["metadata"]["namespace"]
        searched = " ".join((f"{namespace}.svc.{DOMAIN}", f"svc.{DOMAIN}", DOMAIN))
        self._place.etc("hosts").parent.mkdir(parents=True, exist_ok=True)
        self._place.etc("hostname").write_text(f"{host}\n")
        # A name that /etc/hosts lacks does not exist, as the cluster's DNS would say; who asks there all the same (gRPC
        # reads no nsswitch.conf) is refused at once.
        self._place.etc("nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        self._place.etc("resolv.conf").write_text(f"search {searched}\nnameserver 127.0.0.1\noptions ndots:5\n")
        self._hosts.add(self._pod, self._address, self._place.etc("hosts"))

    async def _make_volumes(self) -> None:
        pod = self._view()
        for volume in pod["spec"].get("volumes", []):
            await volumes.make(self._services.client, pod, volume, self._place.volume(volume["name"]))

    # --- its end

    async def _stop_containers(self) -> None:
        for runner in self._alive():
            self._services.events.record(self._pod, "Killing", f"Stopping container {runner.spec['name']}")
        await self._stop_all()
        if self._delete_requested.is_set() or self._verdict:
            for runner in self._main:
                if runner.state.exit_code is None:
                    self._lose(runner.state)
        if self._verdict is None and self._delete_requested.is_set():
            failed = any(runner.state.exit_code for runner in self._main)
            self._verdict = ("Failed" if failed else "Succeeded", "", "")
        self._changed()

    async def _stop_all(self) -> None:
        self._stopping = grace = self._grace()
        await asyncio.gather(*(runner.stop(grace) for runner in self._alive()))

    def _alive(self) -> list[ContainerRunner]:
        return [runner for runner in (*self._init, *self._main) if runner.alive]

    async def _tear_down(self) -> None:
        self._hosts.remove(self._pod)
        for volume in self._pod["spec"].get("volumes", []):
            await asyncio.to_thread(volumes.remove, self._place.volume(volume["name"]))
        network, self._place.network = self._place.network, None
        if network is not None:
            await network.close()
            self._services.addresses.release(network.address)

    async def _confirm_deletion(self) -> None:
        """Tell the API server that nothing runs any more: it removes the object."""
        metadata = self._pod["metadata"]
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        pause = 0.1
        while not self._gone:
            try:
                await self._services.client.delete(self._path(), body)
                return
            except ApiError as error:
                if error.code in (404, 409):
                    return
                log.warning("pod %s can't be deleted: %s", metadata["name"], error)
            except RequestErrors as error:
                log.warning("pod %s can't be deleted: %s", metadata["name"], error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5)

    # --- its status

    def _runners(self, field: str, status_field: str, *, init: bool) -> list[ContainerRunner]:
        known = {item["name"]: item for item in self._pod.get("status", {}).get(status_field) or []}
        runners = []
        for spec in self._pod["spec"].get(field) or []:
            state = status.ContainerState(spec["name"], spec["image"])
            if spec["name"] in known:
                self._restore(state, known[spec["name"]])
            runners.append(
                ContainerRunner(self._services, self._place, self._view, spec, state, self._changed, init=init)
            )
        return runners

    def _restore(self, state: status.ContainerState, known: Object) -> None:
        """Take over what an earlier life of this node wrote; what ran then has ended with it."""
        state.restarts = known.get("restartCount", 0)
        state.container_id = known.get("containerID", "")
        state.last = known.get("lastState") or {}
        if "terminated" in known.get("state", {}):
            state.state = known["state"]
        elif "running" in known.get("state", {}):
            self._lose(state, known["state"]["running"].get("startedAt"))

    @staticmethod
    def _lose(state: status.ContainerState, started: str | None = None) -> None:
        text = "The container could not be located when the pod was terminated"
        now = status.timestamp()
        state.state = status.terminated(137, started or now, now, text, "ContainerStatusUnknown", state.container_id)
        state.ready = state.started = False

    def _seconds_left(self) -> float | None:
        seconds = self._pod["spec"].get("activeDeadlineSeconds")
        if seconds is None:
            return None
        elapsed = datetime.now(UTC) - datetime.fromisoformat(self._start_time.replace("Z", "+00:00"))
        return max(0.0, float(seconds) - elapsed.total_seconds())

    def _view(self) -> Object:
        """The pod with the addresses that this node gave it."""
        return self._pod | {"status": self._pod.get("status", {}) | self._addresses()}

    def _addresses(self) -> Object:
        host = self._services.config.address
        given: Object = {"hostIP": host, "hostIPs": [{"ip": host}]}
        return given | ({"podIP": self._address, "podIPs": [{"ip": self._address}]} if self._address else {})

    def _changed(self) -> None:
        self._dirty.set()

    def _phase(self) -> str:
        init, main = [runner.state for runner in self._init], [runner.state for runner in self._main]
        return status.phase(self._pod["spec"]["restartPolicy"], init, main)

    def _status(self) -> Object:
        init, main = [runner.state for runner in self._init], [runner.state for runner in self._main]
        phase, reason, message = self._verdict or (self._phase(), "", "")
        self._conditions = status.conditions(
            phase,
            init,
            main,
            has_network=self._place.network is not None,
            previous=self._conditions,
            now=status.timestamp(),
        )
        made: Object = {"phase": phase, "startTime": self._start_time, "conditions": self._conditions}
        made |= self._addresses()
        made |= {"reason": reason, "message": message} if reason else {}
        made["containerStatuses"] = [state.to_api() for state in main]
        return made | ({"initContainerStatuses": [state.to_api() for state in init]} if init else {})

    async def _write_changes(self) -> None:
        self._changed()
        while not self._gone:  # a write for a pod that is gone does not wait for anything: it would be tried for ever
            await self._dirty.wait()
            if self._pod.get("status", {}).get("phase") in status.FINISHED:
                return
            await self._write()

    async def _write(self) -> None:
        """Bring the status to the API server, until it has it or the pod is gone."""
        pause = 0.1
        async with self._writing:
            while not self._gone:
                self._dirty.clear()
                wanted = self._status()
                if wanted == self._written:
                    return
                # A strategic patch would add addresses to those of the node's former life.
                replaced = {key: [{"$patch": "replace"}, *wanted[key]] for key in ("podIPs",) if key in wanted}
                body = {"metadata": {"uid": self._pod["metadata"]["uid"]}, "status": wanted | replaced}
                try:
                    await self._services.client.patch(f"{self._path()}/status", body, STRATEGIC_PATCH)
                except ApiError as error:
                    if error.code in (404, 409):
                        return
                    log.warning("status of pod %s refused: %s", self._pod["metadata"]["name"], error)
                except RequestErrors as error:
                    log.warning("status of pod %s not written: %s", self._pod["metadata"]["name"], error)
                else:
                    self._written = wanted
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5)

    def _path(self) -> str:
        metadata = self._pod["metadata"]
        return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
