"""What to train: the part of a TrainingJob's spec that the trainer reads, as typed, validated objects.

The same models are the operator's source for the CRD's schema (so: pydantic only, no torch, no boto3) and the trainer's
only configuration. On the wire the names are camelCase, in Python snake_case. Every string, list and map has a maximum,
because the API server's CEL cost budget needs one.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Uri = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.*|/.*)$")]
Name = Annotated[str, Field(min_length=1, max_length=253)]
ObjectName = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Argument = Annotated[str, Field(max_length=4096)]
Quantity = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]


class Config(BaseModel):
    """Base of every configuration object: camelCase on the wire, immutable, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, validate_default=True
    )

    def wire(self) -> dict[str, Any]:
        """The object as JSON-able camelCase data, defaults included, absent optionals left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Storage(Config):
    """Where `s3://` leads and whose credentials open it."""

    endpoint_url: Annotated[str, Field(max_length=1024, pattern=r"^https?://.+")] | None = Field(
        None, description="S3 endpoint, for S3-compatible servers. Absent: Amazon's."
    )
    region: Annotated[str, Field(max_length=64)] | None = Field(None, description="S3 region.")
    credentials_secret: ObjectName | None = Field(
        None, description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and optionally AWS_SESSION_TOKEN."
    )
    service_account_name: ObjectName | None = Field(
        None, description="ServiceAccount of the pods, where it stands for the credentials (IRSA, workload identity)."
    )

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.credentials_secret is not None and self.service_account_name is not None:
            raise ValueError("credentialsSecret and serviceAccountName exclude each other: remove one")
        return self


class Custom(Config):
    """A training program of your own. It runs once in every worker pod, with what torch.distributed asks for in env."""

    command: Annotated[list[Argument], Field(min_length=1, max_length=64)] = Field(
        description="Program and first arguments; not run in a shell."
    )
    args: Annotated[list[Argument], Field(max_length=256)] = Field(
        default_factory=list, description="Further arguments."
    )


Kind = Literal["language-modeling", "image-classification", "custom"]
# Parts of a spec that describe a task of the trainer's own. A custom command has no use for them, but for an outputUri.
OWN_TASK_PARTS = ("data", "model", "training")
REQUIRED: dict[Kind, tuple[str, ...]] = {
    "language-modeling": ("output_uri", *OWN_TASK_PARTS),
    "image-classification": ("output_uri", *OWN_TASK_PARTS),
    "custom": (),
}


class Task(Config):
    """What is learnt."""

    kind: Kind = Field(
        "language-modeling",
        description="language-modeling: next-token prediction; image-classification: one label; custom: `command`.",
    )
    custom: Custom | None = Field(None, description="The program to run (custom).")

    @model_validator(mode="after")
    def _custom_has_a_command(self) -> Self:
        if self.kind == "custom" and self.custom is None:
            raise ValueError("custom is required for kind custom: give the command to run")
        if self.kind != "custom" and self.custom is not None:
            raise ValueError(f"custom is not for kind {self.kind}: set kind to custom, or remove it")
        return self


class Source(Config):
    """Raw data: one object, all objects below a prefix, or a glob."""

    uri: Uri = Field(
        description="Object, prefix ending in '/', or glob. `.gz` and `.zst` JSONL and text are decompressed."
    )
    format: Literal["jsonl", "text", "parquet"] = Field(
        "jsonl", description="jsonl: one JSON object a line; text: one document a file; parquet: one row an example."
    )
    field: Name = Field("text", description="Field or column that holds the text (language-modeling).")
    image_field: Name = Field("image", description="Column of encoded images, PNG or JPEG (image-classification).")
    label_field: Name = Field("label", description="Column of integer or string labels (image-classification).")


class Split(Config):
    """A held-out split: a fraction of the training data, cut by content hash, or data of its own."""

    fraction: Annotated[float, Field(gt=0, le=0.5)] | None = Field(None, description="Share of the training documents.")
    uri: Uri | None = Field(None, description="Raw data of its own, in the format of `train`.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.fraction is None) == (self.uri is None):
            raise ValueError("exactly one of fraction and uri must be set")
        return self


class Tokenizer(Config):
    """The tokenizer, trained on the training documents only."""

    train: Literal["bpe"] = Field("bpe", description="bpe: byte-level byte-pair encoding.")
    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] = Field(32_000, description="Entries, EOS included.")


class Clean(Config):
    """What becomes of raw documents before they are split and tokenized."""

    normalize: bool = Field(
        True, description="Unicode NFC, line ends to \\n, control characters removed, ends stripped."
    )
    min_chars: Annotated[int, Field(ge=0, le=1_000_000)] = Field(1, description="Shorter documents are dropped.")
    max_chars: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        10_000_000, description="Longer documents are cut to this length."
    )
    deduplicate: bool = Field(True, description="Of documents with equal content one is kept.")

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"minChars ({self.min_chars}) must not be above maxChars ({self.max_chars})")
        return self


class Prepare(Config):
    """How raw data becomes shards: Ray Data on CPU-only pods, before a GPU is asked for."""

    replicas: Annotated[int, Field(ge=1, le=256)] = Field(1, description="Pods that prepare the data.")
    cpu: Quantity = Field("1", description="CPU request and limit of a prepare pod.")
    memory: Quantity = Field("4Gi", description="Memory request and limit of a prepare pod.")
    tokenizer: Tokenizer = Field(default_factory=Tokenizer, description="Tokenizer (language-modeling).")
    clean: Clean = Field(default_factory=Clean, description="Cleaning of text.")


class Data(Config):
    """The data: raw in S3, three splits."""

    train: Source = Field(description="Training data.")
    validation: Split = Field(default_factory=lambda: Split(fraction=0.01), description="Watched while training.")
    test: Split = Field(default_factory=lambda: Split(fraction=0.01), description="Held out until training is over.")
    prepare: Prepare = Field(default_factory=Prepare, description="Preparation.")

    @model_validator(mode="after")
    def _training_data_remains(self) -> Self:
        held_out = (self.validation.fraction or 0) + (self.test.fraction or 0)
        if held_out >= 1:
            raise ValueError(
                "validation.fraction and test.fraction leave nothing to train on: their sum must be below 1"
            )
        return self


class Transformer(Config):
    """Size of a Transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    layers: Annotated[int, Field(ge=1, le=256)] = Field(description="Blocks.")
    dim: Annotated[int, Field(ge=8, le=65536)] = Field(description="Width of the residual stream.")
    heads: Annotated[int, Field(ge=1, le=512)] = Field(description="Attention heads.")
    kv_heads: Annotated[int, Field(ge=1, le=512)] | None = Field(
        None, description="Key and value heads. Absent: heads."
    )
    ffn_dim: Annotated[int, Field(ge=8, le=262144)] | None = Field(
        None, description="Hidden width of the SwiGLU. Absent: 8/3 of dim, rounded up to a multiple of 64."
    )
    rope_theta: Annotated[float, Field(gt=0, le=1e9)] = Field(10_000.0, description="Base of the rotary positions.")
    tie_embeddings: bool = Field(True, description="Output head shares the input embedding (language-modeling).")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout on the residual branches.")
    patch_size: Annotated[int, Field(ge=1, le=64)] = Field(2, description="Pixels a patch side (image-classification).")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of heads ({self.heads})")
        if (self.dim // self.heads) % 2:
            raise ValueError(f"dim / heads ({self.dim // self.heads}) must be even for rotary positions")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads ({self.heads}) must be a multiple of kvHeads ({self.kv_heads})")
        return self

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the feed-forward, after the default."""
        return self.ffn_dim or -(-(8 * self.dim // 3) // 64) * 64


PRESETS: dict[str, Transformer] = {
    "gpt-nano": Transformer(layers=4, dim=128, heads=4),
    "gpt-3m": Transformer(layers=4, dim=192, heads=6),
    "gpt-124m": Transformer(layers=12, dim=768, heads=12),
    "gpt-350m": Transformer(layers=24, dim=1024, heads=16),
    "llama-1b": Transformer(layers=16, dim=2048, heads=32, kv_heads=8, ffn_dim=8192, rope_theta=500_000.0),
    "llama-8b": Transformer(
        layers=32, dim=4096, heads=32, kv_heads=8, ffn_dim=14336, rope_theta=500_000.0, tie_embeddings=False
    ),
}


class Model(Config):
    """The model: a preset, or its size field by field."""

    preset: Literal["gpt-nano", "gpt-3m", "gpt-124m", "gpt-350m", "llama-1b", "llama-8b"] | None = Field(
        None, description="A named size."
    )
    transformer: Transformer | None = Field(None, description="A size of your own.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.preset is None) == (self.transformer is None):
            raise ValueError("exactly one of preset and transformer must be set")
        return self

    @property
    def size(self) -> Transformer:
        """The size, whichever way it was named."""
        return self.transformer or PRESETS[str(self.preset)]


class Optimizer(Config):
    """From gradients to weights. Decay and penalties are for matrices; norms and biases are spared."""

    name: Literal["adamw", "adam", "sgd", "rmsprop", "adagrad", "muon"] = Field(
        "adamw", description="Optimizer. muon: for the matrices inside the blocks, with AdamW for the rest."
    )
    lr: Annotated[float, Field(gt=0, le=10)] = Field(6e-4, description="Peak learning rate.")
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.95], description="Decay of the first and second moment (adamw, adam, muon)."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Momentum (sgd, rmsprop, muon). Absent: 0.9 for sgd, 0.95 for muon, 0 for rmsprop."
    )
    nesterov: bool = Field(False, description="Nesterov's momentum (sgd; muon always has it).")
    alpha: Annotated[float, Field(ge=0, lt=1)] = Field(0.99, description="Decay of the mean square (rmsprop).")
    eps: Annotated[float, Field(gt=0, le=1)] = Field(1e-8, description="Added to the denominator.")
    weight_decay: Annotated[float, Field(ge=0, le=10)] | None = Field(
        None, description="Decoupled weight decay. Absent: 0.1 for adamw and muon unless l2 is set, else 0."
    )
    l2: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="Weight of the penalty sum(w^2)/2 in the loss: the coupled kind of weight decay."
    )
    l1: Annotated[float, Field(ge=0, le=10)] = Field(0.0, description="Weight of the penalty sum(|w|) in the loss.")

    @model_validator(mode="after")
    def _one_kind_of_decay(self) -> Self:
        if self.l2 and self.weight_decay:
            raise ValueError(
                f"l2 ({self.l2:g}) is coupled and weightDecay ({self.weight_decay:g}) decoupled decay: set one of them"
            )
        return self

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("nesterov is for name sgd with a momentum above 0")
        return self

    @property
    def decay(self) -> float:
        """Decoupled weight decay, after the default."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.1 if self.name in ("adamw", "muon") and not self.l2 else 0.0

    @property
    def inertia(self) -> float:
        """Momentum, after the default."""
        return self.momentum if self.momentum is not None else {"sgd": 0.9, "muon": 0.95}.get(self.name, 0.0)


class Point(Config):
    """A point of a piecewise linear schedule."""

    step: Annotated[int, Field(ge=0, le=100_000_000)] = Field(description="Step, counted from 0.")
    ratio: Annotated[float, Field(ge=0, le=1)] = Field(description="Learning rate over the peak.")


class Schedule(Config):
    """Linear warm-up, then a shape that ends at the last step. A pure function of the step."""

    name: Literal["cosine", "constant", "linear", "warmup-stable-decay", "points"] = Field(
        "cosine", description="Shape after the warm-up."
    )
    warmup_steps: Annotated[int, Field(ge=0, le=10_000_000)] = Field(100, description="Steps of linear warm-up.")
    min_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="Last learning rate over the peak (cosine, linear, warmup-stable-decay)."
    )
    decay_steps: Annotated[int, Field(ge=1, le=100_000_000)] = Field(
        1000, description="Last steps, in which the rate falls (warmup-stable-decay)."
    )
    points: Annotated[list[Point], Field(max_length=64)] = Field(
        default_factory=list, description="Steps in rising order, with straight lines between them (points)."
    )

    @model_validator(mode="after")
    def _points_rise(self) -> Self:
        if (self.name == "points") != bool(self.points):
            raise ValueError("points are given exactly if name is points")
        steps = [point.step for point in self.points]
        if any(left >= right for left, right in pairwise(steps)):
            raise ValueError(f"points must be in rising order of step, without repetition; their steps are {steps}")
        return self


