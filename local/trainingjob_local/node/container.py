"""One container of a pod: configured, started, probed, and started again as the restartPolicy says."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable

from trainingjob_local.node import environment, probes, status
from trainingjob_local.node.context import PodPlace, Services
from trainingjob_local.node.environment import ConfigError
from trainingjob_local.node.hosts import host_name
from trainingjob_local.node.identity import identity
from trainingjob_local.node.kube import ApiError, Object, RequestErrors
from trainingjob_local.node.logs import LogFile
from trainingjob_local.node.plan import ExecPlan, Mount, Plan, Process
from trainingjob_local.node.process import ContainerProcess, StartFailed, execute
from trainingjob_local.node.references import read_text

# Durations in seconds; those of a kubelet, but for the configuration's retry (10).
_CONFIG_RETRY = 2.0
_FIRST_BACKOFF, _LONGEST_BACKOFF, _BACKOFF_FORGOTTEN = 10.0, 300.0, 600.0
_SHORTEST_GRACE = 2.0

_NO_SUCH_REGISTRY = "missing.invalid/"  # images of this registry can't be pulled; see the README
_MESSAGE_LIMIT = 4096
_FALLBACK_LINES, _FALLBACK_LIMIT = 80, 2048


class ContainerRunner:
    """Runs one container. `pod` gives the pod's manifest with its addresses; `changed` is called on each new state."""

    def __init__(
        self,
        services: Services,
        place: PodPlace,
        pod: Callable[[], Object],
        spec: Object,
        state: status.ContainerState,
        changed: Callable[[], None],
        *,
        init: bool = False,
    ) -> None:
        self.spec = spec
        self.state = state
        self._services = services
        self._place = place
        self._pod = pod
        self._changed = changed
        policy = pod()["spec"]["restartPolicy"]
        self._policy = "OnFailure" if init and policy == "Always" else policy
        self._init = init
        self._process: ContainerProcess | None = None
        self._probing: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._logs: dict[int, LogFile] = {}

    async def run(self) -> int:
        """Run until it has ended for good; returns the exit code. Cancelling leaves a running process running."""
        backoff = 0.0
        while self.state.exit_code is None or status.restarts(self._policy, self.state.exit_code):
            if self.state.exit_code is not None:
                await self._back_off(backoff)
                backoff = min(max(backoff * 2, _FIRST_BACKOFF), _LONGEST_BACKOFF)
            began = asyncio.get_running_loop().time()
            process = await self._until_started()
            if process is not None:
                await asyncio.shield(process.exited)
                await asyncio.sleep(0)  # the state is set by a callback of `exited`
            if asyncio.get_running_loop().time() - began > _BACKOFF_FORGOTTEN:
                backoff = 0.0
        assert self.state.exit_code is not None
        return self.state.exit_code

    async def stop(self, grace: float) -> None:
        """End the process, if it runs: SIGTERM, `grace` seconds, SIGKILL."""
        if self._process is not None and not self._process.exited.done():
            await self._process.stop(max(grace, _SHORTEST_GRACE))
            await asyncio.sleep(0)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and not self._process.exited.done()

    def log(self, *, previous: bool) -> LogFile | None:
        """The log of the current or last run, or of the one before; None if there is none."""
        run = self.state.restarts - (1 if previous else 0)
        path = self._place.log(self.spec["name"], run)
        if run not in self._logs and path.exists():  # written before the node was started again
            self._logs[run] = LogFile(path)
            self._logs[run].close()
        return self._logs.get(run)

    # --- starting

    async def _until_started(self) -> ContainerProcess | None:
        """Start the command; waits for what is missing. None if it could not be executed: that is an exit."""
        pull_backoff = _FIRST_BACKOFF
        while True:
            if self.spec["image"].startswith(_NO_SUCH_REGISTRY):
                await self._fail_to_pull(pull_backoff)
                pull_backoff = min(pull_backoff * 2, _LONGEST_BACKOFF)
                continue
            try:
                process = await self._configure()
            except (ConfigError, *RequestErrors) as error:
                self._wait("CreateContainerConfigError", str(error))
                self._record("Failed", f"Error: {error}", warning=True)
                await asyncio.sleep(_CONFIG_RETRY)
                continue
            starting = asyncio.create_task(self._start(process))
            try:
                return await asyncio.shield(starting)
            except asyncio.CancelledError:
                await starting  # so that whoever stops the pod finds the process
                raise

    async def _start(self, process: Process) -> ContainerProcess | None:
        if self.state.exit_code is not None or "terminated" in self.state.last:
            self.state.restarts += 1
        name, run = self.spec["name"], self.state.restarts
        log_path, message = self._place.log(name, run), self._place.termination_message(name, run)
        for path in (log_path, message):
            path.parent.mkdir(parents=True, exist_ok=True)
        message.touch()
        message.chmod(0o666)
        log = self._logs[run] = LogFile(log_path)
        container_id = f"process://{secrets.token_hex(16)}"
        began = status.timestamp()
        try:
            started = await ContainerProcess.start(self._plan(process), log)
        except StartFailed as error:
            log.close()
            text = f"failed to start container: {error}"
            self._record("Failed", f"Error: {text}", warning=True)
            self._become(status.terminated(128, began, began, text, "StartError", container_id))
            return None
        self._process = started
        self._place.pid(name).write_text(str(started.pid))
        if self.state.exit_code is not None:
            self.state.last = self.state.state
        self.state.container_id = container_id
        self.state.state = status.running(began)
        self._record("Started", f"Container started: {name}")
        started.exited.add_done_callback(lambda _: self._ended(started, run, began))
        self._begin_probes()
        self._changed()
        return started

    async def _configure(self) -> Process:
        pod, spec = self._pod(), self.spec
        namespace, client = pod["metadata"]["namespace"], self._services.client
        found = {}
        for kind, name, optional in environment.references(spec):
            try:
                found[kind, name] = await read_text(client, kind, namespace, name, True)
            except ApiError as error:
                raise ConfigError(str(error)) from error
            if found[kind, name] is None and not optional:
                raise ConfigError(f'{kind} "{name}" not found')
        declared = environment.resolve(pod, spec, lambda kind, name, optional: found[kind, name])
        command = [*spec.get("command", []), *spec.get("args", [])] or ["python3"]
        return Process(
            argv=[environment.expand(word, declared) for word in command],
            env=self._services.base_environment(host_name(pod)) | declared,
            cwd=spec.get("workingDir") or "/",
            identity=identity(pod, spec),
        )

    def _plan(self, process: Process) -> Plan:
        assert self._place.network is not None
        security = self.spec.get("securityContext") or {}
        return Plan(
            statusFd=-1,
            namespaces=list(self._place.network.namespaces),
            image=list(self._services.image),
            nodeRoot=str(self._services.config.root),
            mounts=self._mounts(),
            readOnlyRoot=bool(security.get("readOnlyRootFilesystem")),
            process=process,
        )

    def _mounts(self) -> list[Mount]:
        written_once = {item["name"] for item in self._pod()["spec"].get("volumes", []) if "emptyDir" not in item}
        mounts = [
            Mount(
                source=str(self._place.volume(item["name"])),
                target=item["mountPath"].rstrip("/"),
                readOnly=bool(item.get("readOnly")) or item["name"] in written_once,
            )
            for item in self.spec.get("volumeMounts", [])
        ]
        names = ("hosts", "hostname", "nsswitch.conf", "resolv.conf")
        provided = {f"/etc/{name}": self._place.etc(name) for name in names}
        provided[self.spec["terminationMessagePath"]] = self._place.termination_message(
            self.spec["name"], self.state.restarts
        )
        taken = {mount["target"] for mount in mounts}
        mounts += [
            Mount(source=str(source), target=target, readOnly=False)
            for target, source in provided.items()
            if target not in taken
        ]
        return sorted(mounts, key=lambda mount: mount["target"].count("/"))

    # --- waiting

    async def _back_off(self, seconds: float) -> None:
        if seconds <= 0:
            return
        name, pod = self.spec["name"], self._pod()["metadata"]
        text = f"back-off {int(seconds)}s restarting failed container={name} pod={pod['name']}_{pod['namespace']}"
        self._record("BackOff", f"Back-off restarting failed container {name}", warning=True)
        self.state.last = self.state.state
        self._wait("CrashLoopBackOff", text)
        await asyncio.sleep(seconds)

    async def _fail_to_pull(self, backoff: float) -> None:
        image = self.spec["image"]
        text = f'failed to pull and unpack image "{image}": no such host'
        self._record("Failed", f'Failed to pull image "{image}": {text}', warning=True)
        self._record("Failed", "Error: ErrImagePull", warning=True)
        self._wait("ErrImagePull", text)
        await asyncio.sleep(1)
        self._record("BackOff", f'Back-off pulling image "{image}"')
        self._record("Failed", "Error: ImagePullBackOff", warning=True)
        self._wait("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {text}')
        await asyncio.sleep(backoff)

    # --- running

    def _begin_probes(self) -> None:
        if self._init:
            self.state.started = True
            return
        assert self._place.network is not None
        ports = {item["name"]: item["containerPort"] for item in self.spec.get("ports", []) if item.get("name")}
        target = probes.Target(self._place.network.address, ports, self._execute, self._services.probes)
        self._probing = asyncio.create_task(probes.watch(self.spec, target, self))

    async def _execute(self, command: list[str], timeout: float) -> tuple[int, str]:
        if self._process is None:
            raise StartFailed("the container does not run")
        process = await self._configure()
        process["argv"] = command
        return await execute(ExecPlan(statusFd=-1, pid=self._process.pid, process=process), timeout)

    def startup_succeeded(self) -> None:
        """The other probes begin."""
        self.state.started = True
        self._changed()

    def readiness_changed(self, ready: bool) -> None:
        """The readiness threshold was crossed."""
        self.state.ready = ready
        self._changed()

    def unhealthy(self, message: str) -> None:
        """One probe failed."""
        self._record("Unhealthy", message, warning=True)

    def must_restart(self, kind: str, probe: Object) -> None:
        """A liveness or startup probe has given the container up."""
        self._record("Killing", f"Container {self.spec['name']} failed {kind} probe, will be restarted")
        default = self._pod()["spec"].get("terminationGracePeriodSeconds", 30)
        grace = float(probe.get("terminationGracePeriodSeconds", default))
        self._stopping = asyncio.create_task(self.stop(grace))

    def _ended(self, process: ContainerProcess, run: int, began: str) -> None:
        if self._probing is not None:
            self._probing.cancel()
        self._place.pid(self.spec["name"]).unlink(missing_ok=True)
        with contextlib.suppress(asyncio.CancelledError):
            code = process.exited.result()
            text = self._termination_message(process.log, run, code)
            self._become(status.terminated(code, began, status.timestamp(), text, container_id=self.state.container_id))

    def _termination_message(self, log: LogFile, run: int, code: int) -> str:
        with self._place.termination_message(self.spec["name"], run).open("rb") as file:
            text = file.read(_MESSAGE_LIMIT).decode(errors="replace")
        if not text and code != 0 and self.spec["terminationMessagePolicy"] == "FallbackToLogsOnError":
            return log.tail(_FALLBACK_LINES, _FALLBACK_LIMIT)
        return text

    def _wait(self, reason: str, message: str) -> None:
        if self.state.exit_code is not None:
            self.state.last = self.state.state
        self._become(status.waiting(reason, message))

    def _become(self, state: Object) -> None:
        self.state.state = state
        self.state.ready = self.state.started = False
        self._changed()

    def _record(self, reason: str, message: str, *, warning: bool = False) -> None:
        self._services.events.record(self._pod(), reason, message, warning=warning)
