"""Ends a rank that has come to a stand: in a collective that a peer never joins, in a driver, in a file system."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn, Self

from torch import nn

from trainingjob_trainer.errors import Hang
from trainingjob_trainer.standstill import NEXT_STEP, Stand

GRACE = 10.0
"""Seconds that the other ranks have at least to notice it by themselves, before this one ends and takes them along."""
PATIENCE = 4
"""Times as long as other passes may take one that is compiled first: 24 s when idle, six minutes on a busy CPU."""

log = logging.getLogger(__name__)


class Watchdog:
    """Expects the model to begin a forward pass every `seconds`, as training and evaluation do.

    Ranks are in lockstep, so all of them notice within a step's time of each other. Each logs the stacks of its
    threads, tells where it `stands` (None: it goes on after all) and then calls `hung`, in a thread of its own, because
    the main thread answers to nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        seconds: float,
        step: Callable[[], int],
        stands: Callable[[Stand | None], None],
        hung: Callable[[Hang], NoReturn],
    ) -> None:
        self._model, self._seconds, self._step, self._stands, self._hung = model, seconds, step, stands, hung
        self._main = threading.get_ident()
        self._last = time.monotonic()
        self._longest = 0.0  # between two passes
        self._paused = self._patient = False
        self._changing = threading.Lock()  # how long a pass may take: a look knows the limit of its own time
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._hook = self._model.register_forward_pre_hook(lambda *_: self.beat())
        self.beat()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()  # a rank that lost its peers while it stood still has hung as they have
        self._hook.remove()

    def beat(self) -> None:
        """It goes on."""
        now = time.monotonic()
        if not self._patient:
            self._longest = max(self._longest, now - self._last)
        self._last = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the rank does something else that may take long, and has limits of its own: storage, export."""
        with self._changing:
            self._paused = True
        try:
            yield
        finally:
            with self._changing:
                self._last, self._paused = time.monotonic(), False

    @contextmanager
    def patient(self) -> Iterator[None]:
        """While what the rank does for the first time is compiled: it may take `PATIENCE` times as long."""
        with self._changing:
            self._patient = True
        try:
            yield
        finally:
            with self._changing:
                self._last, self._patient = time.monotonic(), False

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 10)):
            with self._changing:
                limit = self._seconds * (PATIENCE if self._patient else 1)
                overdue = not self._paused and time.monotonic() - self._last > limit
            if overdue:
                self._tell_and_end(limit)

    def _tell_and_end(self, limit: float) -> None:
        last = self._last
        stand = Stand.of(sys._current_frames()[self._main], self._step(), limit)
        log.error("No pass for %g s. The stacks of all threads:\n%s", limit, stacks())
        self._stands(stand)
        self._ended.wait(max(GRACE, 2 * self._longest))
        if self._last == last:
            cause = f"No pass began for {limit:g} s after step {stand.step}; this rank is in {stand.where}."
            self._hung(Hang(cause, NEXT_STEP, step=stand.step))
        self._stands(None)


def stacks() -> str:
    """What all threads of this process do, the newest call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame)).rstrip()}"
        for ident, frame in sys._current_frames().items()
    )
