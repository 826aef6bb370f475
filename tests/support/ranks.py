"""Real ranks for tests: processes that form a gloo group on the loopback and each run one function."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from support import forkserver
from support.runs import PATIENCE, RUN_PATIENCE

_CONTEXT = forkserver.serving(
    "support.rank_functions",
    *(f"trainingjob_trainer.evaluation.{name}" for name in ("export", "report", "charts")),
    "transformers.models.gpt_neox.modeling_gpt_neox",  # of the libraries' models, those that tests train
    "timm",
)


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(*args)` in `world_size` new processes with a process group (none for one rank); results by rank.

    A rank that was killed gives its negative signal number, one that ended by itself its exit code, one that raised its
    exception. Exit code 1 is that of a rank that could not even begin: an `AssertionError`.
    """
    with tempfile.TemporaryDirectory() as directory:
        pipes, processes = [], []
        for rank in range(world_size):
            reader, writer = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(
                target=_rank, args=(writer, Path(directory, "rendezvous"), rank, world_size, function, args)
            )
            forkserver.start(process)
            writer.close()
            pipes.append(reader)
            processes.append(process)
        try:
            results = _collect(pipes, time.monotonic() + RUN_PATIENCE)
        finally:
            for process in processes:
                process.join(PATIENCE)
                if process.is_alive():
                    process.kill()
                    process.join()
        codes = [process.exitcode if result is _DEAD else 0 for result, process in zip(results, processes, strict=True)]
    assert 1 not in codes, "a rank could not begin; its traceback is on standard error"
    return [codes[rank] if result is _DEAD else result for rank, result in enumerate(results)]


_DEAD = object()


def _collect(pipes: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"ranks {sorted(set(range(len(pipes))) - set(results))} gave no result in time")
        for pipe in ready:
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                results[rank] = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                results[rank] = _DEAD
    return [results[rank] for rank in range(len(pipes))]


def _rank(
    pipe: Connection, rendezvous: Path, rank: int, world_size: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist
    from trainingjob_trainer.checkpoint import checkpointer

    checkpointer.LAST_WAIT = PATIENCE  # what is under way when an attempt ends comes to its end, however slowly
    warnings.filterwarnings("error", module=r"torch\.distributed\.fsdp\.")  # of how our models are sharded
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    try:
        pipe.send(function(*args))
    except Exception as error:
        pipe.send(error)
    finally:
        pipe.close()
        if dist.is_initialized():
            dist.destroy_process_group()
