"""A job's objects, as pure functions of the job (DESIGN: a job's objects; docs/contracts.md §2)."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from trainingjob_trainer.config import JobSpec, PodConfig, digest

from trainingjob_operator.api.spec import API_VERSION, KIND, TrainingJobSpec
from trainingjob_operator.api.status import Resolved
from trainingjob_operator.core import names
from trainingjob_operator.core.facts import Job
from trainingjob_operator.core.kueue import Membership
from trainingjob_operator.core.plan import Manifest, Settings
from trainingjob_operator.core.pod_template import BUILDERS, NEWEST, Place
from trainingjob_operator.kube.api import POD_GROUPS


def trainer_config(job: Job, spec: TrainingJobSpec, ranks_per_pod: int) -> PodConfig:
    """What the pods get as `config.json`; the same at every size of an elastic gang."""
    fields = {name: getattr(spec, name) for name in JobSpec.model_fields}
    return PodConfig(
        **fields,
        name=job.name,
        namespace=job.namespace,
        min_replicas=spec.workers.min_replicas,
        ranks_per_pod=ranks_per_pod,
        fewest_pods=spec.workers.min_replicas or spec.workers.replicas,
        pod_memory=spec.workers.resources.memory,
        gpus=spec.workers.resources.gpus > 0,
        max_restarts=spec.run_policy.max_restarts,
        on_existing_run=spec.run_policy.on_existing_run,
    )


def resolve(job: Job, spec: TrainingJobSpec, settings: Settings) -> Resolved:
    """The facts that a run is started with."""
    replicas, ranks_per_pod = spec.workers.replicas, spec.workers.ranks_per_pod
    return Resolved(
        image=spec.image or settings.trainer_image,
        template_version=settings.template_version,
        config_hash=digest(trainer_config(job, spec, ranks_per_pod).wire()),
        replicas=replicas,
        ranks_per_pod=ranks_per_pod,
        world_size=replicas * ranks_per_pod,
        pod_group=names.pod_group_name(job.name) if settings.pod_groups else None,
    )


def metadata(job: Job, name: str) -> dict[str, Any]:
    """Metadata of a child: found by label, collected with the job."""
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": names.job_labels(job.name, job.uid),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": job.name,
                "uid": job.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def children(job: Job, spec: TrainingJobSpec, resolved: Resolved) -> tuple[Manifest, ...]:
    """ConfigMap, Secret and Service of a run. A custom command starts no Ray, so it needs no token for it."""
    config = trainer_config(job, spec, resolved.ranks_per_pod)
    # Without data: the executor puts the random token in, under the key `token`.
    secret: Manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(job, names.secret_name(job.name, job.uid)),
        "type": "Opaque",
    }
    return (
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(job, names.config_map_name(job.name, resolved.config_hash)),
            "immutable": True,
            "data": {"config.json": to_json(config.asked(), indent=2).decode()},
        },
        *(() if spec.custom else (secret,)),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(job, names.service_name(job.name)),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": {names.LABEL_JOB_UID: job.uid, names.LABEL_MEMBER: "true"},
                "ports": [{"name": "http", "port": 8080, "targetPort": "http"}],
            },
        },
    )


def pod_group(job: Job, spec: TrainingJobSpec, resolved: Resolved) -> Manifest:
    """The worker pods as a gang: placed together or not at all, and preempted together.

    Of an elastic job as many as it cannot do without are placed together, and each is preempted alone.

    Its priority must be that of its pods, or the scheduler refuses them. All but minCount is immutable: the hash of
    that tells whether it is still what is wanted, whatever the API server added.
    """
    priority = spec.workers.template.priority_class_name
    least = spec.workers.min_replicas
    fixed: dict[str, Any] = {"disruptionMode": {"all" if least is None else "single": {}}}
    if priority is not None:
        fixed["priorityClassName"] = priority
    meta = metadata(job, names.pod_group_name(job.name))
    return {
        "apiVersion": POD_GROUPS.api_version,
        "kind": POD_GROUPS.kind,
        "metadata": {**meta, "annotations": {names.ANNOTATION_FIXED: digest(fixed)}},
        "spec": {"schedulingPolicy": {"gang": {"minCount": least or resolved.replicas}}, **fixed},
    }


def differs_for_good(found: Manifest, wanted: Manifest) -> bool:
    """Whether a PodGroup differs from what is wanted in something immutable."""
    annotations = [group["metadata"].get("annotations") or {} for group in (found, wanted)]
    return annotations[0].get(names.ANNOTATION_FIXED) != annotations[1].get(names.ANNOTATION_FIXED)


def leads_elsewhere(found: Manifest, wanted: Manifest) -> bool:
    """Whether a Service does not lead to the job's pods as it should."""
    parts = ("selector", "publishNotReadyAddresses", "clusterIP")
    return any(found["spec"].get(part) != wanted["spec"][part] for part in parts)


def pod(job: Job, spec: TrainingJobSpec, resolved: Resolved, place: Place, group: Membership | None = None) -> Manifest:
    """The pod of `place`, as the template version says that the run was started with. group: that it joins in a queue.

    A version that this operator no longer builds is replaced by the newest: a run that goes on is better than none.
    """
    build = BUILDERS.get(resolved.template_version, BUILDERS[NEWEST])
    template = build(job.name, job.uid, spec, resolved, place)
    own = metadata(job, names.pod_name(job.name, place.role, place.index, place.incarnation))
    labels = {**template["metadata"]["labels"], **own["labels"]}
    annotations = template["metadata"]["annotations"]
    if group is not None:
        labels, annotations = {**labels, **group.labels}, {**annotations, **group.annotations}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**own, "labels": labels, "annotations": annotations},
        "spec": template["spec"],
    }
