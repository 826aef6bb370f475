"""The agent's HTTP server of a played head pod."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Head:
    """Answers `GET /progress` with what the test has it say."""

    address = "127.0.0.5"

    def __init__(self) -> None:
        self._report: dict[str, Any] = {}
        self._asked = 0
        self._seen = 0
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                head._asked += 1
                body = json.dumps(head._report).encode()
                self.send_response(200 if self.path == "/progress" else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer((self.address, 8080), Handler)

    def says(self, **report: Any) -> None:
        """Change these fields of the report."""
        self._report = {**self._report, **report}
        self._seen = self._asked

    def trains(self, job_uid: str, pod_uid: str) -> None:
        """It has finished its first step."""
        step = {"step": 25, "loss": 3.25, "tokensPerSecond": 512.0}
        self.says(jobUid=job_uid, podUid=pod_uid, stage="Train", state="Training", attempt=1, progress=step)
        self.says(firstStepAt="2030-01-01T00:00:00Z")

    def was_asked_again(self) -> bool:
        """Whether the operator has taken the answer in: it has asked twice since."""
        return self._asked >= self._seen + 2


@contextmanager
def serving() -> Iterator[Head]:
    """A head pod's HTTP server."""
    head = Head()
    thread = threading.Thread(target=head.server.serve_forever)
    thread.start()
    try:
        yield head
    finally:
        head.server.shutdown()
        head.server.server_close()
        thread.join()
