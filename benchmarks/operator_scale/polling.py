"""What polling many heads costs: the operator's poller, alone in its process, with stub endpoints in another one."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from trainingjob_operator.core.cache import Key
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.observe.progress import ProgressPoller

from benchmarks.operator_scale.stubs import address

_START = datetime(2026, 1, 1, tzinfo=UTC)


@contextmanager
def stub_endpoints() -> Iterator[int]:
    """All stubs; yields their port."""
    command = [sys.executable, "-m", "benchmarks.operator_scale.stubs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def poll(heads: int, seconds: float) -> dict[str, float]:
    """CPU of this process for polling `heads` heads for some seconds, in ms per poll."""
    with stub_endpoints() as port:
        answers = 0

        def now() -> datetime:
            nonlocal answers
            answers += 1  # the poller asks for the time once per report
            return datetime.now(UTC)

        async with ProgressPoller(lambda key, delay: None, now, port=port) as poller:
            for head in range(heads):
                poller.follow(Key("default", f"job-{head}"), f"job-{head}", _pod(head))
            polling = asyncio.create_task(poller.run())
            await asyncio.sleep(2 * poller.interval)  # all have been heard once
            before, cpu, begun = answers, time.process_time(), time.monotonic()
            await asyncio.sleep(seconds)
            polls, used, passed = answers - before, time.process_time() - cpu, time.monotonic() - begun
            polling.cancel()
    return {"heads": heads, "polls": polls, "polls_per_s": polls / passed, "cpu_ms_per_poll": 1000 * used / polls}


def _pod(head: int) -> PodFacts:
    return PodFacts(
        name=f"job-{head}-train-0-1",
        uid=f"pod-{head}",
        resource_version="1",
        job_uid=f"job-{head}",
        role="train",
        index=0,
        incarnation=1,
        created_at=_START,
        ip=address(head),
        phase="Running",
        ready=True,
    )
