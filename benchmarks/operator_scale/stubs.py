"""Heads that do nothing but answer polls: all addresses of 127.1.0.0/16, on one port, in a process of their own.

`python -m benchmarks.operator_scale.stubs` prints the port. What a head reports does not change.
"""

import asyncio
import socket
import sys
from typing import Any

from aiohttp import web


def address(head: int) -> str:
    """Where a head listens."""
    return f"127.1.{head // 250}.{head % 250 + 1}"


def report(head: int) -> dict[str, Any]:
    """What a head in the middle of a run answers."""
    return {
        "jobUid": f"job-{head}",
        "podUid": f"pod-{head}",
        "stage": "Train",
        "attempt": 1,
        "state": "Training",
        "progress": {
            "step": 1200,
            "steps": 5000,
            "samples": 614400,
            "tokens": 629145600,
            "tokensPerSecond": 181234.5,
            "etaSeconds": 13200.0,
            "loss": 3.1415,
            "learningRate": 0.0006,
            "gradNorm": 0.83,
        },
        "checkpoint": {"latestStep": 1200, "latestUri": "s3://models/run/checkpoints/step-1200", "bestStep": 1000},
        "evaluation": {"split": "validation", "step": 1000, "metrics": {"loss": 3.2, "perplexity": 24.5}},
        "worldSize": 4,
        "resumedFromStep": 0,
        "attemptStartedAt": "2026-01-01T00:00:00Z",
        "firstStepAt": "2026-01-01T00:00:10Z",
        "incidents": [],
    }


async def serve() -> None:
    """Answer until killed."""

    async def progress(request: web.Request) -> web.Response:
        assert request.transport is not None
        high, low = (int(part) for part in request.transport.get_extra_info("sockname")[0].split(".")[2:])
        return web.json_response(report(high * 250 + low - 1))

    app = web.Application()
    app.router.add_get("/progress", progress)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listening = socket.create_server(("0.0.0.0", 0), backlog=1024)
    await web.SockSite(runner, listening).start()
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