class EarlyStopping(Config):
    """The run ends when the validation loss, or another metric, does not get better any more."""

    metric: Annotated[str, Field(min_length=1, max_length=64)] = Field("loss", description="Metric that is watched.")
    mode: Literal["min", "max"] = Field("min", description="Whether less or more of it is better.")
    patience: Annotated[int, Field(ge=1, le=10_000)] = Field(3, description="Evaluations without a better one.")
    min_delta: Annotated[float, Field(ge=0, le=1e6)] = Field(0.0, description="Least improvement that counts.")


class Training(Config):
    """How long, in what batches, with what optimizer."""

    steps: Annotated[int, Field(ge=1, le=100_000_000)] = Field(description="Optimizer steps of the whole run.")
    global_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        64, description="Samples an optimizer step, over all ranks; never changes with the world size."
    )
    sequence_length: Annotated[int, Field(ge=8, le=1_048_576)] = Field(1024, description="Tokens a sample.")
    micro_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        None, description="Rows a rank holds in one pass. Absent: the rank's whole share of the batch, at most 8."
    )
    optimizer: Optimizer = Field(default_factory=Optimizer, description="Optimizer.")
    schedule: Schedule = Field(default_factory=Schedule, description="Learning-rate schedule.")
    clip_norm: Annotated[float, Field(ge=0, le=1e6)] = Field(
        1.0, description="Global gradient norm, clipped to this. 0: not clipped."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the target's weight that is spread over all classes, in the training loss only."
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Decay of a moving average of the weights, which is evaluated and exported. 0: none."
    )
    early_stopping: EarlyStopping | None = Field(None, description="Ends the run before its last step. Absent: never.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of the passes; weights, moments and reductions are float32. auto: bfloat16 on CUDA."
    )
    deterministic: bool = Field(False, description="Deterministic kernels only: the same run gives the same bits.")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(1, description="Of weights, data order and dropout.")
    log_every: Annotated[int, Field(ge=1, le=1_000_000)] = Field(10, description="Steps between two logged losses.")


