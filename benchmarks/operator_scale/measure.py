"""The measured run, in rounds: the floor, the operator with as many jobs, the floor again, and so on.

A machine's speed changes, and a control plane is not the same at its start and later: a round's ratio is to the mean of
the floors before and after it, and what is told is the median of the rounds. In the first, the operator's rest and its
restart are measured as well. KubeRay may take its turn in each, after a floor of its own.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from trainingjob_local.binaries import KUBERAY
from trainingjob_operator.kube.client import Client
from trainingjob_operator.kube.connection import connect

from benchmarks.operator_scale.audit import AuditLog
from benchmarks.operator_scale.jobs import OURS, PODS_PER_JOB, Kind, delete_all, each, manifest
from benchmarks.operator_scale.kuberay import RAY_CLUSTERS, KubeRay
from benchmarks.operator_scale.lab import Lab
from benchmarks.operator_scale.processes import Floor, Operator, Served, cpu_seconds, memory_mib
from benchmarks.operator_scale.timeline import Timeline

WARM_UP_JOBS = 5
SETTLE_SECONDS = 75
"""KWOK's pods answer no poll, which the operator says in the status once, after a minute. Then it is at rest."""
IDLE_SECONDS = 60
RESTART_SECONDS = 15
"""For how long after a restart writes are looked for."""
LIMIT_SECONDS = 600
TARGET_FLOOR_MS = 44
"""The floor of a job on the machine that the target for CPU and KubeRay's figures are of: 22 s for 500 jobs."""

PER_ROUND = (
    "create_s",
    "pods_ready_s",
    "all_ready_s",
    "apply_to_pods_created_s",
    "apply_to_running_s",
    "control_plane_cpu_ms_per_job",
    "operator_cpu_ms_per_job",
    "operator_cpu_ms_per_job_at_target_floor",
    "floor_all_ready_s",
    "ratio_to_floor",
)
"""What is measured in each round. All else is of the first."""

Figures = dict[str, Any]
Say = Callable[[str], None]


