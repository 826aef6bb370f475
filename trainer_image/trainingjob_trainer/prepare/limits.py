"""What a configuration asks of the prepared data, refused with the figures before a GPU is asked for."""

from __future__ import annotations

from trainingjob_trainer.config import JobConfig, TrainerSpec, Transformer
from trainingjob_trainer.data.manifest import SPLITS, Manifest
from trainingjob_trainer.errors import UserError


def check_ranks(config: JobConfig) -> None:
    """Raises `UserError` if the batch leaves a rank without a row."""
    ranks = (config.min_replicas or 1) * config.ranks_per_pod  # the fewest: the API server looked at the most
    if config.training.global_batch_size < ranks:
        raise UserError(
            f"spec.training.globalBatchSize is {config.training.global_batch_size}, less than one sample for each of "
            f"{ranks} ranks.",
            f"Raise it to {ranks} or more, or ask for fewer ranks.",
        )


def check_limits(config: TrainerSpec, manifest: Manifest) -> None:
    """Raises `UserError` if the data is too small for the configuration or doesn't fit the model."""
    training = config.training
    for name in SPLITS:
        split = manifest.splits[name]
        if manifest.num_samples(name, training.sequence_length) < 1:
            wanted = f"; a sample takes {training.sequence_length + 1}" if manifest.kind == "tokens" else ""
            raise UserError(
                f"The {name} split has {split.count} {manifest.kind} in {split.documents} documents{wanted}.",
                f"Raise spec.data.{name}.fraction, give more data, or lower spec.training.sequenceLength.",
            )
    samples = manifest.num_samples("train", training.sequence_length)
    if training.global_batch_size > samples:
        raise UserError(
            f"spec.training.globalBatchSize is {training.global_batch_size}, but the training split has only "
            f"{samples} samples: a batch would hold a sample twice.",
            f"Lower it to {samples} or less, or give more data.",
        )
    if manifest.kind == "images" and isinstance(config.model.architecture, Transformer):
        _check_patches(config.model.architecture.patch_size, manifest.shape or ())
    if manifest.classes is not None and len(manifest.classes) < (1 if manifest.multi_label else 2):
        raise UserError(
            f"All {manifest.kind} have the same label ({', '.join(manifest.classes)}).",
            "Correct spec.data.train.labelField.",
        )


def _check_patches(patch: int, shape: tuple[int, ...]) -> None:
    _, height, width = shape
    if height % patch or width % patch:
        raise UserError(
            f"Images of {height} x {width} pixels do not divide into patches of spec.model.transformer.patchSize "
            f"{patch}.",
            "Choose a patch size that divides both sides.",
        )
