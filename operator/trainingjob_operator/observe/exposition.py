"""`GET /metrics`: the jobs' metrics and the operator's own, in the format that the scraper asks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

Text = Callable[[bool], Awaitable[str]]
"""Families as text, for OpenMetrics or for the older format."""


def metrics_handler(registry: CollectorRegistry, jobs: Text) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Answers with what `jobs` writes, then with the registry."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(",".join(request.headers.getall("Accept", [])))
        families = await jobs(content_type.startswith("application/openmetrics-text"))
        # The registry comes last: its encoder sets the end mark of OpenMetrics.
        response = web.Response(body=families.encode() + encode(registry), headers={"Content-Type": content_type})
        response.enable_compression()
        return response

    return metrics
