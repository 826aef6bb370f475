"""Attempts: each start of a run takes the next number, and a newer number stops the older ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from trainingjob_trainer.errors import Fenced
from trainingjob_trainer.storage import NotFound, PreconditionFailed, Store

PREFIX = "attempts/"


@dataclass(frozen=True)
class Attempt:
    """The `number`-th start of the run in `store`. What it writes lies under keys with that number."""

    number: int
    store: Store

    @classmethod
    def take(cls, store: Store, resumes_from: int) -> Attempt:
        """Take the next number, for a start that resumes from step `resumes_from`. Who creates the object has it."""
        number = 1 + max((_number(found.key) for found in store.list(PREFIX)), default=0)
        while not _create(store, number, resumes_from):
            number += 1
        return cls(number, store)

    def next(self, resumes_from: int) -> Attempt:
        """The attempt after this one, by the same driver. Raises `Fenced` if the number is another's.

        A driver that has been cut off must not jump ahead of its successor: it would fence the one that is right.
        """
        if not _create(self.store, self.number + 1, resumes_from):
            raise self._fenced()
        return Attempt(self.number + 1, self.store)

    def check_fence(self) -> None:
        """Raise `Fenced` if a newer attempt has started. Spares useless work; safety rests on the COMMITs alone."""
        try:
            self.store.get(_key(self.number + 1))
        except NotFound:
            return
        raise self._fenced()

    def _fenced(self) -> Fenced:
        return Fenced(
            f"Attempt {self.number + 1} of this run has started; attempt {self.number} stops and leaves the run to it."
        )


def _create(store: Store, number: int, resumes_from: int) -> bool:
    """Whether the number is ours now."""
    record = {"attempt": number, "resumesFromStep": resumes_from, "startedAt": datetime.now(UTC).isoformat()}
    data = json.dumps(record).encode()
    try:
        store.put(_key(number), data, if_none_match=True)
    except PreconditionFailed:
        return store.get(_key(number)) == data  # a PUT that was made twice, because its answer was lost
    return True


def _key(number: int) -> str:
    return f"{PREFIX}{number}.json"


def _number(key: str) -> int:
    name = key.removeprefix(PREFIX).removesuffix(".json")
    return int(name) if name.isdecimal() else 0
