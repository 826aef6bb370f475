"""What a failed attempt failed of: exceptions of a rank, of Ray and of Ray Train as one `TrainerError`."""

from __future__ import annotations

import traceback

from .errors import DataError, Fenced, Hang, OutOfMemory, StorageError, TrainerError, UserError, WorkerLost

TRACEBACK_LINES = 6

# What gloo, NCCL and TCP say when a peer is gone.
_PEER_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "remote process exited",
    "NCCL communicator was aborted",
    "Connection was likely closed",
)

_COMPILERS = ("torch._dynamo", "torch._inductor")

# One failing rank makes the others fail too: the class that says most comes first, a lost peer last.
_TELLING = (Fenced, UserError, DataError, OutOfMemory, StorageError, Hang)


def of_rank(error: BaseException, rank: int) -> TrainerError:
    """An exception of the training function on `rank`, on that rank: plain data, which the driver can unpickle."""
    if isinstance(error, TrainerError):
        if error.rank is None and not isinstance(error, Hang):  # of which this rank may be a victim
            error.rank = rank
        return error
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory(
            text, "Lower spec.training.microBatchSize, or give the workers more memory or more GPUs.", rank=rank
        )
    if type(error).__module__.startswith(_COMPILERS):
        return UserError(
            f"The model could not be compiled: {_first_line(error)}",
            "Set training.compile: never, or mend the compiler in the image; the pod's log says what it lacks.",
            rank=rank,
        )
    if peer_gone(error):
        return WorkerLost(f"Rank {rank} lost its peers: {text}")
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return TrainerError(
        "\n".join([text, *lines[-TRACEBACK_LINES - 1 : -1]]),
        "Look at the pod's log for the whole traceback.",
        rank=rank,
    )


def peer_gone(error: BaseException) -> bool:
    """Whether a rank failed because another one is gone."""
    return isinstance(error, OSError | RuntimeError) and any(sign in str(error) for sign in _PEER_GONE)


def of_attempt(error: Exception) -> TrainerError:
    """What `TorchTrainer.fit()` raised, as the error of the rank that tells most."""
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, WorkerGroupError):
        causes = [_of_worker(failure, rank) for rank, failure in sorted(error.worker_failures.items())]
        return min(causes, key=_order, default=TrainerError.internal(error))
    if isinstance(error, ControllerError):
        return _of_worker(error.controller_failure, None)
    return _of_worker(error, None)


def _order(error: TrainerError) -> tuple[bool, int, bool]:
    told = next((i for i, kind in enumerate(_TELLING) if isinstance(error, kind)), len(_TELLING))
    return isinstance(error, WorkerLost), told, error.rank is None


def _of_worker(failure: BaseException, rank: int | None) -> TrainerError:
    """One rank's failure as Ray Train tells it: the user's exception or the loss of the process, wrapped."""
    from ray.exceptions import OutOfMemoryError, RayError

    chain: list[BaseException] = []
    current: BaseException | None = failure
    while current is not None and current not in chain:
        chain.append(current)
        current = (
            getattr(current, "_base_exc", None)
            or getattr(current, "health_check_failure", None)
            or getattr(current, "cause", None)
            or current.__cause__
        )
        if not isinstance(current, BaseException):
            break
    for found in chain:
        if isinstance(found, TrainerError):
            return found
        if isinstance(found, OutOfMemoryError):
            return OutOfMemory(_first_line(found), "Raise spec.workers.resources.memory.", rank=rank)
    for found in chain:
        if isinstance(found, RayError):
            where = "A rank" if rank is None else f"Rank {rank}"
            return WorkerLost(
                f"{where} was lost: {_first_line(found)}", "The attempt starts again by itself.", rank=rank
            )
    return TrainerError(str(failure).strip()[-1500:] or type(failure).__name__, "Look at the pod's log.", rank=rank)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:500] or type(error).__name__
