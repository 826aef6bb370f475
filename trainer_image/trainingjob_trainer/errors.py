"""How training can fail: one class for each kind of failure, with its exit code, its cause and the user's next step.

Errors travel: from a rank through Ray's pickling to the driver, from there into the termination message, and from there
into the resource's status. So an error is plain data: strings and numbers.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class TrainerError(Exception):
    """A failure with a class, a cause and a next step. This base class itself stands for a defect: `Internal`."""

    error_class: ClassVar[str] = "Internal"
    exit_code: ClassVar[int] = 20

    def __init__(self, cause: str, next_step: str = "", *, rank: int | None = None, step: int | None = None) -> None:
        self.cause, self.next_step = _text(cause), _text(next_step)
        super().__init__(self.cause)
        self.rank = rank
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.cause, self.next_step, self.rank, self.step)

    @classmethod
    def internal(cls, error: BaseException) -> Self:
        """An unexpected exception as an error of this class."""
        return cls(f"{type(error).__name__}: {error}", "Look at the pod's log; if this is a defect, please report it.")


class UserError(TrainerError):
    """The specification, the credentials or the permissions are wrong; a retry cannot cure it."""

    error_class = "UserError"
    exit_code = 10


class DataError(TrainerError):
    """The data cannot be read as the specification says; a retry cannot cure it."""

    error_class = "DataError"
    exit_code = 11


class OutOfMemory(TrainerError):
    """A device or the pod ran out of memory."""

    error_class = "OutOfMemory"
    exit_code = 12


class WorkerLost(TrainerError):
    """A rank, its pod or its node is gone."""

    error_class = "WorkerLost"


class StorageError(TrainerError):
    """The storage does not answer, or not as it should; a retry may cure it."""

    error_class = "Storage"


class Hang(TrainerError):
    """No progress for longer than a step can take."""

    error_class = "Hang"
    exit_code = 21


class Drained(TrainerError):
    """Asked to stop (SIGTERM), and stopped after a checkpoint."""

    error_class = "Drained"
    exit_code = 30


class Resized(TrainerError):
    """Stopped, with its step committed, to go on with more pods. Never the end of a run: another attempt begins."""

    error_class = "Resized"


class Fenced(TrainerError):
    """A newer attempt owns the run directory."""

    error_class = "Fenced"
    exit_code = 30


def _text(text: str) -> str:
    """The text as UTF-8 can have it: a file's name may hold a byte that is none, as half a surrogate pair."""
    return text.encode(errors="backslashreplace").decode()


def _rebuild(kind: type[TrainerError], cause: str, next_step: str, rank: int | None, step: int | None) -> TrainerError:
    return kind(cause, next_step, rank=rank, step=step)
