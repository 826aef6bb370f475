"""The pod of a run, by template version: a replacement is built like the pods that the run was started with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainingjob_operator.api.spec import TrainingJobSpec
from trainingjob_operator.api.status import Resolved, Role, Stage
from trainingjob_operator.core import names
from trainingjob_operator.core.affinity import affinity
from trainingjob_operator.core.stages import role_of

Json = dict[str, Any]

HTTP_PORT = 8080
AGENT_STAGE: dict[Stage, str] = {"Check": "check", "PrepareData": "prepare-data", "Train": "train"}
AGENT_CUSTOM = "custom"
RAY_ENV = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": "/etc/trainingjob-ray/token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TMPDIR": "/tmp/ray",
}
FIELD_ENV = {
    "POD_NAME": "metadata.name",
    "POD_UID": "metadata.uid",
    "POD_IP": "status.podIP",
    "NODE_NAME": "spec.nodeName",
}
PATH_ENV = {
    "HOME": "/home/trainer",
    "TMPDIR": "/tmp",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor",
    "TRITON_CACHE_DIR": "/tmp/triton",
    "MPLCONFIGDIR": "/tmp/matplotlib",
}
# Name, mount path and source; the names are out of reach of the template's volumes.
EMPTY_DIRS: tuple[tuple[str, str, Json], ...] = (
    ("trainingjob-tmp", "/tmp", {}),
    ("trainingjob-home", "/home/trainer", {}),
    ("trainingjob-shm", "/dev/shm", {"medium": "Memory"}),
)


@dataclass(frozen=True)
class Place:
    """What one pod stands for: pod `index` of `replicas` in the gang of `stage`, for the `incarnation`-th time."""

    stage: Stage
    index: int
    replicas: int
    incarnation: int

    @property
    def role(self) -> Role:
        return role_of(self.stage)


def version_1(job_name: str, job_uid: str, spec: TrainingJobSpec, resolved: Resolved, place: Place) -> Json:
    """Labels, annotations and pod spec, as a PodTemplateSpec; metadata of children comes on top."""
    template = spec.workers.template
    worker = place.stage == "Train"
    return {
        "metadata": {
            "labels": {
                **template.labels,
                "app.kubernetes.io/managed-by": "trainingjob-operator",
                **names.place_labels(place.role, place.index, place.incarnation),
                names.LABEL_MEMBER: "true",
            },
            "annotations": {
                "karpenter.sh/do-not-disrupt": "true",
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                **template.annotations,
            },
        },
        "spec": _present(
            restartPolicy="Never",
            hostname=f"{place.role}-{place.index}",
            subdomain=names.service_name(job_name),
            automountServiceAccountToken=False,
            enableServiceLinks=False,
            serviceAccountName=spec.storage.service_account_name,
            terminationGracePeriodSeconds=spec.checkpoint.drain_seconds,
            schedulerName=template.scheduler_name,
            schedulingGroup={"podGroupName": resolved.pod_group} if worker and resolved.pod_group else None,
            priorityClassName=template.priority_class_name,
            runtimeClassName=template.runtime_class_name,
            nodeSelector=template.node_selector if worker else None,
            affinity=affinity(template.affinity if worker else None, resolved.avoided_nodes),
            tolerations=_tolerations() + [t.wire() for t in template.tolerations],
            imagePullSecrets=[s.wire() for s in template.image_pull_secrets],
            securityContext={
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
                # gloo and NCCL listen on ephemeral ports: bounded, so that a NetworkPolicy can name them.
                "sysctls": [{"name": "net.ipv4.ip_local_port_range", "value": "30000 32767"}],
            },
            volumes=_volumes(job_name, job_uid, spec, resolved) + [v.wire() for v in template.volumes],
            containers=[_container(job_name, job_uid, spec, resolved, place)],
        ),
    }


def _container(job_name: str, job_uid: str, spec: TrainingJobSpec, resolved: Resolved, place: Place) -> Json:
    template = spec.workers.template
    own_env = _env(job_name, job_uid, spec, place)
    user_env = [e.wire() for e in template.env]
    overridden = {e["name"] for e in user_env}
    return _present(
        name=names.CONTAINER,
        image=resolved.image,
        imagePullPolicy=template.image_pull_policy,
        command=[
            "python",
            "-m",
            "trainingjob_trainer.agent",
            AGENT_CUSTOM if spec.custom else AGENT_STAGE[place.stage],
        ],
        env=[e for e in own_env if e["name"] not in overridden] + user_env,
        ports=[{"name": "http", "containerPort": HTTP_PORT}],
        readinessProbe={
            "httpGet": {"path": "/healthz", "port": "http"},
            "initialDelaySeconds": 5,  # A kubelet tells each failed probe as an event, and the agent needs a moment.
            "periodSeconds": 2,
            "failureThreshold": 5,
        },
        resources=_resources(spec, place),
        terminationMessagePolicy="FallbackToLogsOnError",
        securityContext={
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        volumeMounts=[
            {"name": "trainingjob-config", "mountPath": "/etc/trainingjob", "readOnly": True},
            *(
                []
                if spec.custom
                else [{"name": "trainingjob-ray", "mountPath": "/etc/trainingjob-ray", "readOnly": True}]
            ),
            *({"name": name, "mountPath": path} for name, path, _ in EMPTY_DIRS),
            *(m.wire() for m in template.volume_mounts),
        ],
    )


def _env(job_name: str, job_uid: str, spec: TrainingJobSpec, place: Place) -> list[Json]:
    plain = {
        "TRAININGJOB_CONFIG": "/etc/trainingjob/config.json",
        "TRAININGJOB_JOB_UID": job_uid,
        "TRAININGJOB_ROLE": place.role,
        "TRAININGJOB_INDEX": str(place.index),
        "TRAININGJOB_REPLICAS": str(place.replicas),
        "TRAININGJOB_HEAD": f"{place.role}-0.{names.service_name(job_name)}",
        "TRAININGJOB_INCARNATION": str(place.incarnation),
        **PATH_ENV,
        **({} if spec.custom else RAY_ENV),
    }
    env: list[Json] = [{"name": name, "value": value} for name, value in plain.items()]
    env += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in FIELD_ENV.items()]
    secret = spec.storage.credentials_secret
    if secret is not None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            env.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}})
        token = {"name": secret, "key": "AWS_SESSION_TOKEN", "optional": True}
        env.append({"name": "AWS_SESSION_TOKEN", "valueFrom": {"secretKeyRef": token}})
    return env


def _resources(spec: TrainingJobSpec, place: Place) -> Json:
    """Requests equal limits, so that the pod is of the Guaranteed class."""
    if place.stage == "Train":
        wanted = spec.workers.resources
        amounts = {"cpu": wanted.cpu, "memory": wanted.memory}
        if wanted.gpus:
            amounts[wanted.gpu_resource_name] = str(wanted.gpus)
    else:
        assert spec.data is not None
        amounts = {"cpu": spec.data.prepare.cpu, "memory": spec.data.prepare.memory}
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _volumes(job_name: str, job_uid: str, spec: TrainingJobSpec, resolved: Resolved) -> list[Json]:
    # World-readable inside the pod: its user is the image's, unknown here.
    ray_token = {"secretName": names.secret_name(job_name, job_uid), "defaultMode": 0o444}
    return [
        {"name": "trainingjob-config", "configMap": {"name": names.config_map_name(job_name, resolved.config_hash)}},
        *([] if spec.custom else [{"name": "trainingjob-ray", "secret": ray_token}]),
        *({"name": name, "emptyDir": source} for name, _, source in EMPTY_DIRS),
    ]


def _tolerations() -> list[Json]:
    """A lost node is given up after 30 s, not after Kubernetes' 300."""
    return [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 30,
        }
        for taint in ("not-ready", "unreachable")
    ]


def _present(**fields: Any) -> Json:
    """The fields that say something."""
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


Builder = Callable[[str, str, TrainingJobSpec, Resolved, Place], Json]
BUILDERS: dict[int, Builder] = {1: version_1}
NEWEST = max(BUILDERS)