class Measurement:
    """One lab, measured."""

    def __init__(self, lab: Lab, client: Client, say: Say) -> None:
        self._lab = lab
        self._client = client
        self._say = say
        self._audit = AuditLog(lab.audit_log, OURS.agents)
        self._operator = Operator(lab.operator, lab.directory / "operator.log")

    @cached_property
    def _peer(self) -> KubeRay:
        return KubeRay(self._lab)

    async def warm_up(self) -> None:
        """A few jobs' objects, so that nothing is done for the first time later."""
        await self.floor("warm-up", WARM_UP_JOBS)

    async def floor(self, namespace: str, jobs: int) -> Figures:
        """The bare script: seconds until it had created everything, and until all pods were ready."""
        self._say(f"{namespace}: a bare script creates {jobs} jobs' objects")
        self._lab.namespace(namespace)
        script = Floor(self._lab.admin, namespace, jobs)
        cpu = self._lab.cpu_seconds()
        async with Timeline(self._client, namespace) as timeline:
            begun = time.monotonic()
            await script.go()
            created = time.monotonic()
            ready = await timeline.reached(timeline.ready, jobs, LIMIT_SECONDS)
        used = self._cpu_ms(cpu, jobs)
        await delete_all(self._client, namespace)
        return {"created_s": created - begun, "all_ready_s": ready - begun, "control_plane_cpu_ms_per_job": used}

    async def ours(self, number: int, jobs: int) -> Figures:
        """The operator with `jobs` jobs, from their creation to their deletion, in one round."""
        namespace = self._lab.namespace(f"ours-{number}")
        async with self._operator as operator:
            return await operator.during(self._ours(namespace, jobs, whole=number == 0))

    async def kuberay(self, number: int, jobs: int) -> Figures:
        """KubeRay with `jobs` RayClusters of as many pods, in one round."""
        async with self._peer as peer:
            await peer.during(self._kuberay(f"kuberay-warm-up-{number}", WARM_UP_JOBS, peer, whole=False))
            return await peer.during(self._kuberay(f"kuberay-{number}", jobs, peer, whole=number == 0))

    async def suspended(self, jobs: int) -> Figures:
        """Memory with `jobs` suspended jobs, and what a restart with them costs."""
        namespace = self._lab.namespace("suspended")
        async with self._operator as operator:
            return await operator.during(self._suspended(namespace, jobs))

    async def _ours(self, namespace: str, jobs: int, whole: bool) -> Figures:
        self._say(f"operator: {jobs} jobs")
        figures = await self._grow(namespace, jobs, OURS, self._operator, whole)
        if whole:
            self._say(f"idle for {IDLE_SECONDS} s")
            figures |= await self._idle(IDLE_SECONDS)
            self._say("restart")
            figures |= await self._restart(jobs)
        self._say("delete all jobs")
        return figures | await self._delete(namespace, jobs)

    async def _kuberay(self, name: str, jobs: int, peer: Served, whole: bool) -> Figures:
        self._say(f"KubeRay: {jobs} clusters")
        namespace = self._lab.namespace(name)
        figures = await self._grow(namespace, jobs, RAY_CLUSTERS, peer, whole)
        await delete_all(self._client, namespace, RAY_CLUSTERS.resource)
        return figures

    async def _suspended(self, namespace: str, jobs: int) -> Figures:
        self._say(f"operator: {jobs} suspended jobs")
        async with Timeline(self._client, namespace) as timeline:
            begun = time.monotonic()
            await self._create(namespace, jobs, replace(OURS, manifest=partial(manifest, suspend=True)))
            told = await timeline.reached(timeline.told, jobs, LIMIT_SECONDS)
        figures = {
            "jobs": jobs,
            "all_suspended_s": told - begun,
            "rss_mib": memory_mib(self._operator.pid),
            "peak_rss_mib": memory_mib(self._operator.pid, "VmHWM"),
        }
        return figures | await self._restart(jobs)

    async def _create(self, namespace: str, jobs: int, kind: Kind) -> dict[str, float]:
        """When each job was applied: monotonic seconds, by name."""
        applied: dict[str, float] = {}

        async def one(index: int) -> None:
            body = kind.manifest(namespace, index)
            applied[body["metadata"]["name"]] = time.monotonic()
            await self._client.create(kind.resource, namespace, body)

        await each(one, range(jobs))
        return applied

    async def _grow(self, namespace: str, jobs: int, kind: Kind, operator: Served, whole: bool) -> Figures:
        audit, pid = AuditLog(self._lab.audit_log, kind.agents), operator.pid
        mark, cpu, control_plane = audit.mark(), cpu_seconds(pid), self._lab.cpu_seconds()
        async with Timeline(self._client, namespace, kind) as timeline:
            begun = time.monotonic()
            applied = await self._create(namespace, jobs, kind)
            created = time.monotonic()
            ready = await timeline.reached(timeline.ready, jobs, LIMIT_SECONDS)
            told = await timeline.reached(timeline.told, jobs, LIMIT_SECONDS)
            used = cpu_seconds(pid) - cpu
        theirs = self._cpu_ms(control_plane, jobs)
        if whole:
            await asyncio.sleep(SETTLE_SECONDS)
        requests = audit.since(mark)
        return {
            "create_s": created - begun,
            "pods_ready_s": ready - begun,
            "all_ready_s": told - begun,
            "apply_to_pods_created_s": _quantiles(applied, timeline.created),
            "apply_to_running_s": _quantiles(applied, timeline.told),
            "control_plane_cpu_ms_per_job": theirs,
            "operator_cpu_ms_per_job": 1000 * used / jobs,
            "operator_settle_cpu_ms_per_job": 1000 * (cpu_seconds(pid) - cpu - used) / jobs,
            "operator_writes_per_job": requests.writes / jobs,
            "operator_reads_per_job": requests.reads / jobs,
            "operator_requests": requests.wire(),
            "operator_rss_mib": memory_mib(pid, "VmHWM"),
        }

    async def _idle(self, seconds: float) -> Figures:
        pid, mark, cpu = self._operator.pid, self._audit.mark(), cpu_seconds(self._operator.pid)
        await asyncio.sleep(seconds)
        requests = self._audit.since(mark)
        return {
            "idle_s": seconds,
            "idle_cpu_percent": 100 * (cpu_seconds(pid) - cpu) / seconds,
            "idle_writes_60s": requests.writes,
            "idle_reads_60s": requests.reads,
        }

    async def _restart(self, jobs: int) -> Figures:
        self._operator.stop()
        mark = self._audit.mark()  # From here on: the last events of the process before are no cost of a restart.
        seconds = await self._operator.start(jobs)
        cpu = cpu_seconds(self._operator.pid)
        await asyncio.sleep(RESTART_SECONDS)
        requests = self._audit.since(mark)
        return {
            "restart_s": seconds,
            "restart_cpu_s": cpu,
            "restart_writes": requests.writes,
            "restart_reads": requests.reads,
            "restart_requests": requests.wire(),
            "restart_peak_rss_mib": memory_mib(self._operator.pid, "VmHWM"),
        }

    async def _delete(self, namespace: str, jobs: int) -> Figures:
        pid, mark, cpu = self._operator.pid, self._audit.mark(), cpu_seconds(self._operator.pid)
        begun = time.monotonic()
        await delete_all(self._client, namespace)
        return {
            "delete_s": time.monotonic() - begun,
            "delete_cpu_ms_per_job": 1000 * (cpu_seconds(pid) - cpu) / jobs,
            "delete_writes": self._audit.since(mark).writes,
        }

    def _cpu_ms(self, before: Mapping[str, float], jobs: int) -> dict[str, float]:
        """Milliseconds of CPU a job since `before`, by process of the control plane."""
        return {name: 1000 * (now - before[name]) / jobs for name, now in self._lab.cpu_seconds().items()}