class Checkpoint(Config):
    """When state is committed to the run directory and what is kept of it."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] = Field(500, description="Steps between two checkpoints.")
    keep_last: Annotated[int, Field(ge=1, le=1000)] = Field(2, description="Newest checkpoints that are kept.")
    keep_best: Annotated[int, Field(ge=0, le=1000)] = Field(
        1, description="Best checkpoints by validation loss that are kept."
    )
    drain_seconds: Annotated[int, Field(ge=5, le=86_400)] = Field(
        120, description="Grace period of the pods: time to commit a checkpoint after SIGTERM."
    )


class Evaluation(Config):
    """Evaluation on the validation split while training; the test split is evaluated once, at the end."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] = Field(500, description="Steps between two evaluations.")
    max_samples: Annotated[int, Field(ge=1, le=100_000_000)] | None = Field(
        None, description="Validation samples of a periodic evaluation. Absent: all. The final one is always whole."
    )


class JobSpec(Config):
    """The fields of a TrainingJob's spec that its pods read; `operator/.../api/spec.py` adds how to run them."""

    storage: Storage = Field(default_factory=Storage, description="Access to S3.")
    output_uri: Uri | None = Field(
        None,
        description="Run directory: attempts, checkpoints, reports, exported model. Custom commands find it in "
        "$TRAININGJOB_OUTPUT_URI.",
    )
    task: Task = Field(default_factory=Task, description="Task.")
    data: Data | None = Field(None, description="Data. For every kind but custom.")
    model: Model | None = Field(None, description="Model. For every kind but custom.")
    training: Training | None = Field(None, description="Training. For every kind but custom.")
    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint,
        description="Checkpoints. A custom command makes its own: of these fields it has `drainSeconds` only.",
    )
    evaluation: Evaluation = Field(
        default_factory=Evaluation, description="Evaluation. Not read for kind custom, whose command decides."
    )

    @model_validator(mode="after")
    def _has_the_parts_of_its_kind(self) -> Self:
        kind = self.task.kind
        for part in (part for part in REQUIRED[kind] if getattr(self, part) is None):
            raise ValueError(f"{to_camel(part)} is required for task.kind {kind}")
        for part in (part for part in OWN_TASK_PARTS if getattr(self, part) is not None):
            if part not in REQUIRED[kind]:
                raise ValueError(f"{part} is not for task.kind {kind}, whose command decides about it: remove it")
        return self

    @model_validator(mode="after")
    def _images_are_columns(self) -> Self:
        if self.task.kind == "image-classification" and self.data is not None and self.data.train.format != "parquet":
            raise ValueError(
                f"data.train.format is {self.data.train.format}: image-classification reads parquet, "
                "with a column of encoded images"
            )
        return self


