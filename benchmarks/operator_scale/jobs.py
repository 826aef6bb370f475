"""The TrainingJobs of the benchmark, and what a namespace full of them is made of and cleared with."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from trainingjob_operator.kube.api import PODS, TRAINING_JOBS, Manifest
from trainingjob_operator.kube.client import Client

PODS_PER_JOB = 4
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
            "workers": {"replicas": PODS_PER_JOB, "resources": {"cpu": "1", "memory": "1Gi"}},
            "runPolicy": {"suspend": suspend},
        },
    }


async def each(work: Callable[[T], Awaitable[Any]], items: Iterable[T]) -> None:
    """`work` on all items, `AT_ONCE` at a time."""
    queue = iter(items)

    async def worker() -> None:
        for item in queue:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


async def delete_all(client: Client, namespace: str) -> None:
    """Delete all jobs, as a user does, and wait until they and their pods are gone."""

    async def delete(job: Manifest) -> None:
        await client.delete(TRAINING_JOBS, namespace, job["metadata"]["name"], job["metadata"]["uid"])

    await each(delete, (await client.list(TRAINING_JOBS, namespace)).items)
    while await _any(client, namespace):
        await asyncio.sleep(0.2)


async def _any(client: Client, namespace: str) -> bool:
    for resource in (TRAINING_JOBS, PODS):
        if (await client.list_page(resource, namespace, "", 1))["items"]:
            return True
    return False
