"""`python -m trainingjob_trainer.agent check|prepare-data|train|custom`: the command of every pod."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import Literal

from ..errors import Drained

STAGES: dict[str, Literal["Check", "PrepareData", "Train"]] = {
    "check": "Check",
    "prepare-data": "PrepareData",
    "train": "Train",
}
CUSTOM = "custom"


async def run(stage: str) -> int:
    """Run this pod's agent; returns the exit code."""
    from .custom import CustomAgent
    from .pod import Pod
    from .stage import StageAgent

    pod = Pod.of(os.environ)
    if stage == CUSTOM:
        return await CustomAgent(pod).run()
    program = [sys.executable, "-m", "trainingjob_trainer.driver", stage]
    return await StageAgent(pod, STAGES[stage], program).run()


def main() -> int:
    """Entry point."""
    # The kernel drops signals that PID 1 has no handler for; until the agent runs there is nothing to drain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(Drained.exit_code))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if len(sys.argv) != 2 or sys.argv[1] not in (*STAGES, CUSTOM):
        sys.stderr.write(f"usage: python -m trainingjob_trainer.agent {'|'.join((*STAGES, CUSTOM))}\n")
        return 2
    return asyncio.run(run(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
