"""A proxy between a trainer and the S3 server that counts requests, and lets the storage go away.

with S3Proxy(cluster.s3.endpoint) as proxy:
    proxy.before = lambda request: ...   # called with each request before it is passed on
    proxy.fault = busy                   # what happens to requests instead; None: they are passed on
    proxy.refuse()                       # nobody listens any more, until `listen`
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    """The `number`-th request, from 1."""

    number: int
    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


Fault = Callable[["_Handler"], bool]  # whether it has dealt with the request


class S3Proxy:
    """Listens on a port of its own at `host`. `seen`: every request that came, in order."""

    def __init__(self, upstream: str, host: str = "127.0.0.1") -> None:
        self.upstream = urlsplit(upstream).netloc
        self._host = host
        self.seen: list[Request] = []
        self.before: Callable[[Request], None] = lambda request: None
        self.after: Callable[[Request], None] = lambda request: None
        self.fault: Fault | None = None
        self.over = threading.Event()  # ends requests that are stalled
        self._lock = threading.Lock()
        self._port = 0
        self.listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.refuse()

    @property
    def endpoint(self) -> str:
        return f"http://{self._host}:{self._port}"

    def listen(self) -> None:
        """Take connections, on the same port as before."""
        self._server = _Server((self._host, self._port), _Handler)
        self._server.proxy = self
        self._port = self._server.server_address[1]
        self.fault = None
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def refuse(self) -> None:
        """Refuse connections and break off the present ones at their next request."""
        self.fault = hang_up
        self._server.shutdown()
        self._server.server_close()

    def note(self, method: str, path: str) -> Request:
        with self._lock:
            request = Request(len(self.seen) + 1, method, path)
            self.seen.append(request)
        return request


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: S3Proxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def pass_on(self) -> None:
        """Any request: counted, then faulted or forwarded as it is (`Host` too, which is part of what is signed)."""
        proxy = self.server.proxy
        request = proxy.note(self.command, self.path)
        proxy.before(request)
        if proxy.fault is not None and proxy.fault(self):
            return
        upstream = http.client.HTTPConnection(proxy.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    upstream.putheader(name, value)
            upstream.endheaders(self.body())
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        proxy.after(request)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on  # noqa: N815

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, code: str) -> bool:
        """An S3 error instead of passing the request on."""
        self.body()
        content = f"<Error><Code>{code}</Code><Message>the test wants it so</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return True

    def log_message(self, format: str, *args: object) -> None: ...

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the trainer was killed, or has given up
            self.close_connection = True


def hang_up(handler: _Handler) -> bool:
    """The connection is reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True
    return True


def stall(handler: _Handler) -> bool:
    """Half of the body is read, then nothing happens until the outage is over, and the connection breaks."""
    handler.rfile.read(int(handler.headers.get("Content-Length") or 0) // 2)
    handler.server.proxy.over.wait()
    return hang_up(handler)


def busy(handler: _Handler) -> bool:
    """503."""
    return handler.answer(503, "SlowDown")


def full(handler: _Handler) -> bool:
    """No more shards can be written, as MinIO says it."""
    is_shard = handler.command == "PUT" and ".bin" in handler.path
    return is_shard and handler.answer(400, "XMinioAdminBucketQuotaExceeded")
