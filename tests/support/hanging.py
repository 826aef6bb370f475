"""What ranks do in the tests of the watchdog; it lies here because new processes import it by name."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from trainingjob_trainer import watchdog
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.loop import train
from trainingjob_trainer.parallel import World
from trainingjob_trainer.standstill import Stand

from support.clock import Clock
from support.runs import wait_until
from support.training import Hooks, store_of


def train_until_a_rank_dozes_off(config: JobConfig, logs: str, after: int) -> None:
    """The whole loop, in which the last rank falls asleep in a reduction; its log lies in `logs`, by rank.

    Time passes once a rank is there for good and has nothing to save, and none ends before all have told.
    """
    world = World.join()
    logging.basicConfig(filename=f"{logs}/{world.rank}.log", force=True)
    impatient = config.training.model_copy(update={"hang_seconds": 10})
    main, there = threading.get_ident(), threading.Event()

    class Standing(Hooks):
        def stands(self, stand: Stand | None) -> None:
            assert stand is not None
            Path(logs, f"{world.rank}.json").write_text(stand.model_dump_json())
            wait_until("all have told", lambda: len(list(Path(logs).glob("?.json"))) == world.size)

    class Sleepy(Clock):
        def monotonic(self) -> float:
            saves = any(thread.name == "checkpoint" for thread in threading.enumerate())
            where = Stand.of(sys._current_frames()[main], after, 0).where
            return 11.0 if there.is_set() and not saves and where in ("all_reduce", "wait") else 0.0

    reduce, number = World.sum, itertools.count()

    def doze(self: World, values: torch.Tensor) -> None:
        if next(number) == after:
            there.set()
            if world.rank == world.size - 1:
                threading.Event().wait()
        reduce(self, values)

    with (
        mock.patch.object(World, "sum", doze),
        mock.patch.object(watchdog, "time", Sleepy()),
        mock.patch.object(watchdog, "GRACE", 1.0),
    ):
        train(config.model_copy(update={"training": impatient}), Attempt(1, store_of(config)), Standing())


def train_compiling_slowly(config: JobConfig, part: str) -> Any:
    """The whole loop, in which the first pass of `part` takes twice as long as a pass may.

    It stands for compiling, which takes as long as it likes: nothing is compiled.
    """
    clock, slept = Clock(), False

    def compile_slowly(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal slept
            if not slept and torch.is_grad_enabled() == (part == "training"):
                slept = True
                clock.skip(2.0)
                clock.look()
            return function(*args, **more)

        return call

    impatient = config.training.model_copy(update={"hang_seconds": 1})
    with (
        mock.patch.dict(os.environ, CXX=sys.executable),  # a program that is there
        mock.patch.object(torch, "compile", compile_slowly),
        mock.patch.object(watchdog, "time", clock),
    ):
        return train(config.model_copy(update={"training": impatient}), Attempt(1, store_of(config)), Hooks())
