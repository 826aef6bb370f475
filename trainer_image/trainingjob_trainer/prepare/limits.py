"""What a configuration asks of the prepared data, refused with the figures before a GPU is asked for."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence

from pydantic.alias_generators import to_camel

from trainingjob_trainer.accounting import (
    ModelSize,
    checkpointed_bytes_per_parameter,
    gigabytes,
    host_memory,
    transformer_size,
)
from trainingjob_trainer.config import METRICS, Config, JobConfig, TrainerSpec, Transformer, amount, nearest
from trainingjob_trainer.data.manifest import SPLITS, Manifest
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.storage import Store

MOST_RARE = 100  # classes; more of them, for less than two examples each, are no labels but names or texts
PROBE, PROBE_KEY = 8 * 2**20, "probe"
SLOWEST = 2_000_000  # bytes a second of a pod; no storage is slower, and no probe is made for less


def check_ranks(config: JobConfig) -> None:
    """Raises `UserError` if the batch leaves a rank without a row, or the ranks do not divide into groups."""
    # The fewest: the API server looked at the most. Those of a tensor-parallel group compute on the same rows.
    fewest, spread = config.fewest_pods * config.ranks_per_pod, config.training.parallelism
    ranks = fewest // spread.tensor
    if config.training.global_batch_size < ranks:
        raise UserError(
            f"spec.training.globalBatchSize is {config.training.global_batch_size}, less than one sample for each of "
            f"{ranks} ranks.",
            f"Raise it to {ranks} or more, or ask for fewer ranks.",
        )
    ranks = config.ranks_per_pod if config.min_replicas else fewest  # any number of an elastic job's pods must do
    if ranks % spread.group:
        raise UserError(
            f"{ranks} ranks do not divide into groups of {spread.group} (spec.training.parallelism).",
            f"Ask for a multiple of {spread.group} ranks, or make the groups smaller.",
        )


def check_unread(config: JobConfig) -> None:
    """Raises `UserError` if a number is given that nothing reads: the run would not be the one that was meant."""
    task, training = config.task, config.training
    kinds = [kind for kind in METRICS if kind not in ("regression", "custom")]
    _check_read("task", task, "huber_delta", "task.loss", task.objective, ("huber",))
    _check_read("training", training, "label_smoothing", "task.kind", task.kind, kinds)
    optimizer, name = training.optimizer, training.optimizer.name
    _check_read("training.optimizer", optimizer, "momentum", "name", name, ("sgd", "rmsprop", "muon"))
    _check_read("training.optimizer", optimizer, "betas", "name", name, ("adamw", "adam", "muon"))
    _check_read("training.optimizer", optimizer, "alpha", "name", name, ("rmsprop",))
    schedule, falling = training.schedule, ("cosine", "linear", "warmup-stable-decay")
    _check_read("training.schedule", schedule, "min_ratio", "name", schedule.name, falling)
    _check_read("training.schedule", schedule, "decay_steps", "name", schedule.name, falling[2:])


def _check_read(place: str, owner: Config, name: str, decides: str, present: str, readers: Sequence[str]) -> None:
    """Of the field `name` of `owner`, which is at `place` in the spec, and which only `readers` read."""
    value, default = getattr(owner, name), type(owner).model_fields[name].get_default(call_default_factory=True)
    if value != default and present not in readers:
        raise UserError(
            f"spec.{place}.{to_camel(name)} is {value}, and is not read where {decides} is {present}.",
            f"Remove it; it is for {', '.join(readers)}.",
        )


def check_splits(config: JobConfig) -> None:
    """Raises `UserError` if two splits are the same data: what is held out is neither trained on nor chosen by."""
    data = config.data
    seen = dict.fromkeys(data.train.uris, "train")
    for name, uri in (("validation", data.validation.uri), ("test", data.test.uri)):
        if uri is not None and uri in seen:
            raise UserError(
                f"spec.data.{name}.uri is {uri}, and so is the data of {seen[uri]}: no example can be in both.",
                f"Name other data, or set spec.data.{name}.fraction to cut it out of the training data.",
            )
        if uri is not None:
            seen[uri] = name


def check_columns(config: JobConfig) -> None:
    """Raises `UserError` if a table's columns are not what they should be: each once, and without the answer."""
    source = config.data.train
    if config.task.kind != "regression":
        return
    if source.label_field in source.features:
        raise UserError(
            f"spec.data.train.features has {source.label_field}, which is spec.data.train.labelField: the model would "
            "be given what it is to predict.",
            "Take it out of features.",
        )
    if twice := [name for name in source.features if source.features.count(name) > 1]:
        raise UserError(f"spec.data.train.features has {twice[0]} more than once.", "Name each column once.")


