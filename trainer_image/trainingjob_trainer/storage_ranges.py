"""Ranges of S3 objects, by a URL that boto3 signs once for all ranges of an object, into memory that is there already.

boto3 takes 1 ms of CPU to put a request together and to read the answer's headers, and copies each body once more: with
a server nearby, half of what reading 8 MiB costs. What is not a whole answer is none here: whoever asked then asks
boto3, which tries again and knows what errors mean. So this knows nothing of TLS, proxies and redirections either.
"""

from __future__ import annotations

import socket
import time
import weakref
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

USED = 300  # seconds that a URL is used: the credentials that it was signed with are good for ten minutes
GOOD = 900  # seconds that it is good, by the server's clock
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
        self._idle: list[HTTPConnection] = []
        weakref.finalize(self, _close, self._idle)

    def read_into(self, key: str, start: int, into: memoryview, if_match: str | None) -> str | None:
        """Fill `into` with an object's bytes from `start` on, if it has the etag `if_match`: its etag, or None."""
        if not self._can or not into:
            return None
        headers = {"Range": f"bytes={start}-{start + len(into) - 1}"} | ({"If-Match": if_match} if if_match else {})
        try:
            url = self._url(key)
            connection = self._connection(url)
        except (OSError, BotoCoreError, ClientError):
            return None
        try:
            connection.request("GET", f"{url.path}?{url.query}", headers=headers)
            own = connection.sock  # a server that closes after its answer takes it away
            with connection.getresponse() as answer:
                whole = answer.status == 206 and answer.length == len(into) == _fill(into, answer, own)
            if whole:
                if connection.sock is not None:
                    self._idle.append(connection)
                return answer.headers["ETag"]
        except (OSError, HTTPException):  # among them what a server does that has closed an idle connection
            pass
        connection.close()
        return None

    def _url(self, key: str) -> SplitResult:
        url, until = self._signed.get(key, (None, 0.0))
        if url is None or time.monotonic() > until:
            what = {"Bucket": self._bucket, "Key": key}
            until = time.monotonic() + USED
            url = urlsplit(self._client.generate_presigned_url("get_object", Params=what, ExpiresIn=GOOD))
            self._signed[key] = url, until
        return url

    def _connection(self, url: SplitResult) -> HTTPConnection:
        try:
            return self._idle.pop()
        except IndexError:
            connection = HTTPConnection(url.hostname or "", url.port, timeout=self._connect_timeout)
            connection.connect()
            connection.sock.settimeout(self._read_timeout)
            return connection


def _close(connections: list[HTTPConnection]) -> None:
    for connection in connections:
        connection.close()


def _fill(into: memoryview, answer: HTTPResponse, own: socket.socket) -> int:
    """Read a body of that length: how much there was."""
    most = max(0, len(into) - PORTION)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, PORTION)
    count = answer.readinto(into[:most])
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return count + answer.readinto(into[most:])
