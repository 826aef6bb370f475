"""A run that cannot end before its test lets it, however fast the machine is, and however slow the test."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from trainingjob_local.sandbox import HOST_IP

from support.s3_proxy import Request, S3Proxy

COMMIT = re.compile(r"/step-(\d+)/COMMIT\.json")


class Held:
    """The run's way to its storage. The commit of a step that the run may not come to yet is held up, and the run waits
    at its next save."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._limit = 0.0
        self._moved = threading.Condition()

    def let(self, step: float) -> None:
        """Commits up to this step pass from now on."""
        with self._moved:
            self._limit = step
            self._moved.notify_all()

    def pass_or_wait(self, request: Request) -> None:
        commit = COMMIT.search(request.path)
        if request.method == "PUT" and commit is not None:
            with self._moved:
                self._moved.wait_for(lambda: int(commit[1]) <= self._limit)


@contextmanager
def held(upstream: str) -> Iterator[Held]:
    """A way to the S3 server for pods. Nothing is held any more when the block ends, nor does the way exist."""
    with S3Proxy(upstream, HOST_IP) as proxy:
        way = Held(proxy.endpoint)
        proxy.before = way.pass_or_wait
        try:
            yield way
        finally:
            way.let(math.inf)
