"""The command `trainingjob-operator`."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Sequence

from prometheus_client import disable_created_metrics

from trainingjob_operator import app, logs, options
from trainingjob_operator.kube.informer import BeginAnew
from trainingjob_operator.kube.preflight import StartProblem

YOUNG_OBJECTS = 20_000
"""New objects after which the collector looks for cycles. Next to all of ours are freed by their reference counts; at
Python's 700 looking takes 6 % of the CPU time while many jobs start (perf)."""

DEEPEST_JSON = 10_000
"""Levels of an object that an API server stores, in a field that it does not know. Read it must be, by kopf too, or one
object would end what looks after all others."""

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the operator; 0 after SIGTERM, 1 when it cannot start or has failed."""
    chosen = options.parse(arguments)
    logs.configure(chosen.log_format, chosen.log_level)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # Twice the series, and they say nothing.
    gc.freeze()  # What has been imported stays: the collector need not look through it again and again.
    gc.set_threshold(YOUNG_OBJECTS)
    sys.setrecursionlimit(2 * DEEPEST_JSON)
    try:
        asyncio.run(app.run(chosen))
    except StartProblem as problem:
        logger.error("cannot start: %s", problem)
        return 1
    except BaseExceptionGroup as failures:
        if (problems := failures.subgroup(StartProblem)) is not None:
            logger.error("cannot start: %s", problems.exceptions[0])
        elif (news := failures.subgroup(BeginAnew)) is not None:
            logger.error("this process ends to begin anew: %s", news.exceptions[0])
        else:
            logger.error("the operator has failed", exc_info=failures)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
