"""Status of a TrainingJob, as typed, immutable objects. Only the operator writes it, as a whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

Phase = Literal[
    "Pending",
    "Queued",
    "Preparing",
    "Starting",
    "Running",
    "Restarting",
    "Suspending",
    "Suspended",
    "Succeeded",
    "Failed",
]
Stage = Literal["Check", "PrepareData", "Train"]
Role = Literal["prepare", "train"]
ConditionType = Literal[
    "Ready",
    "Reconciling",
    "Stalled",
    "Suspended",
    "Complete",
    "Failed",
    "Finished",
    "ProgressUnknown",
    "GangSchedulingUnavailable",
    "CleanupRefused",
]

# Kubernetes times have whole seconds: cut at the door, so that a status read back equals the one written.
Time = Annotated[
    datetime,
    AfterValidator(lambda t: t.astimezone(UTC).replace(microsecond=0)),
    PlainSerializer(lambda t: t.strftime("%Y-%m-%dT%H:%M:%SZ"), return_type=str, when_used="json"),
]
Step = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(max_length=4096)]
Metrics = Annotated[dict[Annotated[str, Field(max_length=64)], float], Field(max_length=64)]
Word = Annotated[str, Field(max_length=253)]


class StatusModel(BaseModel):
    """Base of the status objects: camelCase on the wire, immutable; fields of a newer operator are ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, allow_inf_nan=False
    )


