"""A window of steps under torch.profiler, for whoever asks where the time goes: each rank's trace in the run directory.

A trace is opened in https://ui.perfetto.dev or chrome://tracing. A step that is recorded takes longer than others.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import Profile
from trainingjob_trainer.errors import StorageError

log = logging.getLogger(__name__)


class Profiler:
    """Records the steps that `wanted` names, as far as this attempt takes them. Of one rank."""

    def __init__(self, wanted: Profile | None, attempt: Attempt, rank: int) -> None:
        self._steps = range(0) if wanted is None else range(wanted.from_step, wanted.from_step + wanted.steps)
        self._attempt, self._rank = attempt, rank
        self._recording: profile | None = None
        self._first = 0

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Step `number` (from 1) happens in the context; the first one of the window begins the recording."""
        if number not in self._steps:
            yield
            return
        if self._recording is None:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._recording, self._first = profile(activities=activities), number
            self._recording.start()
        with record_function(f"step {number}"):
            yield

    def is_over(self, step: int, *, last: bool) -> bool:
        """Whether there is a recording that ends with `step`; `last`: no other step comes."""
        return self._recording is not None and (last or step == self._steps[-1])

    def hand_out(self) -> str | None:
        """End the recording and upload its trace; its URI. None if storage refuses it, which is no reason to end."""
        recording, self._recording = self._recording, None
        assert recording is not None
        recording.stop()
        key = f"profiles/a{self._attempt.number}/step-{self._first:08d}-rank-{self._rank}.json.gz"
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "trace.json.gz")
            recording.export_chrome_trace(str(path))
            try:
                self._attempt.store.put_file(key, path)
            except StorageError as error:
                log.warning("the trace of the profiler is lost: %s", error.cause)
                return None
        return self._attempt.store.uri(key)
