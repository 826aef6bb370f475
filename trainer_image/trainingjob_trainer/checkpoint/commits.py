"""What checkpoints exist: those whose COMMIT.json exists. It is written last and names every object."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

from pydantic import Field, ValidationError

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import Config, digest
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.errors import StorageError, UserError
from trainingjob_trainer.storage import NotFound, PreconditionFailed, Store

PREFIX = "checkpoints/"
COMMIT_NAME = "COMMIT.json"


class StoredObject(Config):
    """One object of a checkpoint; the key is relative to the run directory."""

    key: str
    size: int
    sha256: str

    @classmethod
    def of(cls, key: str, data: bytes | bytearray) -> StoredObject:
        """The record of an object with these contents."""
        return cls(key=key, size=len(data), sha256=hashlib.sha256(data).hexdigest())


class Commit(Config):
    """A checkpoint: complete, and of one attempt alone. `metrics` are of an evaluation at this very step, if any.

    `versions` of what wrote it are for people: loading does not depend on them. `encoding`: digest of what the numbers
    mean that the model has learnt; None in checkpoints of earlier versions.
    """

    version: int = 1
    step: int
    attempt: int
    world_size: int
    identity_hash: str
    encoding: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    objects: list[StoredObject]

    @property
    def key(self) -> str:
        """Key of the COMMIT itself."""
        return f"{step_prefix(self.step)}{COMMIT_NAME}"

    @property
    def prefix(self) -> str:
        """Prefix of the objects."""
        return attempt_prefix(self.step, self.attempt)


def step_prefix(step: int) -> str:
    """Prefix of everything of a step."""
    return f"{PREFIX}step-{step:08d}/"


def attempt_prefix(step: int, attempt: int) -> str:
    """Prefix of what one attempt writes at a step."""
    return f"{step_prefix(step)}a{attempt}/"


def commits(store: Store) -> list[Commit]:
    """Every checkpoint of the run, oldest step first. A COMMIT deleted meanwhile is left out."""
    found = []
    for key in sorted(info.key for info in store.list(PREFIX)):
        if PurePosixPath(key).name == COMMIT_NAME:
            try:
                found.append(_parse(store.uri(key), store.get(key)))
            except NotFound:
                continue
    return found


def latest(store: Store) -> Commit | None:
    """The newest checkpoint, derived from what is there."""
    return max(commits(store), key=lambda found: found.step, default=None)


def encoding_of(manifest: Manifest) -> str:
    """Digest of what the numbers of the data mean: its tokens, classes, scales."""
    meaning = {"kind", "vocab_size", "tokenizer_digest", "eos_id", "shape", "classes", "multi_label", "scales"}
    return digest(manifest.model_dump(mode="json", include=meaning))


def check_encoding(commit: Commit | None, manifest: Manifest, store: Store) -> None:
    """Raises `UserError` if a checkpoint was trained on numbers that mean something else: it would not understand."""
    if commit is not None and commit.encoding not in (None, encoding_of(manifest)):
        raise UserError(
            f"The checkpoint of step {commit.step} in {store.uri()} was trained on data with another tokenizer, other "
            "classes or other scales than the data has now.",
            "Restore data/ in the run directory, or the raw data as it was; or choose another outputUri and begin with "
            "this model (spec.model.initFrom).",
        )


def publish(commit: Commit, attempt: Attempt) -> bool:
    """Make a checkpoint exist; all its objects are stored already. Raises `Fenced`.

    False if another attempt's checkpoint of the same step stands; then ours is dropped.
    """
    attempt.check_fence()
    store = attempt.store
    try:
        store.put(commit.key, commit.model_dump_json(by_alias=True, indent=1).encode(), if_none_match=True)
    except PreconditionFailed:
        if _parse(store.uri(commit.key), store.get(commit.key)) == commit:  # our own PUT, answered late and retried
            return True
        store.delete([stored.key for stored in commit.objects])
        return False
    return True


def amend(step: int, metrics: dict[str, float], attempt: Attempt) -> None:
    """Have the checkpoint of a step name the metrics of an evaluation that came after it. Raises `Fenced`."""
    attempt.check_fence()
    store, key = attempt.store, f"{step_prefix(step)}{COMMIT_NAME}"
    data, etag = store.get_with_etag(key)
    amended = _parse(store.uri(key), data).model_copy(update={"metrics": metrics})
    store.put(key, amended.model_dump_json(by_alias=True, indent=1).encode(), if_match=etag)


def read_verified(store: Store, stored: StoredObject) -> bytes:
    """An object of a checkpoint, as it was written. Raises `StorageError` if it is missing or has changed."""
    try:
        data = store.get(stored.key)
    except NotFound as error:
        raise _damaged(store, stored, "is missing") from error
    if len(data) != stored.size:
        raise _damaged(store, stored, f"has {len(data)} bytes instead of {stored.size}")
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise _damaged(store, stored, "does not have the checksum that its COMMIT names")
    return data


def _damaged(store: Store, stored: StoredObject, how: str) -> StorageError:
    commit_key = f"{PurePosixPath(stored.key).parent.parent}/{COMMIT_NAME}"
    return StorageError(
        f"The checkpoint is damaged: {store.uri(stored.key)} {how}.",
        f"Restore the object, or delete {store.uri(commit_key)} to go back to the checkpoint before.",
    )


def _parse(uri: str, data: bytes) -> Commit:
    try:
        return Commit.model_validate_json(data)
    except ValidationError as error:
        raise StorageError(
            f"{uri} is not a checkpoint's COMMIT: {error.errors()[0]['msg']}.",
            "Delete it to go back to the checkpoint before.",
        ) from error
