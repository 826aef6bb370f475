"""Which checkpoints are kept, and how the others go: their COMMIT first, so that none is ever half there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.commits import COMMIT_NAME, PREFIX, Commit, commits
from trainingjob_trainer.config import Checkpoint

GRACE = timedelta(hours=1)  # another attempt's objects, younger than this, may be about to be committed
_ATTEMPT = re.compile(rf"^{PREFIX}step-\d+/a(\d+)/")


def kept(existing: Sequence[Commit], policy: Checkpoint) -> set[int]:
    """Steps of the checkpoints that stay: the newest `keep_last` and the `keep_best` of lowest evaluated loss."""
    by_step = sorted(existing, key=lambda commit: commit.step)
    evaluated = [commit for commit in by_step if "loss" in commit.metrics]
    best = sorted(evaluated, key=lambda commit: (commit.metrics["loss"], commit.step))[: policy.keep_best]
    return {commit.step for commit in [*by_step[-policy.keep_last :], *best]}


def retain(attempt: Attempt, policy: Checkpoint, now: datetime | None = None) -> None:
    """Delete checkpoints that are not kept, and objects that no COMMIT names. Raises `Fenced`.

    Never touches what a remaining COMMIT names, nor another attempt's objects younger than an hour. To be called when
    no save of this attempt is under way.
    """
    existing = commits(attempt.store)
    steps = kept(existing, policy)
    attempt.check_fence()
    attempt.store.delete([commit.key for commit in existing if commit.step not in steps])
    named = {stored.key for commit in existing if commit.step in steps for stored in commit.objects}
    oldest = (now or datetime.now(UTC)) - GRACE
    garbage = [
        info.key
        for info in attempt.store.list(PREFIX)
        if info.key not in named
        and not info.key.endswith(f"/{COMMIT_NAME}")
        and (_writer(info.key) == attempt.number or info.modified < oldest)
    ]
    attempt.store.delete(garbage)


def _writer(key: str) -> int | None:
    match = _ATTEMPT.match(key)
    return int(match[1]) if match else None
