"""What an operator sees that is served old facts: LISTs of an earlier time, and watches that have not caught up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from support.fault_proxy import FaultProxy, Rule, replay, waits_for, watching
from support.kube_http import Object
from support.scene import Scene

PODS = r"/pods\?.*job-uid(&|$)"
"""LISTs and watches of all pods. Those of one job are read when it matters, and are never old."""
JOBS = "/trainingjobs"


@dataclass(frozen=True)
class OldFacts:
    """The answers to the operator's LISTs at one time, by their paths."""

    answers: dict[str, Object]

    @classmethod
    async def of(cls, stage: Scene) -> OldFacts:
        """Those of now."""
        jobs, pods = stage.jobs, f"{stage.pods}?labelSelector=trainingjob.io/job-uid"
        return cls({JOBS: await stage.api.get(jobs), PODS: await stage.api.get(pods)})

    @contextmanager
    def served(self, proxy: FaultProxy, *paths: str) -> Iterator[None]:
        """An operator that starts meanwhile sees these facts on the paths (none: all) until the block ends."""
        gate = asyncio.Event()
        hang = watching(waits_for(gate))
        rules = [
            rule
            for path in paths or self.answers
            for rule in (
                Rule(replay(self.answers[path]), verb="list", path=path, times=math.inf),
                Rule(hang, verb="watch", path=path, times=math.inf),
            )
        ]
        proxy.rules += rules
        try:
            yield
        finally:
            for rule in rules:
                proxy.rules.remove(rule)
            gate.set()
