"""The TrainingJobs of the benchmark, and what a namespace full of jobs is made of and cleared with."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from trainingjob_operator.core.names import LABEL_JOB_NAME
from trainingjob_operator.kube.api import PODS, TRAINING_JOBS, Manifest, Resource
from trainingjob_operator.kube.client import Client

PODS_PER_JOB = 4
RESOURCES = {"cpu": "1", "memory": "1Gi"}  # of each pod
AT_ONCE = 32  # requests, or jobs, in flight

T = TypeVar("T")


def manifest(namespace: str, index: int, suspend: bool = False) -> Manifest:
    """A job that runs a command of the user's on four workers."""
    return {
        "apiVersion": TRAINING_JOBS.api_version,
        "kind": TRAINING_JOBS.kind,
        "metadata": {"name": f"job-{index:05}", "namespace": namespace},
        "spec": {
            "task": {"kind": "custom", "custom": {"command": ["python", "train.py"]}},
            "workers": {"replicas": PODS_PER_JOB, "resources": RESOURCES},
            "runPolicy": {"suspend": suspend},
        },
    }


def _is_told(body: Mapping[str, Any]) -> bool:
    """Whether the job's status says that all its pods are ready, or that it is suspended."""
    status = body.get("status") or {}
    running = status.get("phase") == "Running" and status["workers"]["ready"] == PODS_PER_JOB
    return running or status.get("phase") == "Suspended"


@dataclass(frozen=True)
class Kind:
    """A kind of job that an operator makes pods for.

    label: has the job's name, on the pods. agents: how the operator's user agents begin.
    """

    resource: Resource
    label: str
    agents: tuple[str, ...]
    manifest: Callable[[str, int], Manifest]
    is_told: Callable[[Mapping[str, Any]], bool]


OURS = Kind(TRAINING_JOBS, LABEL_JOB_NAME, ("trainingjob-operator", "kopf"), manifest, _is_told)
"""Agents: the operator's own client's, and kopf's for its watch."""


async def each(work: Callable[[T], Awaitable[Any]], items: Iterable[T]) -> None:
    """`work` on all items, `AT_ONCE` at a time."""
    queue = iter(items)

    async def worker() -> None:
        for item in queue:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


async def delete_all(client: Client, namespace: str, jobs: Resource = TRAINING_JOBS) -> None:
    """Delete all jobs, as a user does, and wait until they and their pods are gone."""

    async def delete(job: Manifest) -> None:
        await client.delete(jobs, namespace, job["metadata"]["name"], job["metadata"]["uid"])

    await each(delete, (await client.list(jobs, namespace)).items)
    while await _any(client, namespace, jobs):
        await asyncio.sleep(0.2)


async def _any(client: Client, namespace: str, jobs: Resource) -> bool:
    for resource in (jobs, PODS):
        if (await client.list_page(resource, namespace, "", 1))["items"]:
            return True
    return False
