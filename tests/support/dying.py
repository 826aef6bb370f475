"""A process that is killed between two requests to its storage."""

from __future__ import annotations

from typing import Any

import pytest
from trainingjob_trainer.storage import Store


def die_after_a_deletion(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call of `delete` on a store of this kind does it, and raises KeyboardInterrupt then."""
    delete = type(store).delete

    def killed(self: Store, keys: Any) -> None:
        delete(self, keys)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(store), "delete", killed)
