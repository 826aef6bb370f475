"""Spec of a TrainingJob: what to train (`trainingjob_trainer.config`) and how to run it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from trainingjob_trainer.config import Config, JobSpec, Quantity

from trainingjob_operator.api.template import Template

GROUP = "trainingjob.io"
VERSION = "v1alpha1"
KIND = "TrainingJob"
PLURAL = "trainingjobs"
GPU_RESOURCE = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
API_VERSION = f"{GROUP}/{VERSION}"


class Resources(Config):
    """What one worker pod gets: requests and limits are equal."""

    cpu: Quantity = Field("1", description="CPU request and limit.")
    memory: Quantity = Field("4Gi", description="Memory request and limit.")
    gpus: Annotated[int, Field(ge=0, le=64)] = Field(0, description="GPUs of a pod; one rank runs on each.")
    gpu_resource_name: Annotated[str, Field(max_length=253, pattern=GPU_RESOURCE)] = Field(
        "nvidia.com/gpu", description="Resource name of the GPUs."
    )


class Workers(Config):
    """The worker pods."""

    replicas: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="Worker pods. With minReplicas it may change while the job runs (kubectl scale)."
    )
    min_replicas: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="Makes the job elastic: it trains on as many of the replicas as there are, but not on fewer."
    )
    resources: Resources = Field(default_factory=Resources, description="Resources of a worker pod.")
    template: Template = Field(default_factory=Template, description="Pod fields that are merged in.")

    @model_validator(mode="after")
    def _min_below_replicas(self) -> Self:
        if self.min_replicas is not None and self.min_replicas > self.replicas:
            minimum, replicas = f"workers.minReplicas ({self.min_replicas})", f"workers.replicas ({self.replicas})"
            raise ValueError(f"{minimum} must not be above {replicas}")
        return self

    @property
    def elastic(self) -> bool:
        """Whether the number of pods may change while the job runs."""
        return self.min_replicas is not None

    @property
    def ranks_per_pod(self) -> int:
        """One rank a GPU; without GPUs one rank a pod."""
        return max(1, self.resources.gpus)


class RunPolicy(Config):
    """How long, how often, and what afterwards."""

    suspend: bool | None = Field(None, description="Drain and remove the pods; the run goes on when it is unset.")
    max_restarts: Annotated[int, Field(ge=0, le=100)] = Field(
        3, description="Failures in a row without a newly committed checkpoint before the job is given up."
    )
    start_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = Field(
        None,
        description="Seconds after the start, or a resume, within which all workers (of an elastic job "
        "minReplicas) must run: checking and preparing "
        "data, queueing and pulling included. Then the run is drained and failed, and its message says what it "
        "waited for. Restarts are not bounded by it.",
    )
    active_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = Field(
        None, description="Seconds after the start at which the run is drained and failed."
    )
    pods_ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=315_360_000)] | None = Field(
        None,
        alias="podsTTLSecondsAfterFinished",
        description="Seconds after the end at which pods, Service and ConfigMap are removed; the TrainingJob stays.",
    )
    queue_name: Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")] | None = Field(
        None, description="LocalQueue of Kueue that admits the pods. Absent: they are in no queue."
    )
    on_existing_run: Literal["Resume", "Overwrite"] = Field(
        "Resume", description="What becomes of another run's state in `outputUri`."
    )

    @model_validator(mode="after")
    def _starts_before_it_ends(self) -> Self:
        start, end = self.start_deadline_seconds, self.active_deadline_seconds
        if start is not None and end is not None and start > end:
            raise ValueError(f"startDeadlineSeconds ({start}) must not be above activeDeadlineSeconds ({end})")
        return self


class TrainingJobSpec(JobSpec):
    """The whole spec."""

    image: Annotated[str, Field(max_length=1024, pattern=r"^\S+$")] | None = Field(
        None, description="Trainer image. Absent: the operator's."
    )
    workers: Workers = Field(default_factory=Workers, description="Worker pods.")
    run_policy: RunPolicy = Field(default_factory=RunPolicy, description="Run policy.")

    @model_validator(mode="after")
    def _a_sample_for_each_rank(self) -> Self:
        if self.training is None:
            return self
        ranks = self.workers.replicas * self.workers.ranks_per_pod // self.training.parallelism.tensor
        if self.training.global_batch_size < ranks:
            raise ValueError(
                f"training.globalBatchSize ({self.training.global_batch_size}) is below the number of ranks ({ranks}): "
                "raise it or ask for fewer workers"
            )
        return self

    @model_validator(mode="after")
    def _ranks_divide_into_groups(self) -> Self:
        workers = self.workers
        ranks = workers.ranks_per_pod * (1 if workers.elastic else workers.replicas)
        if self.training is not None and ranks % self.training.parallelism.group:
            raise ValueError(
                f"training.parallelism: groups of fsdpRanks x tensor ({self.training.parallelism.group}) must divide "
                f"the number of ranks ({ranks}; of an elastic job those of a pod)"
            )
        return self

    @model_validator(mode="after")
    def _can_be_elastic(self) -> Self:
        if self.custom and self.workers.elastic:
            raise ValueError(
                "workers.minReplicas is not for task.kind custom, whose commands cannot take a new peer in: remove it"
            )
        if self.run_policy.queue_name is not None and self.workers.elastic:
            raise ValueError(
                "workers.minReplicas and runPolicy.queueName exclude each other, because Kueue admits groups of a "
                "fixed size: remove one"
            )
        return self

    @property
    def custom(self) -> bool:
        """Whether the pods run a command of the user's, not the trainer."""
        return self.task.kind == "custom"

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run; 0: not known, the data or a custom command decide."""
        return (self.training.steps or 0) if self.training is not None else 0

    @property
    def suspended(self) -> bool:
        return bool(self.run_policy.suspend)
