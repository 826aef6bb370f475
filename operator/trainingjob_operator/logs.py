"""Log lines on standard error: text for people, JSON for collectors. The job is a field, not part of the sentence."""

from __future__ import annotations

import json
import logging
import time
from typing import Literal

_NAME_LEVELS = {"kopf.objects": logging.WARNING, "kopf": logging.INFO, "aiohttp": logging.WARNING}


class TextFormatter(logging.Formatter):
    """`<time> <LEVEL> <logger> [<namespace>/<name>] <message>`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the standard library's name)
        """The line, with the job in front of the message."""
        job = getattr(record, "job", None)
        if job is not None:
            record.message = f"[{job}] {record.message}"
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, job, exception."""

    def __init__(self) -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line of JSON."""
        line = {
            "time": f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        job = getattr(record, "job", None)
        if job is not None:
            line["namespace"], _, line["name"] = str(job).partition("/")
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(style: Literal["text", "json"], level: str) -> None:
    """Send all log lines of the process to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name, least in _NAME_LEVELS.items():
        logging.getLogger(name).setLevel(max(least, logging.getLogger().level))
