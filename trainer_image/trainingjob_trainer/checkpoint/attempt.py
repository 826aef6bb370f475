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
        while True:
            record = {"attempt": number, "resumesFromStep": resumes_from, "startedAt": datetime.now(UTC).isoformat()}
            try:
                store.put(_key(number), json.dumps(record).encode(), if_none_match=True)
                return cls(number, store)
            except PreconditionFailed:
                number += 1

    def check_fence(self) -> None:
        """Raise `Fenced` if a newer attempt has started. Spares useless work; safety rests on the COMMITs alone."""
        try:
            self.store.get(_key(self.number + 1))
        except NotFound:
            return
        raise Fenced(
            f"Attempt {self.number + 1} of this run has started; attempt {self.number} stops and leaves the run to it."
        )


def _key(number: int) -> str:
    return f"{PREFIX}{number}.json"


def _number(key: str) -> int:
    name = key.removeprefix(PREFIX).removesuffix(".json")
    return int(name) if name.isdecimal() else 0
