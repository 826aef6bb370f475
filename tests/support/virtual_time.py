"""asyncio without waiting: an event loop whose clock jumps to the next timer when there is nothing else to do."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0."""

    def __init__(self) -> None:
        self._selects = _Jump()
        super().__init__(self._selects)

    def time(self) -> float:
        return self._selects.now


class _Jump(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everything waits, and for nothing")
        self.now += timeout
        return super().select(0)


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """The result of `main`, which may sleep for hours."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
