"""Train a job by hand, without Ray and Kubernetes, on one machine or under torchrun.

    python -m trainingjob_trainer.train job.yaml
    torchrun --nproc-per-node 2 -m trainingjob_trainer.train job.yaml

The file holds a TrainingJob, or its spec alone. The same run directory continues where it stands; SIGTERM and Ctrl-C
commit a checkpoint first. Exit codes are those of a pod (docs/contracts.md §3); torchrun ends with codes of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from pydantic import ValidationError

from trainingjob_trainer.config import JobConfig, TrainerSpec, mistakes
from trainingjob_trainer.errors import Drained, Fenced, Hang, TrainerError, UserError
from trainingjob_trainer.failures import of_rank
from trainingjob_trainer.narration import Narrator
from trainingjob_trainer.records import Incident
from trainingjob_trainer.standstill import Stand
from trainingjob_trainer.stop import Stop

if TYPE_CHECKING:
    from trainingjob_trainer.checkpoint.attempt import Attempt
    from trainingjob_trainer.storage import Store

OPERATORS_FIELDS = ("image", "workers", "runPolicy")  # of the spec; they say how to run it in a cluster

CLOCK = "%H:%M:%S"


class Console:
    """Hooks that tell progress on stderr and take SIGTERM and Ctrl-C for the request to stop."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._narrator = Narrator()
        self._trains = False
        self.step: int | None = None  # the last one that was reported
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_stop)

    def report(self, fields: Mapping[str, Any]) -> None:
        """Write what is new."""
        self.step = (fields.get("progress") or {}).get("step", self.step)
        for line in self._narrator.lines(fields):
            say(line)

    def training_begins(self) -> None:
        """From now on a request to stop is met between two steps; before, there is nothing to commit."""
        self._trains = True

    def stop_requested(self) -> Stop:
        """At once after such a signal."""
        return Stop.NOW if self._stop.is_set() else Stop.NO

    def _asked_to_stop(self, *_: object) -> None:
        self._stop.set()
        if not self._trains:
            raise Drained("Asked to stop before training began.")

    def stands(self, stand: Stand | None) -> None:
        """Each rank says it for itself, in the end."""

    def hung(self, error: Hang) -> NoReturn:
        """Say so and end."""
        tell(error)
        os._exit(error.exit_code)


def say(text: str) -> None:
    """One line on stderr, with the time."""
    sys.stderr.write(f"{time.strftime(CLOCK)} {text}\n")
    sys.stderr.flush()


def tell(error: TrainerError, raised: Exception | None = None) -> None:
    """What ends the program; of a defect all that is known. raised: what `error` was made of, if it is another."""
    if type(error) is TrainerError:
        traceback.print_exception(raised or error)
    next_step = "The same command goes on from there." if isinstance(error, Drained) else error.next_step
    say(f"{error.error_class}: {error.cause}" + (f"\n         {next_step}" if next_step else ""))


def answer(result: Mapping[str, Any]) -> None:
    """The result on stdout, of its metrics those that are one number: a confusion matrix fills many screens."""
    evaluation = result["evaluation"]
    numbers = {name: value for name, value in evaluation["metrics"].items() if not isinstance(value, list)}
    shown = {**result, "evaluation": {**evaluation, "metrics": numbers}}
    sys.stdout.write(json.dumps(shown, indent=1) + "\n")


def read_config(path: Path, ranks: int, machines: int = 1) -> JobConfig:
    """The job of a YAML or JSON file, for so many ranks on each of so many machines. Raises `UserError` that names what
    is wrong in it."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}", "Give the path of a YAML file.") from error
    spec = document.get("spec", document) if isinstance(document, dict) else None
    if not isinstance(spec, dict):
        raise UserError(f"{path} holds no job.", "Give a TrainingJob, or its spec.")
    metadata, policy = document.get("metadata") or {}, spec.get("runPolicy") or {}
    for name, value in (("metadata", metadata), ("runPolicy", policy)):
        if not isinstance(value, dict):
            raise UserError(f"{path} is not a valid job: {name} is {value!r}, not a mapping.", "Correct this field.")
    facts = {
        "name": metadata.get("name", path.stem),
        "namespace": metadata.get("namespace", "default"),
        "ranksPerPod": ranks,
        "fewestPods": machines,
        "maxRestarts": 0,
        "onExistingRun": policy.get("onExistingRun", "Resume"),
    }
    own = {name: value for name, value in spec.items() if name not in OPERATORS_FIELDS}
    try:
        TrainerSpec.model_validate(own)  # which has no fields for such facts
        return JobConfig.model_validate({**own, **facts})
    except ValidationError as error:
        raise UserError(
            f"{path} is not a valid job: {mistakes(error, TrainerSpec)}.", "Correct these fields."
        ) from error


def begin(config: JobConfig, store: Store, console: Console) -> Attempt | None:
    """What comes before training, on rank 0: check the job, prepare missing data, take an attempt's number.

    None if the run is finished already.
    """
    from trainingjob_trainer.checkpoint.attempt import Attempt
    from trainingjob_trainer.checkpoint.commits import latest
    from trainingjob_trainer.prepare.check import check

    found = check(config, store)
    say(found.message)
    if found.result is not None:
        answer(found.result)
        return None
    if found.outcome == "PrepareData":
        from trainingjob_trainer.prepare.local import prepare_data

        manifest = prepare_data(config, store, console.report)
        say(f"The data is ready: {manifest.summary(config.training.sequence_length)}.")
    commit = latest(store)
    return Attempt.take(store, commit.step if commit else 0)


def join(rank: int, world_size: int, timeout: timedelta) -> None:
    """Form the process group that torchrun described in the environment. A world of one has none."""
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if world_size == 1:
        return
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world_size):  # all on this machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout)


def run(path: Path, rank: int, world_size: int) -> None:
    """Train the job of a file as one rank. Raises a `TrainerError`."""
    from trainingjob_trainer.storage import open_store

    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    config = read_config(path, here, world_size // here)
    console = Console()
    store = open_store(config.output_uri, config.storage)
    attempt = begin(config, store, console) if rank == 0 else None
    if attempt is None and world_size == 1:
        return
    join(rank, world_size, config.training.collective_timeout)

    from trainingjob_trainer.loop import train
    from trainingjob_trainer.parallel import World

    attempt = World.join().from_first(attempt)
    if attempt is None:
        return
    console.training_begins()
    try:
        result = train(config, attempt, console)
        if rank == 0:
            answer(result.save(store).wire())
    except Exception as error:
        failure = of_rank(error, rank)
        if rank == 0 and not isinstance(failure, Drained | Fenced):
            step = console.step if failure.step is None else failure.step
            Incident.of(failure, attempt.number, step).save(store)
        raise failure from error


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainingjob_trainer.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", type=Path, help="YAML file with a TrainingJob or its spec")
    job: Path = parser.parse_args(arguments).job
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt=CLOCK)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        run(job, rank, world_size)
    except Exception as error:
        failure = of_rank(error, rank)
        if rank == 0 or not isinstance(failure, Drained | Fenced):  # of which all ranks have the same to tell
            tell(failure, error)
        return failure.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