def check_metrics(config: JobConfig) -> None:
    """Raises `UserError` if a field names a metric that no evaluation has, or would take the worst for the best."""
    policy, stopping = config.checkpoint, config.training.early_stopping
    named = [("checkpoint.bestMetric", policy.best_metric, "checkpoint.bestMode", policy.best_mode)]
    if stopping is not None:
        field = "training.earlyStopping"
        named.append((f"{field}.metric", stopping.metric, f"{field}.mode", stopping.mode))
    known = METRICS[config.task.kind]
    for field, metric, mode_field, mode in named:
        if metric not in known:
            raise UserError(
                f"spec.{field} is {metric}, which task.kind {config.task.kind} does not have"
                f"{nearest(metric, list(known))}.",
                f"Use one of {', '.join(known)}.",
            )
        if mode != known[metric]:
            better = "less" if known[metric] == "min" else "more"
            raise UserError(
                f"spec.{mode_field} is {mode}, but {better} of {metric} is better: the worst would pass for the best.",
                f"Set it to {known[metric]}.",
            )


def check_profile(config: JobConfig) -> None:
    """Raises `UserError` if the steps to record never come."""
    profile, steps = config.training.profile, config.training.steps
    if profile is not None and steps is not None and profile.from_step > steps:
        raise UserError(
            f"spec.training.profile.fromStep is {profile.from_step}, but the last step is {steps}: nothing would be "
            "recorded.",
            f"Set it to {steps} or less.",
        )


def model_size(config: JobConfig, manifest: Manifest) -> ModelSize:
    """What the model takes over the data of a manifest, by arithmetic or, with torch, by a trial.

    Raises `UserError` if it cannot be made.
    """
    if isinstance(config.model.architecture, Transformer):
        return transformer_size(config, manifest)
    from trainingjob_trainer.models.trial import tried

    return tried(config, manifest)


def check_memory(config: JobConfig, model: ModelSize, data_bytes: int, held_bytes: int | None) -> None:
    """Raises `UserError` if a worker pod cannot hold what its ranks certainly need.

    data_bytes: of the training split, as far as it is known. held_bytes: of the weights that it begins with; None: it
    goes on from a checkpoint.
    """
    if config.pod_memory is None:
        return
    needed, limit = host_memory(config, model, data_bytes, held_bytes), round(amount(config.pod_memory))
    if needed.total > limit:
        raise UserError(
            f"spec.workers.resources.memory is {config.pod_memory} ({gigabytes(limit)}), less than the "
            f"{gigabytes(needed.total)} that a worker pod needs: {needed}.",
            f"Raise it to {-(-needed.total * 5 // 2**32)}Gi or more, or use more workers or a smaller model.",
        )


def drain_warning(config: JobConfig, store: Store, parameters: int) -> str:
    """What to say if a checkpoint cannot be uploaded within the grace period of the pods, judged by a small upload."""
    if config.pod_memory is None:  # there are none
        return ""
    seconds = config.checkpoint.drain_seconds
    share = parameters * checkpointed_bytes_per_parameter(config.training) // config.fewest_pods
    if share <= SLOWEST * seconds:
        return ""
    rate = upload_rate(store)
    if share <= rate * seconds:
        return ""
    return (
        f"A pod's part of a checkpoint has {gigabytes(share)}, and {gigabytes(round(rate))} a second were uploaded to "
        f"{store.uri()}: that may take longer than spec.checkpoint.drainSeconds ({seconds}), and then what was trained "
        f"since the last checkpoint is lost when a pod is evicted. Raise it to {round(2 * share / rate)}."
    )


def upload_rate(store: Store) -> float:
    """Bytes a second, of one small object that is deleted again."""
    data = os.urandom(PROBE)
    began = time.monotonic()
    store.put(PROBE_KEY, data)
    rate = PROBE / (time.monotonic() - began)
    store.delete([PROBE_KEY])
    return rate


