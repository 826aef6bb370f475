"""Pod fields that a TrainingJob may add to its pods."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from trainingjob_trainer.config import Config, ObjectName

DEEPEST = 32  # levels of an object that is handed on as it is; no part of a pod has half as many


def _not_too_deep(value: dict[str, Any]) -> dict[str, Any]:
    if _is_deeper(value, DEEPEST):
        raise ValueError(f"is nested more than {DEEPEST} levels deep, which no part of a pod is")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deeper(part, levels - 1) for part in parts)


Free = Annotated[dict[str, Any], Field(max_length=64), AfterValidator(_not_too_deep)]
Key = Annotated[str, Field(max_length=317)]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
Labels = Annotated[dict[Key, LabelValue], Field(max_length=64)]
Annotations = Annotated[dict[Key, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]


# Where every pod has something mounted.
OWN_PATHS = ("/etc/trainingjob", "/etc/trainingjob-ray", "/tmp", "/home/trainer", "/dev/shm")


class EnvVar(Config):
    """An environment variable."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")] = Field(
        description="Name. TRAININGJOB_* and RAY_AUTH_* belong to the operator."
    )
    value: Annotated[str, Field(max_length=32_768)] | None = Field(None, description="Value.")
    value_from: Free | None = Field(None, description="Source of the value, as in a container's env.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise ValueError(f"{self.name} has value and valueFrom: remove one")
        return self


class Toleration(Config):
    """A toleration, as in a pod."""

    key: Key | None = Field(None, description="Taint key. Absent: every key.")
    operator: Literal["Exists", "Equal", "Lt", "Gt"] | None = Field(None, description="Comparison. Absent: Equal.")
    value: Annotated[str, Field(max_length=253)] | None = Field(None, description="Taint value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Taint effect. Absent: every effect."
    )
    toleration_seconds: Annotated[int, Field(ge=0, le=315_360_000)] | None = Field(
        None, description="Seconds that a NoExecute taint is tolerated. Absent: for ever."
    )

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if self.key is None and self.operator != "Exists":
            raise ValueError("key is missing: only with operator Exists a toleration is for every key")
        if self.value is not None and self.operator == "Exists":
            raise ValueError(f"value ({self.value}) is not for operator Exists: remove it, or set operator to Equal")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError(
                f"tolerationSeconds ({self.toleration_seconds}) is for effect NoExecute only: "
                "set effect to NoExecute, or remove it"
            )
        return self


class Volume(Config):
    """A volume, as in a pod: its name and one source."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")] = Field(
        description="Name. trainingjob-* belongs to the operator."
    )

    @model_validator(mode="after")
    def _source_is_not_too_deep(self) -> Self:
        _not_too_deep(self.model_extra or {})
        return self


class VolumeMount(Config):
    """Where a volume appears in the container."""

    name: Annotated[str, Field(max_length=63)] = Field(description="Name of the volume.")
    mount_path: Annotated[str, Field(max_length=1024, pattern=r"^/[^:]*$")] = Field(
        description="Path in the container."
    )
    sub_path: Annotated[str, Field(max_length=1024)] | None = Field(None, description="Path in the volume.")
    read_only: bool = Field(False, description="Mounted read-only.")

    @model_validator(mode="after")
    def _path_is_free(self) -> Self:
        if self.mount_path in OWN_PATHS:
            raise ValueError(f"mountPath ({self.mount_path}) is taken by the operator: mount the volume elsewhere")
        return self


class PullSecret(Config):
    """A Secret with registry credentials."""

    name: ObjectName = Field(description="Name of the Secret.")


class Template(Config):
    """Pod fields that are merged in: `nodeSelector` and `affinity` for worker pods, the rest for prepare pods too."""

    labels: Labels = Field(default_factory=dict, description="Labels. trainingjob.io/* belongs to the operator.")
    annotations: Annotations = Field(default_factory=dict, description="Annotations; they win over the operator's.")
    node_selector: Labels = Field(default_factory=dict, description="Labels that the nodes of workers must have.")
    affinity: Free | None = Field(None, description="Affinity of workers, as in a pod.")
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(
        default_factory=list, description="Tolerations, besides 30 s of not-ready and unreachable."
    )
    env: Annotated[list[EnvVar], Field(max_length=128)] = Field(
        default_factory=list, description="Environment; wins over the operator's of the same name."
    )
    volumes: Annotated[list[Volume], Field(max_length=32)] = Field(default_factory=list, description="Volumes.")
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=32)] = Field(
        default_factory=list, description="Mounts of those volumes."
    )
    scheduler_name: ObjectName | None = Field(None, description="Scheduler of the pods.")
    priority_class_name: ObjectName | None = Field(None, description="PriorityClass of the pods.")
    runtime_class_name: ObjectName | None = Field(None, description="RuntimeClass of the pods.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None, description="When the image is pulled. Absent: Kubernetes' default."
    )
    image_pull_secrets: Annotated[list[PullSecret], Field(max_length=16)] = Field(
        default_factory=list, description="Secrets that open the image's registry."
    )

    @model_validator(mode="after")
    def _keeps_to_its_own(self) -> Self:
        for key in self.labels:
            if key.startswith("trainingjob.io/"):
                raise ValueError(f"labels: {key} cannot be set, trainingjob.io/* belongs to the operator")
        for env in self.env:
            if env.name.startswith(("TRAININGJOB_", "RAY_AUTH_")):
                raise ValueError(f"env: {env.name} cannot be set, TRAININGJOB_* and RAY_AUTH_* belong to the operator")
        for volume in self.volumes:
            if volume.name.startswith("trainingjob-"):
                raise ValueError(
                    f"volumes: {volume.name} must have another name, trainingjob-* belongs to the operator"
                )
        for mount in self.volume_mounts:
            if mount.name not in {volume.name for volume in self.volumes}:
                raise ValueError(f"volumeMounts: {mount.name} is none of the template's volumes")
        return self
