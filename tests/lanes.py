"""All tests, in two lanes at once: one mostly computes, the other mostly waits for Kubernetes.

    python tests/lanes.py -m "not slow"

The arguments are pytest's. Progress is told as it comes, all else that pytest says when it has ended. The exit code
is 1 if any test failed.
"""

from __future__ import annotations

import asyncio
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

PYTEST = str(Path(sys.executable).with_name("pytest"))
SANDBOXED = (sys.executable, "-m", "trainingjob_local.sandbox", "--", PYTEST)
LANES = (
    ((PYTEST, "tests/unit"), (*SANDBOXED, "tests/faults"), (*SANDBOXED, "tests/e2e")),
    ((*SANDBOXED, "tests/cluster"),),
)
LONGEST_LINE = 2**26
PROGRESS = re.compile(rb"\[ *\d+%\]$")


async def lane(commands: tuple[tuple[str, ...], ...], arguments: list[str]) -> bool:
    """Run one pytest after the other, also if one fails; whether all passed."""
    return all([await passes(*command, *arguments) for command in commands])


async def passes(*command: str) -> bool:
    """Run one pytest."""
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, limit=LONGEST_LINE)
    assert process.stdout is not None
    report = []
    async for line in process.stdout:
        if PROGRESS.search(line.rstrip()):
            tell(line)
        else:
            report.append(line)
    tell(b"".join(report))
    return await process.wait() == 0


def tell(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


async def main(arguments: list[str]) -> int:
    """Run all lanes; an exit code."""
    passed = await asyncio.gather(*(lane(commands, arguments) for commands in LANES))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
