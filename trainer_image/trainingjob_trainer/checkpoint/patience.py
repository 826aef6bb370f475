"""A store that waits an outage out: what is written in the background can wait, and training goes on meanwhile."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from trainingjob_trainer.storage import ObjectInfo, Store, Unavailable

SECONDS = 600.0  # of unavailability in a row that one request sits out
LONGEST_PAUSE = 10.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class PatientStore(Store):
    """The same store; a request that finds it unavailable is made again until it is answered or `give_up` is called."""

    def __init__(self, store: Store, seconds: float = SECONDS) -> None:
        super().__init__(store.root, store.storage)
        self._store, self._seconds = store, seconds
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """From now on, let requests fail at once."""
        self._given_up.set()

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        return self._insist(lambda: self._store.put(key, data, if_none_match=if_none_match, if_match=if_match))

    def put_file(self, key: str, path: Path) -> None:
        self._insist(lambda: self._store.put_file(key, path))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._insist(lambda: [*self._store.list(prefix)]))

    def delete(self, keys: Iterable[str]) -> None:
        every = [*keys]
        self._insist(lambda: self._store.delete(every))

    def abort_uploads(self, prefix: str, is_left: Callable[[str, datetime], bool]) -> None:
        self._insist(lambda: self._store.abort_uploads(prefix, is_left))

    def read_into(self, key: str, start: int, into: memoryview, *, if_match: str | None = None) -> tuple[int, str]:
        return self._insist(lambda: self._store.read_into(key, start, into, if_match=if_match))

    def _read(self, key: str, start: int, end: int | None) -> tuple[bytes, str]:
        return self._insist(lambda: self._store._read(key, start, end))

    def _insist(self, request: Callable[[], T]) -> T:
        pause, deadline = 1.0, time.monotonic() + self._seconds
        while True:
            try:
                return request()
            except Unavailable as error:
                if self._given_up.is_set() or time.monotonic() >= deadline:
                    raise
                log.warning("%s Trying again.", error.cause)
            self._given_up.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)
