"""The agent's HTTP: health, progress, metrics; and reports, with the gang's token."""

from __future__ import annotations

import asyncio
import hmac

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import ValidationError

from .progress import Progress, Report

MAX_REPORT = 64 * 1024  # bytes


def bears(request: web.Request, token: str) -> bool:
    """Whether the request comes with this token. The empty one opens nothing."""
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return bool(token) and hmac.compare_digest(given.encode(), token.encode())


class Server:
    """Serves a pod's progress on all its addresses."""

    def __init__(self, progress: Progress, token: str) -> None:
        self._progress = progress
        self._token = token
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(progress))
        self._left: set[str] = set()
        self._another_left = asyncio.Condition()
        app = web.Application(client_max_size=MAX_REPORT)
        self.routes = app.router
        self.routes.add_get("/healthz", self._healthz)
        self.routes.add_get("/progress", self._get_progress)
        self.routes.add_get("/standing", self._get_standing)
        self.routes.add_get("/metrics", self._metrics)
        self.routes.add_post("/report", self._report)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)

    async def start(self, host: str, port: int) -> None:
        """Listen."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()

    async def stop(self) -> None:
        """Close the port."""
        await self._runner.cleanup()

    async def wait_left(self, pods: int) -> None:
        """Wait until so many followers have said that they end."""
        async with self._another_left:
            await self._another_left.wait_for(lambda: len(self._left) >= pods)

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _get_progress(self, request: web.Request) -> web.Response:
        if "leaving" in request.query:
            async with self._another_left:
                self._left.add(request.query["leaving"])
                self._another_left.notify_all()
        return web.json_response(self._progress.wire())

    async def _get_standing(self, _: web.Request) -> web.Response:
        return web.json_response(self._progress.standing())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), content_type="text/plain", charset="utf-8")

    async def _report(self, request: web.Request) -> web.Response:
        if not bears(request, self._token):
            return web.Response(status=401, text="The bearer token of this gang is required.")
        try:
            self._progress.take(Report.model_validate_json(await request.read()))
        except ValidationError as error:
            return web.Response(status=400, text=str(error))
        return web.Response(status=204)


class _Gauges(Collector):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def collect(self) -> list[GaugeMetricFamily]:
        """Gauges of what is known now."""
        return [
            GaugeMetricFamily(f"trainingjob_trainer_{name}", text, value=value)
            for name, (text, value) in self._progress.metrics().items()
        ]
