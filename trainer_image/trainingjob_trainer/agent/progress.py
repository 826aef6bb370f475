"""What the pod knows about its stage: the answer of `GET /progress`, fed by reports of driver and ranks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ..config import Config
from ..records import Incident, now
from ..standstill import Stand

State = Literal["Starting", "Checking", "Preparing", "Training", "Evaluating", "Exporting", "Draining", "Done"]


class Steps(Config):
    """How far training is; rates are of the last seconds."""

    step: int | None = None
    steps: int | None = None
    samples: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    percent: int | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class CheckpointState(Config):
    """The newest and the best checkpoint."""

    latest_step: int | None = None
    latest_uri: str | None = None
    best_step: int | None = None
    best_loss: float | None = None


class EvaluationState(Config):
    """The newest evaluation."""

    split: str
    step: int
    metrics: dict[str, Any] = Field(default_factory=dict)


class Report(Config):
    """What a rank or the driver has to say: any subset of the fields."""

    attempt: int | None = None
    state: State | None = None
    message: str | None = Field(None, max_length=2000)
    progress: Steps | None = None
    checkpoint: CheckpointState | None = None
    evaluation: EvaluationState | None = None
    world_size: int | None = None
    pods: list[int] | None = Field(None, max_length=4096)
    resumed_from_step: int | None = None
    first_step_at: str | None = None
    incidents: list[Incident] | None = Field(None, max_length=20)
    standing: dict[int, Stand | None] | None = None


class Progress:
    """The stage's state, as the newest attempt reported it."""

    def __init__(self, job_uid: str, pod_uid: str, stage: str, steps: int | None) -> None:
        self._fixed = {"jobUid": job_uid, "podUid": pod_uid, "stage": stage}
        self._fields: dict[str, Any] = dict.fromkeys(
            ("attempt", "pods", "progress", "checkpoint", "evaluation", "worldSize", "resumedFromStep"), None
        )
        self._fields |= {"state": "Starting", "message": "The pod starts.", "incidents": []}
        self._fields |= {"attemptStartedAt": None, "firstStepAt": None}
        self._steps = steps
        self._ending = False
        self._standing: dict[int, Stand | None] = {}

    @property
    def state(self) -> str:
        """Where in its stage the pod is."""
        return str(self._fields["state"])

    @property
    def attempt(self) -> int | None:
        """The newest attempt."""
        attempt: int | None = self._fields["attempt"]
        return attempt

    @property
    def pods(self) -> int | None:
        """Number of pods that take part in the newest attempt."""
        pods: list[int] | None = self._fields["pods"]
        return None if pods is None else len(pods)

    @property
    def step(self) -> int | None:
        """Finished optimizer steps."""
        step: int | None = (self._fields["progress"] or {}).get("step")
        return step

    def say(self, state: State, message: str) -> None:
        """Set state and message."""
        self._fields |= {"state": state, "message": message}

    def end(self, state: Literal["Draining", "Done"], message: str) -> None:
        """The pod itself ends: from now on nobody's report changes the state."""
        self.say(state, message)
        self._ending = True

    def take(self, report: Report) -> None:
        """Merge a report. One of an older attempt is dropped; a newer attempt starts with a clean slate."""
        current = self.attempt or 0
        if report.attempt is not None:
            if report.attempt < current:
                return
            if report.attempt > current:
                self._fields |= {"attemptStartedAt": now(), "firstStepAt": None, "resumedFromStep": None}
                self._standing = {}
        self._standing |= report.standing or {}
        for name, value in report.model_dump(
            mode="json", by_alias=True, exclude_unset=True, exclude={"standing"}
        ).items():
            if self._ending and name in ("state", "message"):
                continue
            if isinstance(value, dict) and name != "evaluation":
                value = {**(self._fields[name] or {}), **value}
            self._fields[name] = value

    def wire(self) -> dict[str, Any]:
        """The body of `GET /progress`."""
        return self._fixed | self._fields

    def standing(self) -> dict[str, Any]:
        """The body of `GET /standing`: of the ranks of the newest attempt that stand still, where."""
        stands = {rank: stand.wire() for rank, stand in self._standing.items() if stand is not None}
        return {"attempt": self.attempt, "standing": stands}

    def metrics(self) -> dict[str, tuple[str, float]]:
        """Prometheus gauges: name -> (help, value). What is not known yet is left out."""
        progress, checkpoint = self._fields["progress"] or {}, self._fields["checkpoint"] or {}
        known = {
            "step": ("Finished optimizer steps.", progress.get("step")),
            "steps": ("Optimizer steps of the whole run.", self._steps),
            "samples": ("Samples trained on.", progress.get("samples")),
            "tokens": ("Tokens trained on.", progress.get("tokens")),
            "tokens_per_second": ("Tokens trained on a second.", progress.get("tokensPerSecond")),
            "eta_seconds": ("Seconds until the last step.", progress.get("etaSeconds")),
            "loss": ("Training loss, the mean over the step's tokens in nats.", progress.get("loss")),
            "learning_rate": ("Learning rate.", progress.get("learningRate")),
            "gradient_norm": ("Global gradient norm before clipping.", progress.get("gradNorm")),
            "attempt": ("Number of the attempt.", self.attempt),
            "world_size": ("Ranks of the attempt.", self._fields["worldSize"]),
            "checkpoint_step": ("Step of the newest checkpoint.", checkpoint.get("latestStep")),
            "best_loss": ("Best validation loss with a checkpoint.", checkpoint.get("bestLoss")),
            "incidents": ("Attempts that failed.", len(self._fields["incidents"])),
        }
        return {name: (text, float(value)) for name, (text, value) in known.items() if value is not None}
