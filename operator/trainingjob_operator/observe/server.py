"""The operator's HTTP: `/metrics`, `/livez`, `/readyz`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter

from trainingjob_operator.observe.exposition import Text, metrics_handler

BEAT_SECONDS = 1.0


async def measure_lag(lag: Counter) -> None:
    """Add the event loop's lags up in `lag`, for ever: one that no scrape falls into is not lost."""
    loop = asyncio.get_running_loop()
    while True:
        asked = loop.time() + BEAT_SECONDS
        await asyncio.sleep(BEAT_SECONDS)
        lag.inc(max(0.0, loop.time() - asked))


@contextlib.asynccontextmanager
async def serve(
    host: str, port: int, registry: CollectorRegistry, jobs: Text, missing: Callable[[], str]
) -> AsyncIterator[int]:
    """Serve while in the block; yields the port (chosen by the system if `port` is 0). OSError: the address is taken.

    registry: of the operator's own metrics; jobs: writes those of the jobs.

    `/livez` is answered by the event loop that does all the work: when it is stuck, the probe times out. `missing`
    says what the operator still waits for; `/readyz` is 200 when that is nothing.
    """

    async def livez(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        waits_for = missing()
        return web.Response(text=f"waiting for {waits_for}\n", status=503) if waits_for else web.Response(text="ok\n")

    app = web.Application()
    app.router.add_get("/metrics", metrics_handler(registry, jobs))
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
