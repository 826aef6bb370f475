"""How often a scenario was tried, and survived."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
AT_ONCE = 3
"""Runs at the same time: an operator, its proxy and its pods' player keep most of a core busy."""
ENOUGH = 5
"""Failures after which no further variant is tried."""


class Tally:
    """Tries of one scenario."""

    def __init__(self) -> None:
        self.tried = 0
        self.survived = 0

    async def each(self, variants: Iterable[T], run: Callable[[T], Awaitable[Any]], at_once: int = AT_ONCE) -> None:
        """Run the scenario in each variant, some at once; all their failures in one group, each with its variant."""
        limit = asyncio.Semaphore(at_once)
        failures: list[Exception] = []

        async def one(variant: T) -> None:
            async with limit:
                if len(failures) >= ENOUGH:
                    return
                self.tried += 1
                try:
                    await run(variant)
                except Exception as error:
                    error.add_note(f"in variant {variant}")
                    logger.error("variant %s: %s", variant, error)
                    failures.append(error)
                else:
                    self.survived += 1

        await asyncio.gather(*map(one, variants))
        if failures:
            raise ExceptionGroup(f"{len(failures)} variants did not survive", failures)

    async def once(self, run: Callable[[], Awaitable[Any]]) -> None:
        """Run the scenario, which has one variant."""
        await self.each(["the only one"], lambda _: run())
