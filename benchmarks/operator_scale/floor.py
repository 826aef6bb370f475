"""The floor: a bare script that creates the jobs' objects, from the operator's own builders, with no operator.

`python -m benchmarks.operator_scale.floor KUBECONFIG NAMESPACE N`. It says `ready`, waits for a line, and works.
"""

import asyncio
import sys
from pathlib import Path

from trainingjob_operator.core.facts import InvalidSpec, Job
from trainingjob_operator.core.manifests import children, pod, resolve
from trainingjob_operator.core.plan import Settings
from trainingjob_operator.core.pod_template import Place
from trainingjob_operator.kube.api import BY_KIND, TRAINING_JOBS, Manifest
from trainingjob_operator.kube.client import Client
from trainingjob_operator.kube.connection import connect

from benchmarks.operator_scale.jobs import AT_ONCE, PODS_PER_JOB, each, manifest


async def create(client: Client, namespace: str, index: int) -> None:
    """One job with all that the operator would make for it."""
    job = Job.from_object(await client.create(TRAINING_JOBS, namespace, manifest(namespace, index)))
    spec = job.spec
    assert not isinstance(spec, InvalidSpec), spec.message
    resolved = resolve(job, spec, Settings(trainer_image="trainer:floor"))
    await asyncio.gather(*(_create(client, child) for child in children(job, spec, resolved)))
    places = [Place("Train", index, resolved.replicas, 1) for index in range(resolved.replicas)]
    await asyncio.gather(*(_create(client, pod(job, spec, resolved, place)) for place in places))


async def _create(client: Client, child: Manifest) -> None:
    await client.create(BY_KIND[child["kind"]], child["metadata"]["namespace"], child)


async def main(kubeconfig: Path, namespace: str, jobs: int) -> None:
    """Create `jobs` jobs once told to."""
    async with Client(connect(kubeconfig), user_agent="floor", at_once=PODS_PER_JOB * AT_ONCE) as client:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        await each(lambda index: create(client, namespace, index), range(jobs))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