class TrainerSpec(JobSpec):
    """A job of one of the trainer's own tasks: all its parts are there."""

    output_uri: Uri
    data: Data
    model: Model
    training: Training

    def identity(self) -> dict[str, Any]:
        """What makes two runs' states interchangeable: nothing that may change over one run directory is in it.

        Flat: dotted field name -> value, so that a difference can be named.
        """
        spec = self.wire()
        data = {k: v for k, v in spec["data"].items() if k != "prepare"}
        prepare = spec["data"]["prepare"]
        parts: dict[str, Any] = {
            "task": {"kind": self.task.kind},
            "data": {**data, "prepare": {"tokenizer": prepare["tokenizer"], "clean": prepare["clean"]}},
            "model": self.model.size.wire(),
            "training": {
                "seed": self.training.seed,
                "globalBatchSize": self.training.global_batch_size,
                "sequenceLength": self.training.sequence_length,
                "emaDecay": self.training.ema_decay,
                "optimizer": {"name": self.training.optimizer.name},
            },
        }
        return dict(_flatten(parts))

    def identity_hash(self) -> str:
        """Hash of `identity()`: a run directory belongs to one."""
        return digest(self.identity())

    def plan_hash(self) -> str:
        """Hash of everything that the result depends on: a stored result answers exactly this."""
        plan = {
            "training": self.training.wire(),
            "evaluation": self.evaluation.wire(),
            "keepBest": self.checkpoint.keep_best,
        }
        return digest({**self.identity(), **dict(_flatten(plan))})


class PodConfig(JobSpec):
    """What a pod gets as `/etc/trainingjob/config.json`: the spec's part, and the facts that the operator resolved."""

    name: Name
    namespace: Name
    min_replicas: int | None = Field(None, ge=1)
    ranks_per_pod: int = Field(ge=1)
    max_restarts: int = Field(ge=0)
    on_existing_run: Literal["Resume", "Overwrite"] = "Resume"


class JobConfig(TrainerSpec, PodConfig):
    """The same for a job of one of the trainer's own tasks."""


def digest(value: Any) -> str:
    """Short, stable hash of JSON-able data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, item in value.items():
        if isinstance(item, dict):
            flat += _flatten(item, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", item))
    return flat
