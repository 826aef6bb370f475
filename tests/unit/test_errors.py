"""Errors as data: through pickling, into termination messages, out of failed ranks."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainingjob_trainer import errors, failures
from trainingjob_trainer.errors import DataError, OutOfMemory, StorageError, TrainerError, UserError, WorkerLost
from trainingjob_trainer.outcome import MAX_BYTES, Outcome
from trainingjob_trainer.records import Incident

CLASSES = {
    errors.TrainerError: ("Internal", 20),
    errors.UserError: ("UserError", 10),
    errors.DataError: ("DataError", 11),
    errors.OutOfMemory: ("OutOfMemory", 12),
    errors.WorkerLost: ("WorkerLost", 20),
    errors.StorageError: ("Storage", 20),
    errors.Hang: ("Hang", 21),
    errors.Drained: ("Drained", 30),
    errors.Fenced: ("Fenced", 30),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickling_whole(kind: type[TrainerError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("cause", "next", rank=3, step=7)))
    assert type(copy) is kind
    assert (copy.cause, copy.next_step, copy.rank, copy.step) == ("cause", "next", 3, 7)


@pytest.mark.parametrize(("kind", "expected"), CLASSES.items())
def test_each_class_has_its_exit_code(kind: type[TrainerError], expected: tuple[str, int]) -> None:
    outcome = Outcome.failure(kind("cause"))
    assert (outcome.error_class, outcome.exit_code) == expected


@given(cause=st.text(max_size=20_000), next_step=st.text(max_size=500))
def test_a_termination_message_is_json_that_fits(cause: str, next_step: str) -> None:
    message = Outcome.failure(UserError(cause, next_step, rank=1), attempt=2).message()
    assert len(message) <= MAX_BYTES
    read = json.loads(message)
    assert (read["class"], read["nextStep"], read["attempt"], read["rank"]) == ("UserError", next_step, 2, 1)


def test_what_is_no_text_is_written_as_its_escape() -> None:
    """Such as half a surrogate pair, which a local file's name has for a byte that is not UTF-8."""
    error = DataError("caf\udce9.jsonl is empty.", "Delete caf\udce9.jsonl.")
    outcome = Outcome.failure(error)
    for written in (
        outcome.message(),
        outcome.model_dump_json(by_alias=True),
        Incident.of(error, 1, None).model_dump_json(),
    ):
        assert json.loads(written)["cause"] == "caf\\udce9.jsonl is empty."
    assert outcome.next_step == "Delete caf\\udce9.jsonl."
    assert str(error) == error.cause, "a terminal takes no more"


def test_a_long_cause_keeps_beginning_and_end() -> None:
    read = json.loads(Outcome.failure(TrainerError("first" + "x" * 50_000 + "last")).message())
    assert read["cause"].startswith("first")
    assert read["cause"].endswith("last")


def test_a_big_result_fits_without_its_metrics() -> None:
    result = {"planHash": "p", "evaluation": {"confusion": [[0] * 100] * 100}}
    message = Outcome(outcome="Finished", result=result).message()
    assert len(message) <= MAX_BYTES
    assert json.loads(message)["result"] == {"planHash": "p"}


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("wrong"), UserError),
        (StorageError("away"), StorageError),
        (MemoryError(), OutOfMemory),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."), OutOfMemory),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:30002"), WorkerLost),
        (ConnectionResetError(104, "Connection reset by peer"), WorkerLost),
        (RuntimeError("shapes do not match"), TrainerError),
        (ValueError("Connection refused"), TrainerError),
    ],
)
def test_a_ranks_exception_gets_its_class(error: Exception, kind: type[TrainerError]) -> None:
    assert type(failures.of_rank(raised(error), 1)) is kind


def test_an_unexpected_exception_says_where_it_was_raised() -> None:
    failure = failures.of_rank(raised(ValueError("no such thing")), 2)
    assert failure.rank == 2
    assert failure.cause.startswith("ValueError: no such thing")
    assert "test_errors.py" in failure.cause


def test_of_several_ranks_the_telling_one_is_believed() -> None:
    from ray.train import WorkerGroupError

    lost = WorkerLost("Rank 0 lost its peers")
    assert isinstance(failures.of_attempt(WorkerGroupError("", {0: lost, 1: DataError("bad shard")})), DataError)
    internal = failures.of_attempt(WorkerGroupError("", {0: lost, 1: TrainerError("ValueError: x", rank=1)}))
    assert internal.rank == 1


def test_a_dead_worker_is_lost_by_its_rank() -> None:
    from ray.exceptions import RayActorError
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    dead = WorkerHealthCheckFailedError("A worker health check failed.", failure=RayActorError())
    failure = failures.of_attempt(WorkerGroupError("", {0: WorkerLost("Rank 0 lost its peers"), 1: dead}))
    assert isinstance(failure, WorkerLost)
    assert failure.rank == 1


def test_a_process_that_ray_killed_for_memory_is_out_of_memory() -> None:
    from ray.exceptions import OutOfMemoryError
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    killed = WorkerHealthCheckFailedError("A worker health check failed.", failure=OutOfMemoryError("Task was killed"))
    assert isinstance(failures.of_attempt(WorkerGroupError("", {1: killed})), OutOfMemory)
