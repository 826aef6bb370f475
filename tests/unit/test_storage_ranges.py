"""Ranges by signed URLs: a whole answer, or none, whatever the server does."""

import os
import struct
from collections.abc import Iterator
from fcntl import ioctl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SO_RCVTIMEO, SOL_SOCKET, socketpair
from termios import FIONREAD
from threading import Thread

import boto3
import pytest
from botocore.config import Config
from support.runs import PATIENCE, wait_until
from trainingjob_trainer.storage_ranges import PORTION, Ranges, _receive

DATA = os.urandom(PORTION + 100_000)


class Server(BaseHTTPRequestHandler):
    """Serves DATA under any key, in the way that its key says."""

    protocol_version = "HTTP/1.1"
    requests: list[str]
    connections: set[int]

    def do_GET(self) -> None:
        way = self.path.partition("?")[0].rpartition("/")[2]
        self.requests.append(self.path)
        self.connections.add(self.client_address[1])
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        body = DATA[first : last + 1 + {"shorter": -1, "longer": 1}.get(way, 0)]
        self.send_response({"missing": 404, "changed": 412, "whole": 200}.get(way, 206))
        self.send_header("ETag", '"tag"')
        self.send_header("Content-Length", str(len(body)))
        if way == "closing":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[:-1] if way in ("broken", "stalled") else body)
        self.close_connection = way in ("broken", "closing")
        if way == "stalled":
            self.rfile.read(1)  # until the client has had enough

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Server.requests, Server.connections = [], set()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as serving:
        thread = Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def ranges(port: int, scheme: str = "http") -> Ranges:
    config = Config(s3={"addressing_style": "path"}, signature_version="s3v4")
    client = boto3.client(
        "s3", endpoint_url=f"{scheme}://127.0.0.1:{port}", region_name="us-east-1", config=config,
        aws_access_key_id="a", aws_secret_access_key="b",
    )  # fmt: skip
    return Ranges(client, "bucket", PATIENCE, PATIENCE)


@pytest.mark.parametrize("size", [1, 70_000, len(DATA) - 7])
def test_ranges_of_an_object_come_over_one_connection_by_one_url(server: ThreadingHTTPServer, size: int) -> None:
    own = ranges(server.server_port)
    for start in (0, 7):
        memory = bytearray(size)
        assert own.read_into("key", start, memoryview(memory), None) == '"tag"'
        assert memory == DATA[start : start + size]
    assert len(Server.connections) == 1
    assert len(set(Server.requests)) == 1
    assert "X-Amz-Signature" in Server.requests[0]


@pytest.mark.parametrize("way", ["missing", "changed", "whole", "shorter", "longer", "broken", "stalled"])
@pytest.mark.parametrize("size", [1000, PORTION + 50_000])
def test_what_is_not_the_whole_answer_is_none_and_the_next_one_is_asked_for_anew(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, way: str, size: int
) -> None:
    own, memory = ranges(server.server_port), bytearray(size)
    with monkeypatch.context() as patch:
        if way == "stalled":
            patch.setattr(own, "_read_timeout", 0.2)  # of the connection that this read makes
        assert own.read_into(way, 0, memoryview(memory), '"tag"') is None
    assert own.read_into("key", 3, memoryview(memory), None) == '"tag"'
    assert memory == DATA[3 : 3 + size]
    wait_until("both to be seen", lambda: len(Server.connections) == 2, every=0.01)


def test_a_server_may_close_after_each_answer(server: ThreadingHTTPServer) -> None:
    own, memory = ranges(server.server_port), bytearray(1000)
    for _ in range(2):
        assert own.read_into("closing", 0, memoryview(memory), None) == '"tag"'
        assert memory == DATA[:1000]
    assert len(Server.connections) == 2


def test_tls_a_proxy_and_a_server_that_is_not_there_are_left_to_boto3(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = memoryview(bytearray(10))
    assert ranges(server.server_port, "https").read_into("key", 0, into, None) is None
    assert ranges(1).read_into("key", 0, into, None) is None
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert ranges(server.server_port).read_into("key", 0, into, None) is None
    assert not Server.requests


def test_headers_may_come_in_parts_and_with_the_beginning_of_the_body() -> None:
    client, server = socketpair()
    memory, found = bytearray(len(DATA)), list[dict[str, str]]()
    client.setsockopt(SOL_SOCKET, SO_RCVTIMEO, struct.pack("ll", int(PATIENCE), 0))
    with client, server:
        receiving = Thread(target=lambda: found.append(_receive(client, memoryview(memory))))
        receiving.start()
        head = f"HTTP/1.1 206 Partial Content\r\neTaG:tag\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()
        for part in (head[:9], head[9:-3], head[-3:] + DATA[:1000], DATA[1000:]):
            server.sendall(part)
            wait_until("it to be taken", lambda: not any(ioctl(client, FIONREAD, bytes(4))), every=0.001)
        receiving.join()
    assert found == [{"etag": "tag", "content-length": str(len(DATA))}]
    assert memory == DATA
