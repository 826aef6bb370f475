"""The node's HTTPS API, which the API server calls as a kubelet's: logs and health. Clients must have a certificate."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web

from trainingjob_local.node.config import NodeConfig
from trainingjob_local.node.logs import LogFile, parse_options

# (namespace, pod, container, previous) -> its log; raises LookupError with a message
FindLog = Callable[[str, str, str, bool], LogFile]

_NOT_IMPLEMENTED = ("exec", "attach", "run", "portForward", "cri", "checkpoint", "stats", "metrics")


async def serve(config: NodeConfig, find_log: FindLog) -> web.AppRunner:
    """Start serving at the node's address; `cleanup()` of the answer ends it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(config.tls_cert, config.tls_key)
    context.load_verify_locations(config.client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    runner = web.AppRunner(_application(find_log), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, config.address, config.port, ssl_context=context).start()
    return runner


def _application(find_log: FindLog) -> web.Application:
    async def logs(request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        try:
            options = parse_options(query, datetime.now(UTC))
            where = request.match_info
            log = find_log(where["namespace"], where["pod"], where["container"], query.get("previous") == "true")
        except ValueError as error:
            return web.Response(status=422, text=str(error))
        except LookupError as error:
            return web.Response(status=400, text=str(error.args[0]))
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        async for piece in log.stream(options):
            await response.write(piece)
        await response.write_eof()
        return response

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def refuse(request: web.Request) -> web.Response:
        what = request.path.split("/")[1]
        return web.Response(status=501, text=f"{what} is not implemented by the local cluster's process node\n")

    application = web.Application()
    application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", logs)
    application.router.add_get("/healthz", health)
    for name in _NOT_IMPLEMENTED:
        application.router.add_route("*", f"/{name}{{rest:(/.*)?}}", refuse)
    return application
