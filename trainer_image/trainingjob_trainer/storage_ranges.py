"""Ranges of S3 objects, by a URL that boto3 signs once for all ranges of an object, into memory that is there already.

boto3 takes 1 ms of CPU to put a request together and to read the answer's headers, and copies each body once more: with
a server nearby, two thirds of what reading 8 MiB costs. What is not a whole answer is none here: whoever asked then
asks boto3, which tries again and knows what errors mean. So this knows nothing of TLS, proxies and redirections either.
"""

from __future__ import annotations

import socket
import struct
import time
import weakref
from socket import MSG_WAITALL, SO_RCVLOWAT, SO_RCVTIMEO, SOL_SOCKET
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

USED = 300  # seconds that a URL is used: the credentials that it was signed with are good for ten minutes
GOOD = 900  # seconds that it is good, by the server's clock
HEAD = 2**14  # bytes: no answer's headers have more
PORTION = 2 * 2**20  # bytes that are waited for at once: woken up for each packet, a read takes a third more CPU


class Ranges:
    """Of objects of one bucket. Thread-safe."""

    def __init__(self, client: S3Client, bucket: str, connect_timeout: float, read_timeout: float) -> None:
        self._client, self._bucket = client, bucket
        self._connect_timeout, self._read_timeout = connect_timeout, read_timeout
        endpoint = urlsplit(client.meta.endpoint_url)
        proxied = "http" in getproxies() and not proxy_bypass(endpoint.hostname or "")
        self._can = endpoint.scheme == "http" and not proxied
        self._signed: dict[str, tuple[SplitResult, float]] = {}
        self._idle: list[socket.socket] = []
        weakref.finalize(self, _close, self._idle)

    def read_into(self, key: str, start: int, into: memoryview, if_match: str | None) -> str | None:
        """Fill `into` with an object's bytes from `start` on, if it has the etag `if_match`: its etag, or None."""
        if not self._can or not into:
            return None
        try:
            url = self._url(key)
            connection = self._connection(url)
        except (OSError, BotoCoreError, ClientError):
            return None
        asked = [f"GET {url.path}?{url.query} HTTP/1.1", f"Host: {url.netloc}"]
        asked += [f"Range: bytes={start}-{start + len(into) - 1}", *([f"If-Match: {if_match}"] if if_match else [])]
        try:
            connection.sendall("\r\n".join([*asked, "", ""]).encode())
            headers = _receive(connection, into)
        except OSError:  # among them what a server does that has closed an idle connection
            headers = {}
        if headers and headers.get("connection", "").lower() != "close":
            self._idle.append(connection)
        else:
            connection.close()
        return headers.get("etag")

    def _url(self, key: str) -> SplitResult:
        url, until = self._signed.get(key, (None, 0.0))
        if url is None or time.monotonic() > until:
            what = {"Bucket": self._bucket, "Key": key}
            until = time.monotonic() + USED
            url = urlsplit(self._client.generate_presigned_url("get_object", Params=what, ExpiresIn=GOOD))
            self._signed[key] = url, until
        return url

    def _connection(self, url: SplitResult) -> socket.socket:
        try:
            return self._idle.pop()
        except IndexError:
            connection = socket.create_connection((url.hostname or "", url.port or 80), self._connect_timeout)
            connection.settimeout(None)  # the kernel's timeout: by Python's, whatever comes wakes up Python
            seconds, part = divmod(self._read_timeout, 1)
            connection.setsockopt(SOL_SOCKET, SO_RCVTIMEO, struct.pack("ll", int(seconds), int(part * 10**6)))
            return connection


def _close(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.close()


def _receive(connection: socket.socket, into: memoryview) -> dict[str, str]:
    """The headers of an answer, by names in lower case, if it is all that `into` has room for; otherwise none."""
    head, end, body = b"", b"", b""
    while not end:
        more = connection.recv(HEAD)
        if not more or len(head) > HEAD:
            return {}
        head, end, body = (head + more).partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    asked_for = status.startswith("HTTP/1.1 206") and headers.get("content-length") == str(len(into))
    return headers if asked_for and len(body) <= len(into) and _fill(into, body, connection) else {}


def _fill(into: memoryview, begun: bytes, connection: socket.socket) -> bool:
    """Receive a body of that length, which has begun: whether there was so much."""
    count = len(begun)
    into[:count] = begun
    for until, low in ((len(into) - PORTION, PORTION), (len(into), 1)):
        connection.setsockopt(SOL_SOCKET, SO_RCVLOWAT, low)
        while count < until and (more := connection.recv_into(into[count:until], flags=MSG_WAITALL)):
            count += more
    return count == len(into)