def check_limits(config: TrainerSpec, manifest: Manifest) -> None:
    """Raises `UserError` if the data is too small for the configuration or doesn't fit the model."""
    training = config.training
    for name in SPLITS:
        split = manifest.splits[name]
        if manifest.num_samples(name, training.sequence_length) < 1:
            what, ways = f"{split.count} {manifest.kind}", ["give more data"]
            if name != "train" and getattr(config.data, name).fraction is not None:
                ways.insert(0, f"raise spec.data.{name}.fraction")
            if manifest.kind == "tokens":
                what += f" in {split.documents} documents; a sample takes {training.sequence_length + 1}"
                ways.append("or lower spec.training.sequenceLength")
            remedy = ", ".join(ways)
            raise UserError(f"The {name} split has {what}.", f"{remedy[0].upper()}{remedy[1:]}.")
    _check_batch(config, manifest)
    check_images(config, manifest)
    if manifest.classes is not None and len(manifest.classes) < (1 if manifest.multi_label else 2):
        raise UserError(
            f"All {manifest.kind} have the same label ({', '.join(manifest.classes)}).",
            "Correct spec.data.train.labelField.",
        )
    classes, examples = len(manifest.classes or ()), manifest.splits["train"].count
    if not manifest.multi_label and classes > MOST_RARE and 2 * classes > examples:
        raise UserError(
            f"There are {classes} classes for {examples} training {manifest.kind}: hardly any has a second case.",
            "Correct spec.data.train.labelField, or give more data.",
        )


def check_images(config: TrainerSpec, manifest: Manifest) -> None:
    """Raises `UserError` if images are not of a size that the configuration is for."""
    if manifest.kind != "images":
        return
    if isinstance(config.model.architecture, Transformer):
        _check_patches(config.model.architecture.patch_size, manifest.shape or ())
    if config.data.augmentation is not None:
        _check_shift(config.data.augmentation.shift, manifest.shape or ())


def check_length(config: TrainerSpec, manifest: Manifest, taken: int) -> None:
    """Raises `UserError` if a run took more steps than are asked for: its weights would pass for earlier ones."""
    training = config.training
    steps = training.in_steps(manifest.num_samples("train", training.sequence_length)).total_steps
    if steps < taken:
        field = next(name for name in ("steps", "epochs", "tokens") if getattr(training, name) is not None)
        in_steps = "" if field == "steps" else f", which is {steps} steps"
        raise UserError(
            f"spec.training.{field} is {getattr(training, field)}{in_steps}, but the run in spec.outputUri has a "
            f"checkpoint of step {taken}.",
            f"Ask for {taken} steps or more, or choose another spec.outputUri for a shorter run.",
        )


def _check_batch(config: TrainerSpec, manifest: Manifest) -> None:
    """No batch must hold a sample twice."""
    batch, length, source = config.training.global_batch_size, config.training.sequence_length, config.data.train
    if source.mixture is None:
        samples = manifest.num_samples("train", length)
        if batch > samples:
            raise UserError(
                f"spec.training.globalBatchSize is {batch}, but the training split has only {samples} samples: a batch "
                "would hold a sample twice.",
                f"Lower it to {samples} or less, or give more data.",
            )
    for number, component in enumerate(source.mixture or ()):
        samples = manifest.num_samples("train", length, number)
        share = math.ceil(batch * component.weight / sum(source.weights)) + 1  # at most, wherever it begins
        if share > samples:
            raise UserError(
                f"spec.training.globalBatchSize is {batch}, of which up to {share} are of {component.name}, but that "
                f"has only {samples} training samples: a batch would hold a sample twice.",
                f"Lower it, or the weight of {component.name} ({component.weight}), or give more data.",
            )


def _check_shift(shift: int, shape: tuple[int, ...]) -> None:
    _, height, width = shape
    if shift >= min(height, width):
        raise UserError(
            f"spec.data.augmentation.shift is {shift}, which moves images of {height} x {width} pixels out of the "
            "picture.",
            f"Set it to {min(height, width) - 1} or less; an eighth of the side is usual.",
        )


def _check_patches(patch: int, shape: tuple[int, ...]) -> None:
    _, height, width = shape
    if height % patch or width % patch:
        raise UserError(
            f"Images of {height} x {width} pixels do not divide into patches of spec.model.transformer.patchSize "
            f"{patch}.",
            "Choose a patch size that divides both sides.",
        )
