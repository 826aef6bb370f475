"""A checkpoint exists if and only if its COMMIT does; attempts fence each other and never mix; old ones go."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.dying import die_after_a_deletion
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.cadence import Cadence
from trainingjob_trainer.checkpoint.commits import Commit, StoredObject, attempt_prefix, commits, latest, publish
from trainingjob_trainer.checkpoint.retention import retain
from trainingjob_trainer.checkpoint.state import Evaluated, Progress
from trainingjob_trainer.config import Checkpoint, Storage
from trainingjob_trainer.errors import Fenced, StorageError, UserError
from trainingjob_trainer.storage import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path), Storage())


def write(attempt: Attempt, step: int, loss: float | None = None, content: bytes = b"tensors") -> Commit:
    """A checkpoint's objects, not yet committed."""
    stored = StoredObject.of(f"{attempt_prefix(step, attempt.number)}rank-0-0.bin", content)
    attempt.store.put(stored.key, content)
    metrics = {} if loss is None else {"loss": loss}
    return Commit(
        step=step, attempt=attempt.number, world_size=1, identity_hash="id", metrics=metrics, objects=[stored]
    )


def keys(store: Store, below: str = "checkpoints/") -> set[str]:
    return {info.key for info in store.list(below)}


def test_attempts_count_up_and_remember_where_they_resume(store: Store) -> None:
    assert [Attempt.take(store, resumes_from=step).number for step in (0, 20, 20)] == [1, 2, 3]
    assert b'"resumesFromStep": 20' in store.get("attempts/2.json")


def test_objects_without_a_commit_are_no_checkpoint(store: Store) -> None:
    attempt = Attempt.take(store, 0)
    first = write(attempt, 20)
    assert publish(first, attempt)
    write(attempt, 40)
    assert latest(store) == first


def test_the_highest_step_is_the_latest(store: Store) -> None:
    attempt = Attempt.take(store, 0)
    for step in (100, 20, 99_999_999):
        publish(write(attempt, step), attempt)
    assert [commit.step for commit in commits(store)] == [20, 100, 99_999_999]
    newest = latest(store)
    assert newest is not None
    assert newest.step == 99_999_999


def test_a_repeated_commit_of_the_same_content_is_a_success(store: Store) -> None:
    attempt = Attempt.take(store, 0)
    commit = write(attempt, 20)
    assert publish(commit, attempt)
    assert publish(commit, attempt)
    assert latest(store) == commit


def test_of_two_attempts_at_one_step_the_first_commit_stands_and_the_other_is_dropped(store: Store) -> None:
    older, newer = Attempt(1, store), Attempt(2, store)  # neither knows of the other: the fence did not help
    of_older, of_newer = write(older, 20, content=b"older"), write(newer, 20, content=b"newer")
    assert publish(of_newer, newer)
    assert not publish(of_older, older)
    assert latest(store) == of_newer
    assert keys(store) == {of_newer.key, of_newer.objects[0].key}
    assert store.get(of_newer.objects[0].key) == b"newer"


def test_a_driver_that_was_cut_off_does_not_jump_ahead_of_its_successor(store: Store) -> None:
    cut_off = Attempt.take(store, 0)
    successor = Attempt.take(store, 20)
    with pytest.raises(Fenced, match="Attempt 2 of this run has started"):
        cut_off.next(20)
    assert keys(store, "attempts/") == {"attempts/1.json", "attempts/2.json"}
    assert successor.next(40).number == 3


def test_a_fenced_attempt_neither_commits_nor_deletes(store: Store) -> None:
    attempt = Attempt.take(store, 0)
    for step in (20, 40):
        publish(write(attempt, step), attempt)
    unfinished = write(attempt, 60)
    before = keys(store)
    Attempt.take(store, 40)
    with pytest.raises(Fenced, match="Attempt 2 of this run has started"):
        publish(unfinished, attempt)
    with pytest.raises(Fenced):
        retain(attempt, Checkpoint(keep_last=1, keep_best=0))
    assert keys(store) == before


def test_retention_keeps_the_last_and_the_best(store: Store) -> None:
    attempt = Attempt.take(store, 0)
    for step, loss in [(20, 3.0), (40, 1.0), (60, 2.0), (80, 2.5), (100, 2.6), (120, None)]:
        publish(write(attempt, step, loss), attempt)
    retain(attempt, Checkpoint(keep_last=2, keep_best=1))
    assert [commit.step for commit in commits(store)] == [40, 100, 120]
    assert {key.split("/")[1] for key in keys(store)} == {"step-00000040", "step-00000100", "step-00000120"}


