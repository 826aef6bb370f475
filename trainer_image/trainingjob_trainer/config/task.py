"""What is learnt, and where the data and the run directory are."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainingjob_trainer.config.base import ENDPOINT, Argument, Config, ObjectName


class Storage(Config):
    """Where `s3://` leads and whose credentials open it."""

    endpoint_url: Annotated[str, Field(max_length=1024, pattern=ENDPOINT)] | None = Field(
        None, description="S3 endpoint, for S3-compatible servers. Absent: Amazon's."
    )
    region: Annotated[str, Field(max_length=64, pattern=r"^[-_A-Za-z0-9]+$")] | None = Field(
        None, description="S3 region."
    )
    credentials_secret: ObjectName | None = Field(
        None, description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and optionally AWS_SESSION_TOKEN."
    )
    service_account_name: ObjectName | None = Field(
        None, description="ServiceAccount of the pods, where it stands for the credentials (IRSA, workload identity)."
    )

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.credentials_secret is not None and self.service_account_name is not None:
            both = f"credentialsSecret ({self.credentials_secret}) and serviceAccountName ({self.service_account_name})"
            raise ValueError(f"{both} exclude each other: remove one")
        return self


class Custom(Config):
    """A training program of your own. It runs once in every worker pod, with what torch.distributed asks for in env."""

    command: Annotated[list[Argument], Field(min_length=1, max_length=64)] = Field(
        description="Program and first arguments; not run in a shell."
    )
    args: Annotated[list[Argument], Field(max_length=256)] = Field(
        default_factory=list, description="Further arguments."
    )


Kind = Literal["language-modeling", "text-classification", "image-classification", "regression", "custom"]
Loss = Literal["cross-entropy", "binary-cross-entropy", "mse", "mae", "huber"]
# Of each kind; the first one is its default.
LOSSES: dict[Kind, tuple[Loss, ...]] = {
    "language-modeling": ("cross-entropy",),
    "text-classification": ("cross-entropy", "binary-cross-entropy"),
    "image-classification": ("cross-entropy", "binary-cross-entropy"),
    "regression": ("mse", "mae", "huber"),
    "custom": (),
}
# Metrics of each kind, as evaluations have them, and whether less or more of one is better.
_OF_CLASSES: dict[str, Literal["min", "max"]] = {
    "loss": "min",
    **dict.fromkeys(("accuracy", "precision", "recall", "f1", "precisionMicro", "recallMicro", "f1Micro"), "max"),
}
METRICS: dict[Kind, dict[str, Literal["min", "max"]]] = {
    "language-modeling": {
        "loss": "min", "perplexity": "min", "bitsPerByte": "min", "accuracy": "max", "top5Accuracy": "max",
    },
    "text-classification": _OF_CLASSES,
    "image-classification": _OF_CLASSES,
    "regression": {"loss": "min", "mse": "min", "mae": "min", "r2": "max"},
    "custom": {},
}  # fmt: skip
# Parts of a spec that describe a task of the trainer's own. A custom command has no use for them, but for an outputUri.
OWN_TASK_PARTS = ("data", "model", "training")
REQUIRED: dict[Kind, tuple[str, ...]] = {
    "language-modeling": ("output_uri", *OWN_TASK_PARTS),
    "text-classification": ("output_uri", *OWN_TASK_PARTS),
    "image-classification": ("output_uri", *OWN_TASK_PARTS),
    "regression": ("output_uri", *OWN_TASK_PARTS),
    "custom": (),
}


class Task(Config):
    """What is learnt."""

    kind: Kind = Field(
        "language-modeling",
        description="language-modeling: next-token prediction; text- and image-classification: one label for each; "
        "regression: a number from columns of numbers; custom: `command`.",
    )
    loss: Loss | None = Field(
        None,
        description="What training makes small. Absent: cross-entropy, or mse for regression. binary-cross-entropy: a "
        "sample has any number of labels (a list in `labelField`), each decided for itself.",
    )
    huber_delta: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="Error above which huber is linear, in standard deviations of the target. Absent: 1."
    )
    custom: Custom | None = Field(None, description="The program to run (custom).")

    @model_validator(mode="after")
    def _custom_has_a_command(self) -> Self:
        if self.kind == "custom" and self.custom is None:
            raise ValueError("custom is required for kind custom: give the command to run")
        if self.kind != "custom" and self.custom is not None:
            raise ValueError(f"custom is not for kind {self.kind}: set kind to custom, or remove it")
        return self

    @model_validator(mode="after")
    def _loss_is_of_the_kind(self) -> Self:
        if self.loss is not None and self.loss not in LOSSES[self.kind]:
            allowed = ", ".join(LOSSES[self.kind]) or "none"
            raise ValueError(f"loss {self.loss} is not for kind {self.kind}, whose losses are: {allowed}")
        return self

    @property
    def objective(self) -> Loss:
        """The loss, after the default."""
        return self.loss or LOSSES[self.kind][0]

    @property
    def delta(self) -> float:
        """`huberDelta`, after the default."""
        return self.huber_delta or 1.0

    @property
    def multi_label(self) -> bool:
        """Whether a sample has any number of labels."""
        return self.loss == "binary-cross-entropy"
