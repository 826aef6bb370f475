"""Reports from driver and ranks to the head's agent, and what it answers. Training never waits for them and never fails
by them."""

from __future__ import annotations

import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from .network import ask_pod

logger = logging.getLogger(__name__)

INTERVAL = 0.5  # seconds between two reports at least
ANSWER = 5.0  # seconds that the agent has for one
LAST = 10.0  # seconds that the last ones may take


class Reporter:
    """Sends what changed from a thread of its own; what was not sent yet is merged."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token
        self._pending: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def report(self, fields: Mapping[str, Any]) -> None:
        """Queue fields of `/progress` (camelCase); nested objects are merged."""
        with self._changed:
            for name, value in fields.items():
                if isinstance(value, dict) and isinstance(self._pending.get(name), dict):
                    value = {**self._pending[name], **value}
                self._pending[name] = value
            self._changed.notify()

    def close(self) -> None:
        """Send what is left, and end."""
        self._closed.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(LAST)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closed.is_set():
                    self._changed.wait()
                fields, self._pending = self._pending, {}
            if fields:
                self._send(fields)
            if self._closed.is_set() and not self._pending:
                return
            self._closed.wait(INTERVAL)

    def _send(self, fields: dict[str, Any]) -> None:
        request = urllib.request.Request(
            self._url,
            data=json.dumps(fields).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        try:
            with ask_pod(request, ANSWER):
                pass
        except urllib.error.HTTPError as error:
            logger.warning("The head refused a report: %s", error.read(500).decode(errors="replace"))
        except OSError as error:
            logger.warning("The head took no report: %s", error)


def ask(report_url: str, path: str) -> dict[str, Any] | None:
    """What the head's agent answers at another path than that of reports; None if it does not."""
    try:
        with ask_pod(report_url.removesuffix("report") + path, ANSWER) as response:
            answer: dict[str, Any] = json.load(response)
    except (OSError, ValueError):
        return None
    return answer
