"""The Check stage: is everything there that the job needs, and what is left to do?

Light on purpose (no Ray, and torch only for models other than our Transformers): it runs on every start of every job,
before anything expensive is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.commits import latest
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest, read_tokenizer
from trainingjob_trainer.data.stream import REPAIR
from trainingjob_trainer.errors import DataError, StorageError, UserError
from trainingjob_trainer.prepare.examples import raw_objects, read_examples
from trainingjob_trainer.prepare.limits import (
    check_columns,
    check_images,
    check_length,
    check_limits,
    check_memory,
    check_metrics,
    check_profile,
    check_ranks,
    check_splits,
    check_unread,
    drain_warning,
    model_size,
)
from trainingjob_trainer.prepare.run_record import RUN_KEY, RunRecord
from trainingjob_trainer.prepare.supposed import supposed_manifest
from trainingjob_trainer.records import load_result
from trainingjob_trainer.storage import NotFound, PreconditionFailed, Store

if TYPE_CHECKING:
    from trainingjob_trainer.beginning import Source

RECORDS_READ = 3  # of the first object of each source
ROUNDS = 5  # somebody else may write run.json between our read and our write


@dataclass(frozen=True)
class CheckOutcome:
    """What comes next; with `Finished`, the stored `result.json`. warning: of the pods, which a run by hand has not."""

    outcome: Literal["Finished", "PrepareData", "Train"]
    result: dict[str, Any] | None
    message: str
    warning: str = ""


def check(config: JobConfig, store: Store) -> CheckOutcome:
    """Check storage, run directory and data of a job, and write `run.json`.

    Raises `UserError`, `DataError` or `StorageError` with the cause and the next step. A refused job leaves no trace
    in a new run directory: `run.json` is written last.
    """
    check_ranks(config)
    check_unread(config)
    check_columns(config)
    check_metrics(config)
    check_profile(config)
    for _ in range(ROUNDS):
        found = RunRecord.load(store)
        if found and found[0].identity_hash != config.identity_hash():
            _refuse_or_overwrite(config, store, *found)
            continue
        outcome = _what_is_left(config, store)
        try:
            _record_plan(config, store, found)
            return outcome
        except PreconditionFailed:
            continue
    raise UserError(
        f"{store.uri(RUN_KEY)} is being changed by other jobs all the time.", "Give every job an outputUri of its own."
    )


def _what_is_left(config: JobConfig, store: Store) -> CheckOutcome:
    result = load_result(store)
    if result and result.plan_hash == config.plan_hash():
        return CheckOutcome("Finished", result.wire(), f"The run is finished already: step {result.step}.")
    manifest = load_manifest(config, store)
    commit = latest(store) if manifest else None
    source = _to_begin_with(config) if commit is None else None
    known = manifest or supposed_manifest(config, source)
    check_images(config, known)
    size = model_size(config, known)
    if source is not None:
        source.check(config, known)
    data = sum(shard.size for shard in manifest.splits["train"].shards) if manifest else 0
    held = None if commit is not None else source.held_bytes if source is not None else 0
    check_memory(config, size, data, held)
    warning = drain_warning(config, store, size.parameters)
    if manifest:
        check_limits(config, manifest)
        if commit is not None:
            check_length(config, manifest, commit.step)
        _check_shards(config, manifest, store)
        if manifest.tokenizer_digest is not None:
            read_tokenizer(manifest, store)
        summary = manifest.summary(config.training.sequence_length)
        return CheckOutcome("Train", None, f"The data is ready: {summary}.", warning)
    return CheckOutcome("PrepareData", None, _check_raw_data(config), warning)


def _check_shards(config: JobConfig, manifest: Manifest, store: Store) -> None:
    """Raises `DataError` if a shard is not there whole, and is not to be skipped: ranks would find it on their GPUs."""
    if config.data.on_corrupt == "skip":
        return
    sizes = {found.key: found.size for found in store.list("data/")}
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        if shard.key not in sizes:
            raise DataError(f"The data shard {store.uri(shard.key)} is missing.", REPAIR)
        if sizes[shard.key] != shard.size:
            raise DataError(
                f"The data shard {store.uri(shard.key)} has {sizes[shard.key]} bytes, not the {shard.size} that the "
                "manifest says.",
                REPAIR,
            )


def _to_begin_with(config: JobConfig) -> Source | None:
    """The model that a run begins with; None if there is none."""
    if config.model.init_from is None:
        return None
    from trainingjob_trainer.beginning import source_of

    return source_of(config)


def _check_raw_data(config: JobConfig) -> str:
    """Read the first records of each source; returns what there is in a sentence."""
    check_splits(config)
    objects = raw_objects(config)
    first_of_each = {(split, raw.source): raw for split, raw in reversed(objects)}
    for (split, _), raw in first_of_each.items():
        list(islice(read_examples(config, split, raw), RECORDS_READ))
    size = sum(raw.size for _, raw in objects) / 1e6
    amount = f"{size:,.1f}" if size >= 1 else f"{size:.1g}"
    return f"The raw data ({len(objects)} object(s), {amount} MB) is to be prepared."


def load_manifest(config: JobConfig, store: Store) -> Manifest | None:
    """The manifest of this run's data, if the data is ready."""
    try:
        manifest = Manifest.model_validate_json(store.get(MANIFEST_KEY))
    except NotFound:
        return None
    except ValidationError as error:
        raise StorageError(
            f"{store.uri(MANIFEST_KEY)} is not the manifest of prepared data: {error.errors()[0]['msg']}.",
            "Restore it, or delete it to have the data prepared again.",
        ) from error
    return manifest if manifest.identity_hash == config.identity_hash() else None


def _record_plan(config: JobConfig, store: Store, found: tuple[RunRecord, str] | None) -> None:
    if found is None:
        store.put(RUN_KEY, RunRecord.of(config).to_json(), if_none_match=True)
    elif found[0].plan_hash != config.plan_hash():
        store.put(RUN_KEY, found[0].with_plan(config).to_json(), if_match=found[1])


def _refuse_or_overwrite(config: JobConfig, store: Store, record: RunRecord, etag: str) -> None:
    if config.on_existing_run != "Overwrite":
        raise UserError(
            f"{store.uri()} holds another run; it differs in {'; '.join(record.differences(config))[:1500]}.",
            "Choose another spec.outputUri, or set spec.runPolicy.onExistingRun to Overwrite, which deletes that run.",
        )
    _check_raw_data(config)  # nothing is deleted for a run that cannot begin
    # The attempts stay, and get one more: who still works for the old run sees that he is outdated.
    Attempt.take(store, resumes_from=0)
    # COMMITs go first: a checkpoint that has lost objects must not exist. Dying on the way, we begin here again.
    checkpoints = [info.key for info in store.list("checkpoints/")]
    store.delete(key for key in checkpoints if key.endswith("/COMMIT.json"))
    store.delete([MANIFEST_KEY, "result.json"])
    store.delete(checkpoints)
    for prefix in ("data/", "incidents/", "model/", "profiles/", "reports/"):
        store.delete([info.key for info in store.list(prefix)])
    store.put(RUN_KEY, RunRecord.of(config).to_json(), if_match=etag)
