"""Which checkpoints are kept, and how the others go: their COMMIT first, so that none is ever half there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.commits import COMMIT_NAME, PREFIX, Commit, commits
from trainingjob_trainer.config import Checkpoint
from trainingjob_trainer.watched import badness

GRACE = timedelta(hours=1)  # another attempt's objects, younger than this, may be about to be committed
_ATTEMPT = re.compile(rf"^{PREFIX}step-\d+/a(\d+)/")


def best_commits(existing: Sequence[Commit], policy: Checkpoint) -> list[Commit]:
    """The `keep_best` best checkpoints of those that were evaluated, the best first and of equals the oldest."""
    evaluated = [commit for commit in existing if policy.best_metric in commit.metrics]

    def rank(commit: Commit) -> tuple[float, int]:
        return badness(commit.metrics, policy.best_metric, policy.best_mode, ""), commit.step

    return sorted(evaluated, key=rank)[: policy.keep_best]


def kept(existing: Sequence[Commit], policy: Checkpoint) -> set[int]:
    """Steps of the checkpoints that stay: the newest `keep_last`, the `keep_best` best, multiples of `keep_every`."""
    by_step = sorted(existing, key=lambda commit: commit.step)
    milestones = [commit for commit in by_step if policy.keep_every and commit.step % policy.keep_every == 0]
    return {commit.step for commit in [*by_step[-policy.keep_last :], *best_commits(existing, policy), *milestones]}


def retain(attempt: Attempt, policy: Checkpoint, now: datetime | None = None) -> None:
    """Delete checkpoints that are not kept, objects that no COMMIT names, and uploads that ended half-way.

    Never touches what a remaining COMMIT names, nor what another attempt began less than an hour ago. To be called when
    no save of this attempt is under way. Raises `Fenced`.
    """
    existing = commits(attempt.store)
    steps = kept(existing, policy)
    attempt.check_fence()
    attempt.store.delete([commit.key for commit in existing if commit.step not in steps])
    named = {stored.key for commit in existing if commit.step in steps for stored in commit.objects}
    oldest = (now or datetime.now(UTC)) - GRACE

    def is_left(key: str, written: datetime) -> bool:
        return _writer(key) == attempt.number or written < oldest

    garbage = [
        info.key
        for info in attempt.store.list(PREFIX)
        if info.key not in named and not info.key.endswith(f"/{COMMIT_NAME}") and is_left(info.key, info.modified)
    ]
    attempt.store.delete(garbage)
    attempt.store.abort_uploads(PREFIX, is_left)


def _writer(key: str) -> int | None:
    match = _ATTEMPT.match(key)
    return int(match[1]) if match else None