async def measure(lab: Lab, jobs: int, rounds: int, suspended: int, kuberay: bool, say: Say) -> Figures:
    """All figures of one lab."""
    async with Client(connect(lab.admin), user_agent="benchmark") as client:
        measurement = Measurement(lab, client, say)
        await measurement.warm_up()
        arms = {"ours": measurement.ours, **({"kuberay": measurement.kuberay} if kuberay else {})}
        found: dict[str, list[Figures]] = {name: [] for name in arms}
        floors = [await measurement.floor("floor-0", jobs)]
        for number in range(rounds):
            for name, arm in arms.items():
                grown = await arm(number, jobs)
                floors.append(await measurement.floor(f"floor-{len(floors)}", jobs))
                found[name].append(grown | _by_floor(grown, floors[-2:], jobs))
        told = {name: _told(each) for name, each in found.items()}
        figures: Figures = {"n": jobs, "pods_per_job": PODS_PER_JOB, "floors": floors, **told["ours"]}
        if kuberay:
            figures["kuberay"] = {"version": KUBERAY, **told["kuberay"]}
        if suspended:
            figures["suspended"] = await measurement.suspended(suspended)
    return figures


def _by_floor(figures: Figures, floors: Sequence[Figures], jobs: int) -> Figures:
    """What an operator took, set against the mean of the floors before and after it."""
    floor = statistics.mean(one["all_ready_s"] for one in floors)
    cpu = figures["operator_cpu_ms_per_job"] * TARGET_FLOOR_MS / (1000 * floor / jobs)
    return {
        "floor_all_ready_s": floor,
        "ratio_to_floor": figures["all_ready_s"] / floor,
        "operator_cpu_ms_per_job_at_target_floor": cpu,
    }


def _told(rounds: Sequence[Figures]) -> Figures:
    """The first round's figures, the median of those that each round has, and these by round."""
    each = [{name: one[name] for name in PER_ROUND} for one in rounds]
    return {**rounds[0], **median(each), "rounds": each}


def median(figures: Sequence[Any]) -> Any:
    """Of each number in figures that have the same names."""
    if isinstance(figures[0], Mapping):
        return {name: median([one[name] for one in figures]) for name in figures[0]}
    return statistics.median(figures)


def _quantiles(begun: Mapping[str, float], reached: Mapping[str, float]) -> dict[str, float]:
    """Of the seconds from one instant of each job to another."""
    seconds = sorted(reached[name] - instant for name, instant in begun.items())
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}