class Condition(StatusModel):
    """One condition, as in metav1.Condition."""

    type: ConditionType = Field(description="Name of the condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Annotated[str, Field(max_length=128)] = Field(description="Why, in one CamelCase word.")
    message: Text = Field("", description="Why, for people.")
    last_transition_time: Time = Field(description="When `status` last changed.")
    observed_generation: int = Field(0, description="Generation of the spec that the condition is about.")


class Workers(StatusModel):
    """Pods of the current stage."""

    desired: int = Field(0, ge=0, description="Pods that the current stage wants.")
    ready: int = Field(0, ge=0, description="Pods of the current stage that are ready.")


class Progress(StatusModel):
    """How far training is; as fresh as `updatedAt`."""

    step: Step = Field(0, description="Finished optimizer steps.")
    steps: Step = Field(0, description="Optimizer steps of the whole run.")
    percent: Annotated[int, Field(ge=0, le=100)] = Field(0, description="Share of the steps that is done.")
    summary: Annotated[str, Field(max_length=64)] = Field("", description="Steps and percent, for people.")
    samples: int | None = Field(None, ge=0, description="Samples consumed.")
    tokens: int | None = Field(None, ge=0, description="Tokens consumed.")
    loss: float | None = Field(None, description="Training loss at `step`.")
    learning_rate: float | None = Field(None, description="Learning rate at `step`.")
    tokens_per_second: float | None = Field(None, description="Throughput over all ranks.")
    eta: Annotated[str, Field(max_length=32)] | None = Field(None, description="Time to the last step, like 1h02m.")
    metrics: Metrics = Field(
        default_factory=dict,
        description="Further numbers: seconds a step and the like, or what a custom command says.",
    )
    updated_at: Time | None = Field(None, description="When the trainer reported this.")


class CheckpointStatus(StatusModel):
    """Committed checkpoints."""

    latest_step: Step | None = Field(None, description="Step of the newest committed checkpoint.")
    latest_time: Time | None = Field(None, description="When the operator first heard of it.")
    latest_uri: Annotated[str, Field(max_length=2048)] | None = Field(None, description="Where it is.")
    best_step: Step | None = Field(None, description="Step of the best checkpoint by validation loss.")
    best_loss: float | None = Field(None, description="Its validation loss.")


class EvaluationStatus(StatusModel):
    """The newest evaluation; after the run the final one, on the test split."""

    split: Word = Field(description="Split that was evaluated.")
    step: Step = Field(description="Step of the weights.")
    metrics: Metrics = Field(default_factory=dict, description="Scalar metrics by name.")


class Restarts(StatusModel):
    """Counted failures. Preemptions, evictions and drains are not counted."""

    total: int = Field(0, ge=0, description="Counted failures of the whole run.")
    without_progress: int = Field(0, ge=0, description="Counted failures since a new checkpoint was committed.")
    committed_step: int = Field(0, ge=0, description="Newest committed step at the last counted failure.")
    last_failure_time: Time | None = Field(None, description="When the last failure was counted.")
    by_class: Annotated[dict[Annotated[str, Field(max_length=64)], int], Field(max_length=64)] = Field(
        default_factory=dict, description="All interruptions by class, those that are not counted included."
    )


class Incident(StatusModel):
    """Something that interrupted the run."""

    time: Time = Field(description="When it was noticed.")
    class_: Annotated[str, Field(max_length=64)] = Field(alias="class", description="Class of the failure.")
    cause: Text = Field("", description="What happened.")
    pod: Word | None = Field(None, description="Pod that failed.")
    node: Word | None = Field(None, description="Node of that pod.")
    rank: int | None = Field(None, description="Rank that failed, if the pod survived.")
    attempt: int | None = Field(None, description="Attempt that was interrupted, if the driver reported it.")
    step: Step | None = Field(None, description="Last finished step that was known.")
    steps_lost: Step | None = Field(None, description="Finished steps that had to be repeated.")
    seconds_to_recover: Step | None = Field(None, description="Seconds until the next attempt finished a step.")


class Member(StatusModel):
    """The pod that stands for (role, index) now. Only a written member licenses the pod's creation."""

    role: Role = Field(description="Role of the pod.")
    index: int = Field(ge=0, description="Index in its gang.")
    incarnation: int = Field(ge=1, description="Rises with each successor.")
    uid: Word | None = Field(None, description="Uid of the pod, once it was seen: then its absence is a loss.")
    not_before: Time | None = Field(None, description="Back-off: the pod is not created before.")


class AvoidedNode(StatusModel):
    """A node that has ended pods of the run twice."""

    name: Word = Field(description="Name of the node.")
    required: bool = Field(
        description="Whether pods must not run there. False: there was no other place, so that others are preferred."
    )


class Resolved(StatusModel):
    """What the run's pods are made of: as the run was started, until it ends or is suspended."""

    image: Annotated[str, Field(max_length=1024)] = Field(description="Trainer image.")
    template_version: int = Field(ge=1, description="Version of the pod template.")
    config_hash: Annotated[str, Field(max_length=64)] = Field(description="Hash of the trainer's configuration.")
    replicas: int = Field(ge=1, description="Worker pods.")
    ranks_per_pod: int = Field(ge=1, description="Ranks in each worker pod.")
    world_size: int = Field(ge=1, description="Ranks.")
    avoided_nodes: Annotated[tuple[AvoidedNode, ...], Field(max_length=16)] = Field(
        (), description="Nodes that the run's pods stay off since those ended pods of it twice."
    )
    pod_group: Word | None = Field(
        None, description="PodGroup of the worker pods. Absent: the scheduler places them one by one."
    )


class Result(StatusModel):
    """What the run left."""

    model_uri: Annotated[str, Field(max_length=2048)] | None = Field(None, description="Exported model.")
    report_uri: Annotated[str, Field(max_length=2048)] | None = Field(None, description="Report.")


class TrainingJobStatus(StatusModel):
    """All that the operator says about a job."""

    observed_generation: int = Field(-1, description="Generation of the spec that this status is about.")
    phase: Phase | None = Field(None, description="Where the job is, in one word.")
    message: Text = Field("", description="What is happening, or why not and what to do, in one sentence.")
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = Field((), description="Conditions.")
    stage: Stage | None = Field(None, description="Stage of the run.")
    selector: Annotated[str, Field(max_length=1024)] | None = Field(
        None, description="Label selector of the worker pods (scale subresource)."
    )
    workers: Workers = Field(default_factory=Workers, description="Pods of the current stage.")
    progress: Progress | None = Field(None, description="How far training is.")
    checkpoint: CheckpointStatus | None = Field(None, description="Committed checkpoints.")
    evaluation: EvaluationStatus | None = Field(None, description="Newest evaluation.")
    restarts: Restarts = Field(default_factory=Restarts, description="Counted failures.")
    history: Annotated[tuple[Incident, ...], Field(max_length=10)] = Field((), description="The last ten incidents.")
    pods: Annotated[tuple[Member, ...], Field(max_length=8192)] = Field(
        (), description="Current pod of each role and index."
    )
    admissions: int = Field(0, ge=0, description="Groups of pods that have been put into the queue.")
    given_way: int = Field(0, ge=0, description="Times in a row that the workers gave what they held to an older job.")
    resolved: Resolved | None = Field(None, description="Facts that the run was started with.")
    result: Result | None = Field(None, description="What the run left.")
    phase_time: Time | None = Field(None, description="When the phase began.")
    waited: Annotated[dict[Annotated[str, Field(max_length=64)], int], Field(max_length=16)] = Field(
        default_factory=dict,
        description="Seconds spent in phases on the way to training, by phase, all starts together.",
    )
    start_time: Time | None = Field(None, description="When the run was started, or resumed.")
    training_start_time: Time | None = Field(
        None, description="When all worker pods were ready, for the first time since the run was started or resumed."
    )
    completion_time: Time | None = Field(None, description="When the job was finished.")

    def wire(self) -> dict[str, Any]:
        """The status as JSON-able camelCase data, absent optionals left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