def test_a_checkpoint_goes_commit_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two deletions: what is left of it is no checkpoint."""
    attempt = Attempt.take(store, 0)
    for step in (20, 40, 60):
        publish(write(attempt, step), attempt)
    die_after_a_deletion(store, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        retain(attempt, Checkpoint(keep_last=2, keep_best=0))
    assert [commit.step for commit in commits(store)] == [40, 60]
    assert any("step-00000020" in key for key in keys(store))


def test_retention_goes_by_any_metric_and_keeps_milestones(store: Store) -> None:
    attempt = Attempt.take(store, 0)
    for step, accuracy in [(20, 0.5), (40, math.nan), (50, 0.9), (60, 0.9), (80, 0.7), (100, None), (120, None)]:
        commit = write(attempt, step)
        metrics = {} if accuracy is None else {"accuracy": accuracy}
        publish(commit.model_copy(update={"metrics": metrics}), attempt)
    retain(attempt, Checkpoint(keep_last=1, keep_best=1, best_metric="accuracy", best_mode="max", keep_every=40))
    assert [commit.step for commit in commits(store)] == [40, 50, 80, 120]


def test_retention_drops_what_a_write_that_was_cut_off_left(store: Store) -> None:
    """Of this attempt at once, of another one when it is older than an hour."""
    attempt = Attempt(2, store)
    own, others = (Path(store.root, attempt_prefix(20, number), ".tmp-0123") for number in (2, 1))
    for left in (own, others):
        left.parent.mkdir(parents=True)
        left.write_bytes(b"half")
    retain(attempt, Checkpoint())
    assert (own.exists(), others.exists()) == (False, True)
    retain(attempt, Checkpoint(), now=datetime.now(UTC) + timedelta(hours=1, seconds=1))
    assert not others.exists()


def evaluated(*losses: float) -> Progress:
    """A run that was evaluated every 10 steps."""
    found = [Evaluated(step=10 * n, metrics={"loss": loss}) for n, loss in enumerate(losses, start=1)]
    return Progress(step=10 * len(losses), evaluations=found)


def test_a_checkpoint_is_due_by_steps_at_milestones_and_when_the_run_was_never_better() -> None:
    by_steps = Cadence(Checkpoint(every_steps=20, keep_every=50, keep_best=0))
    assert [step for step in range(1, 101) if by_steps.due(Progress(step=step))] == [20, 40, 50, 60, 80, 100]
    best = Cadence(Checkpoint(every_steps=1000))
    assert [best.due(evaluated(*losses)) for losses in ([3.0], [3.0, 2.0], [3.0, 2.0, 2.0])] == [True, True, False]
    assert not Cadence(Checkpoint(every_steps=1000, keep_best=0)).due(evaluated(3.0))
    later = Progress(step=11, evaluations=evaluated(3.0).evaluations)
    assert not best.due(later)
    assert not Cadence(Checkpoint(best_metric="bleu")).due(later), "evaluations are looked through where there is one"


def test_the_best_goes_by_a_metric_that_the_task_has() -> None:
    with pytest.raises(UserError, match=r"checkpoint\.bestMetric is bleu, which this task does not have") as refused:
        Cadence(Checkpoint(best_metric="bleu")).due(evaluated(3.0))
    assert "loss" in refused.value.next_step


@pytest.mark.parametrize(
    ("policy", "minutes"),
    [(Checkpoint(), 10), (Checkpoint(every_minutes=2.5), 2.5), (Checkpoint(every_steps=5), float("inf"))],
    ids=["default", "minutes", "steps"],
)
def test_the_clock_asks_for_a_checkpoint_so_long_after_the_last(
    monkeypatch: pytest.MonkeyPatch, policy: Checkpoint, minutes: float
) -> None:
    clock = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    cadence = Cadence(policy)
    for _ in range(2):
        clock += min(60 * minutes, 1e9) - 1
        assert not cadence.overdue()
        clock += 1
        assert cadence.overdue() is (minutes < 1e9)
        cadence.restart()


def test_retention_spares_young_objects_of_other_attempts(store: Store) -> None:
    dead, attempt = Attempt(1, store), Attempt(2, store)
    publish(write(dead, 20), dead)
    of_dead = write(dead, 40).objects[0].key
    own = write(attempt, 30).objects[0].key
    publish(write(attempt, 60), attempt)
    policy = Checkpoint(keep_last=1, keep_best=0)
    retain(attempt, policy)
    assert own not in keys(store)
    assert of_dead in keys(store)
    retain(attempt, policy, now=datetime.now(UTC) + timedelta(hours=1, seconds=1))
    assert keys(store) == {"checkpoints/step-00000060/COMMIT.json", f"{attempt_prefix(60, 2)}rank-0-0.bin"}


def test_metrics_that_are_not_numbers_are_read_as_they_were_written() -> None:
    progress = evaluated(math.nan, math.inf, 1.0)
    read = Progress.model_validate_json(progress.model_dump_json(by_alias=True))
    assert [str(e.metrics["loss"]) for e in read.evaluations] == ["nan", "inf", "1.0"]


def test_a_commit_that_is_not_one_is_an_error_and_not_a_start_from_zero(store: Store) -> None:
    store.put("checkpoints/step-00000020/COMMIT.json", b"{}")
    with pytest.raises(StorageError, match=r"step-00000020/COMMIT\.json is not a checkpoint's COMMIT"):
        latest(store)
