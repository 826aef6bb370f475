"""`python -m trainingjob_trainer.agent check|prepare-data|train`: the command of every pod."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import get_args

from .agent import Agent, Stage
from .pod import Pod

STAGES: dict[str, Stage] = dict(zip(("check", "prepare-data", "train"), get_args(Stage), strict=True))


async def run(stage: str) -> int:
    """Run this pod's agent; returns the exit code."""
    program = [sys.executable, "-m", "trainingjob_trainer.driver", stage]
    return await Agent(Pod.of(os.environ), STAGES[stage], program).run()


def main() -> int:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if len(sys.argv) != 2 or sys.argv[1] not in STAGES:
        sys.stderr.write(f"usage: python -m trainingjob_trainer.agent {'|'.join(STAGES)}\n")
        return 2
    return asyncio.run(run(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
