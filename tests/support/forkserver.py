"""A server that has imported what tests need once, and forks clean processes from then on."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from multiprocessing.context import ForkServerContext, ForkServerProcess
from unittest import mock

_starting = threading.Lock()


def serving(*modules: str) -> ForkServerContext:
    """For processes that find these modules imported. One server for the whole session: who asks last decides."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", *modules, "support.frozen"])
    return context


def start(process: ForkServerProcess) -> None:
    """Start a process, and the server with the first one: it would not look where pytest has modules from, and passes
    over what it does not find without a word.
    """
    with _starting, mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        process.start()
