"""Startup, readiness and liveness probes: httpGet and tcpSocket to the pod's address, exec in the container."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from trainingjob_local.node.kube import Object
from trainingjob_local.node.process import StartFailed


class ProbeFailed(Exception):
    """The probe's answer was no; the message is for the event."""


class Outcomes(Protocol):
    """What a container's probes report to."""

    def startup_succeeded(self) -> None:
        """The container has started: the other probes begin."""

    def readiness_changed(self, ready: bool) -> None:
        """The readiness threshold was crossed."""

    def unhealthy(self, message: str) -> None:
        """One probe failed."""

    def must_restart(self, kind: str, probe: Object) -> None:
        """The failure threshold of a startup or liveness probe was reached."""


RunCommand = Callable[[list[str], float], Awaitable[tuple[int, str]]]


@dataclass(frozen=True)
class Target:
    """Where the probes of one container go."""

    address: str
    ports: dict[str, int]  # by name
    run: RunCommand
    session: aiohttp.ClientSession


async def watch(container: Object, target: Target, outcomes: Outcomes) -> None:
    """Run the container's probes until cancelled."""
    startup = container.get("startupProbe")
    if startup and not await _until_started(startup, target, outcomes):
        return
    outcomes.startup_succeeded()
    tasks: list[Coroutine[Any, Any, object]] = []
    if "readinessProbe" in container:
        tasks.append(_watch_readiness(container["readinessProbe"], target, outcomes))
    else:
        outcomes.readiness_changed(True)
    if "livenessProbe" in container:
        tasks.append(_watch_liveness("liveness", container["livenessProbe"], target, outcomes))
    await asyncio.gather(*tasks)


async def _until_started(probe: Object, target: Target, outcomes: Outcomes) -> bool:
    return await _watch_liveness("startup", probe, target, outcomes, until_success=True)


async def _watch_readiness(probe: Object, target: Target, outcomes: Outcomes) -> None:
    ready, streak, streak_of = False, 0, False
    await asyncio.sleep(probe.get("initialDelaySeconds", 0))
    while True:
        good = await _ask("Readiness", probe, target, outcomes)
        streak = streak + 1 if good == streak_of else 1
        streak_of = good
        threshold = probe.get("successThreshold", 1) if good else probe.get("failureThreshold", 3)
        if good != ready and streak >= threshold:
            ready = good
            outcomes.readiness_changed(ready)
        await asyncio.sleep(probe.get("periodSeconds", 10))


async def _watch_liveness(
    kind: str, probe: Object, target: Target, outcomes: Outcomes, *, until_success: bool = False
) -> bool:
    """Probe until the failure threshold is reached (False) or, with `until_success`, an answer is yes (True)."""
    failures = 0
    await asyncio.sleep(probe.get("initialDelaySeconds", 0))
    while True:
        if await _ask(kind.capitalize(), probe, target, outcomes):
            failures = 0
            if until_success:
                return True
        else:
            failures += 1
            if failures >= probe.get("failureThreshold", 3):
                outcomes.must_restart(kind, probe)
                return False
        await asyncio.sleep(probe.get("periodSeconds", 10))


async def _ask(kind: str, probe: Object, target: Target, outcomes: Outcomes) -> bool:
    try:
        await _probe(probe, target, probe.get("timeoutSeconds", 1))
    except ProbeFailed as error:
        outcomes.unhealthy(f"{kind} probe failed: {error}")
        return False
    return True


async def _probe(probe: Object, target: Target, timeout: float) -> None:
    if "httpGet" in probe:
        await _http_get(probe["httpGet"], target, timeout)
    elif "tcpSocket" in probe:
        await _connect(target.address, _port(probe["tcpSocket"], target), timeout)
    else:
        await _exec(probe["exec"].get("command", []), target, timeout)


async def _http_get(action: Object, target: Target, timeout: float) -> None:
    scheme = action.get("scheme", "HTTP").lower()
    path = action.get("path", "/")
    url = f"{scheme}://{target.address}:{_port(action, target)}{path if path.startswith('/') else '/' + path}"
    headers = {"User-Agent": "kube-probe/1.37"} | {
        item["name"]: item["value"] for item in action.get("httpHeaders", [])
    }
    limit = aiohttp.ClientTimeout(total=timeout)
    try:
        # As a kubelet: certificates are not checked, and redirects count as success without being followed elsewhere.
        async with target.session.get(url, headers=headers, timeout=limit, ssl=False, allow_redirects=False) as answer:
            if not 200 <= answer.status < 400:
                raise ProbeFailed(f"HTTP probe failed with statuscode: {answer.status}")
    except TimeoutError:
        raise ProbeFailed(f'Get "{url}": context deadline exceeded (no answer in {timeout} s)') from None
    except (aiohttp.ClientError, OSError) as error:
        raise ProbeFailed(f'Get "{url}": {error}') from error


async def _connect(address: str, port: int, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError) as error:
        raise ProbeFailed(f"dial tcp {address}:{port}: {error or 'i/o timeout'}") from error
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _exec(command: list[str], target: Target, timeout: float) -> None:
    try:
        code, output = await target.run(command, timeout)
    except TimeoutError:
        raise ProbeFailed(f"command {command} timed out after {timeout} s") from None
    except StartFailed as error:
        raise ProbeFailed(str(error)) from error
    if code != 0:
        raise ProbeFailed(output or f"command {command} ended with exit code {code}")


def _port(action: Object, target: Target) -> int:
    port = action["port"]
    if isinstance(port, int):
        return port
    if port not in target.ports:
        raise ProbeFailed(f"the container has no port named {port!r}")
    return target.ports[port]
