"""The whole of it: what a TrainingJob says about training, and what a pod gets."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from trainingjob_trainer.config.base import Config, Name, Quantity, Uri, digest
from trainingjob_trainer.config.data import ORDER_VERSION, Data
from trainingjob_trainer.config.model import ARCHITECTURES, Model, Transformer
from trainingjob_trainer.config.task import OWN_TASK_PARTS, REQUIRED, Storage, Task
from trainingjob_trainer.config.training import Checkpoint, Evaluation, Training


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
    def _format_has_the_fields(self) -> Self:
        read = None if self.data is None else self.data.train.format
        if self.task.kind == "image-classification" and read not in (None, "parquet"):
            raise ValueError(
                f"data.train.format is {read}: image-classification reads parquet, with a column of encoded images"
            )
        if self.task.kind == "text-classification" and read == "text":
            raise ValueError("data.train.format is text: text-classification reads jsonl, csv or parquet, with labels")
        if self.task.kind == "regression" and self.data is not None:
            if read == "text":
                raise ValueError("data.train.format is text: regression reads columns, of csv, jsonl or parquet")
            if not self.data.train.features:
                raise ValueError("data.train.features is required for task.kind regression: name the columns")
        return self

    @model_validator(mode="after")
    def _mixes_documents(self) -> Self:
        if self.data is None or self.data.train.mixture is None:
            return self
        if self.task.kind != "language-modeling":
            raise ValueError(f"data.train.mixture is not for task.kind {self.task.kind}: give one uri")
        if self.training is not None and self.training.epochs is not None:
            raise ValueError(
                "training.epochs is not for data.train.mixture, each source of which has epochs of its own: give steps "
                "or tokens"
            )
        return self

    @model_validator(mode="after")
    def _packs_documents(self) -> Self:
        if self.data is not None and self.data.packing and self.task.kind != "language-modeling":
            raise ValueError(f"data.packing is not for task.kind {self.task.kind}, whose samples are apart: remove it")
        if self.data is not None and self.data.packing and self.model is not None:
            if self.model.rnn is not None:
                raise ValueError(
                    "data.packing is not for model.rnn, whose state goes from document to document: remove it"
                )
            if self.model.huggingface is not None:
                raise ValueError("data.packing is not for model.huggingface: remove it")
        return self

    @model_validator(mode="after")
    def _augments_images(self) -> Self:
        kind = self.task.kind
        if self.data is not None and self.data.augmentation is not None and kind != "image-classification":
            raise ValueError(f"data.augmentation is not for task.kind {kind}, whose samples are no images: remove it")
        return self

    @model_validator(mode="after")
    def _counts_tokens(self) -> Self:
        if self.training is not None and self.training.tokens is not None and self.task.kind != "language-modeling":
            raise ValueError(f"training.tokens is not for task.kind {self.task.kind}: give steps or epochs")
        return self

    @model_validator(mode="after")
    def _can_be_exported(self) -> Self:
        if self.task.kind != "language-modeling" or self.model is None or self.model.export == "none":
            return self
        size = self.model.architecture
        if isinstance(size, Transformer) and size.family is None:
            raise ValueError(
                f"model.transformer (norm {size.norm}, positions {size.positions}, ffn {size.ffn}, bias {size.bias}) "
                "has no counterpart among GPT-2, Llama and Qwen to be exported to: change it, or set model.export to "
                "none"
            )
        return self

    @model_validator(mode="after")
    def _only_language_models_begin_with_another(self) -> Self:
        model = self.model
        if self.task.kind == "language-modeling" or model is None or model.init_from is None:
            return self
        if model.huggingface is None and model.timm is None:
            raise ValueError(
                f"model.initFrom is for task.kind language-modeling or models of libraries, not {self.task.kind} with "
                "another model: remove it"
            )
        return self

    @model_validator(mode="after")
    def _samples_fit_into_the_context(self) -> Self:
        context = None if self.model is None else self.model.context
        if self.training is not None and context is not None and self.training.sequence_length > context:
            raise ValueError(
                f"training.sequenceLength ({self.training.sequence_length}) must not be above "
                f"model.transformer.context ({context})"
            )
        return self

    @model_validator(mode="after")
    def _model_is_for_the_task(self) -> Self:
        kind = self.task.kind
        given = [] if self.model is None else [n for n in ARCHITECTURES if getattr(self.model, n) is not None]
        for name in given:
            if kind not in ARCHITECTURES[name]:
                others = ", ".join(other for other, kinds in ARCHITECTURES.items() if kind in kinds)
                raise ValueError(f"model.{name} is not for task.kind {kind}: set one of {others}")
        if self.training is not None and self.training.optimizer.name == "muon" and given in (["cnn"], ["timm"]):
            raise ValueError(
                f"training.optimizer.name is muon, which is for matrices in blocks: it is not for model.{given[0]}"
            )
        return self

    @model_validator(mode="after")
    def _can_be_split(self) -> Self:
        if self.model is None or self.training is None or self.training.parallelism.tensor == 1:
            return self
        tensor, size = f"training.parallelism.tensor ({self.training.parallelism.tensor})", self.model.architecture
        if self.task.kind != "language-modeling":
            raise ValueError(f"{tensor} is not for task.kind {self.task.kind}: only decoders can be split")
        if not isinstance(size, Transformer):
            name = "rnn" if self.model.rnn is not None else "huggingface"
            raise ValueError(f"{tensor} is not for model.{name}: only decoders of our own can be split")
        if self.training.label_smoothing:
            raise ValueError(f"{tensor} and training.labelSmoothing exclude each other: remove one")
        parts = {
            f"the key and value heads of the model ({size.num_kv_heads})": size.num_kv_heads,
            f"training.sequenceLength ({self.training.sequence_length})": self.training.sequence_length,
            f"the hidden width of the feed-forward ({size.hidden_dim})": size.hidden_dim,
        }
        for name, number in parts.items():
            if number % self.training.parallelism.tensor:
                raise ValueError(f"{tensor} must divide {name}")
        return self


class TrainerSpec(JobSpec):
    """A job of one of the trainer's own tasks: all its parts are there."""

    output_uri: Uri
    data: Data
    model: Model
    training: Training

    @property
    def context(self) -> int:
        """Positions that the model knows: the length of a learned table, and what an export states."""
        return self.model.context or self.training.sequence_length

    def identity(self) -> dict[str, Any]:
        """What makes two runs' states interchangeable: nothing that may change over one run directory is in it.

        Flat: dotted field name -> value, so that a difference can be named. Of a model, and of augmentation, only what
        is not the default, so that a field that a later version adds makes no other run of it.
        """
        spec = self.wire()
        data = {k: v for k, v in spec["data"].items() if k not in ("prepare", "onCorrupt", "augmentation")}
        prepare = spec["data"]["prepare"]
        parts: dict[str, Any] = {
            "task": {"kind": self.task.kind, "loss": self.task.objective, "huberDelta": self.task.delta},
            "data": {
                **data,
                "prepare": {"tokenizer": prepare["tokenizer"], "clean": prepare["clean"]},
                "order": ORDER_VERSION,
                "augmentation": {} if self.data.augmentation is None else self.data.augmentation.asked(),
            },
            "model": self.model.architecture.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            | ({"initFrom": self.model.init_from.wire()} if self.model.init_from is not None else {}),
            "training": {
                "seed": self.training.seed,
                "globalBatchSize": self.training.global_batch_size,
                "sequenceLength": self.training.sequence_length,
                "emaDecay": self.training.ema_decay,
                "optimizer": self.training.optimizer.identity(),
            },
        }
        return dict(_flatten(parts))

    def identity_hash(self) -> str:
        """Hash of `identity()`: a run directory belongs to one."""
        return digest(self.identity())

    def plan_hash(self) -> str:
        """Hash of everything that the result depends on: a stored result answers exactly this."""
        plan = {
            "training": {k: v for k, v in self.training.wire().items() if k not in ("parallelism", "profile")},
            "evaluation": self.evaluation.wire(),
            "best": [self.checkpoint.keep_best, self.checkpoint.best_metric, self.checkpoint.best_mode],
            "export": self.model.export,
        }
        return digest({**self.identity(), **dict(_flatten(plan))})


class PodConfig(JobSpec):
    """What a pod gets as `/etc/trainingjob/config.json`: the spec's part, and the facts that the operator resolved."""

    name: Name
    namespace: Name
    min_replicas: int | None = Field(None, ge=1)
    ranks_per_pod: int = Field(ge=1)
    fewest_pods: int = Field(1, ge=1)  # of an elastic job; else all of them
    pod_memory: Quantity | None = None  # limit of a worker pod; none where there are no pods
    gpus: bool = False
    max_restarts: int = Field(ge=0)
    on_existing_run: Literal["Resume", "Overwrite"] = "Resume"


class JobConfig(TrainerSpec, PodConfig):
    """The same for a job of one of the trainer's own tasks."""


def _flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, item in value.items():
        if isinstance(item, dict):
            flat += _flatten(item, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", item))
    return flat
