"""The program of a stage, on index 0: check the job, prepare its data, or train until there is a result.

It leaves its outcome in a file for the agent, which is this process's parent.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from .agent.pod import Pod
from .checkpoint.attempt import Attempt
from .checkpoint.commits import latest
from .config import JobConfig
from .errors import Drained, Fenced, Hang, Resized, StorageError, TrainerError, WorkerLost
from .failures import of_rank
from .outcome import Outcome
from .ray_cluster import RayCluster
from .ray_node import prepare_slots
from .ray_pods import Gang, Node, wait_for, watch_for_joiners
from .ray_train import TRAIN_ENV, fit
from .records import Incident, RunResult, load_result
from .reporting import Reporter, ask
from .storage import Store, open_store

logger = logging.getLogger(__name__)

MAX_INCIDENTS = 10  # of the newest ones, in reports


def check(pod: Pod, config: JobConfig, reporter: Reporter) -> Outcome:
    """Stage Check: everything that can be found wrong before a GPU is asked for, without Ray."""
    from .prepare.check import check as check_job

    reporter.report({"state": "Checking", "message": "Checking configuration, storage and data."})
    found = check_job(config, open_store(config.output_uri, config.storage))
    logger.info("%s", found.message)
    if found.warning:
        logger.warning("%s", found.warning)
        reporter.report({"message": found.warning})
    return Outcome(outcome=found.outcome, result=found.result, step=(found.result or {}).get("step"))


def prepare(pod: Pod, config: JobConfig, reporter: Reporter) -> Outcome:
    """Stage PrepareData: Ray Data on all pods of the stage turns raw data into shards and a manifest."""
    cluster = RayCluster(pod, ranks=0, cpus=prepare_slots())
    from .prepare.ray_data import prepare_data  # while Ray's head starts

    cluster.connect()
    wait_for(_whole(pod), pod, lambda message: reporter.report({"state": "Starting", "message": message}))
    manifest = prepare_data(config, open_store(config.output_uri, config.storage), reporter.report)
    ready = f"The data is ready: {manifest.summary(config.training.sequence_length)}."
    logger.info("%s", ready)
    reporter.report({"message": ready})
    return Outcome(outcome="Train")


def train(pod: Pod, config: JobConfig, reporter: Reporter) -> Outcome:
    """Stage Train: attempts until one finishes the run. A stored result of the same plan is the answer at once."""
    store = open_store(config.output_uri, config.storage)
    result = load_result(store)
    if result is not None and result.plan_hash == config.plan_hash():
        return _finished(result)
    os.environ.update(TRAIN_ENV)
    cluster = RayCluster(pod, config.ranks_per_pod, cpus=0)
    import ray.train  # noqa: F401  while Ray's head starts

    cluster.connect()
    return _finished(Training(pod, config, reporter, store).run().save(store))


class Training:
    """Attempt after attempt in the same pods. Failures without a new checkpoint in between are bounded.

    An attempt has the same ranks from its first step to its last. An elastic run begins the next one on as many pods as
    there are, and ends one between two steps when more have joined.
    """

    def __init__(self, pod: Pod, config: JobConfig, reporter: Reporter, store: Store) -> None:
        self.pod, self.config, self.reporter, self.store = pod, config, reporter, store
        self.incidents: list[Incident] = []
        self._failures = 0
        self._committed_at_failure = -1
        self._gang = _whole(pod, config.min_replicas)
        self._attempt: Attempt | None = None

    def run(self) -> RunResult:
        """Train to the end. Raises `Drained`, or the failure that ends the run here."""
        while True:
            nodes = wait_for(self._gang, self.pod, lambda message: self._report("Starting", message), self._check_fence)
            attempt = self._begin(nodes)
            try:
                answer = self._fit(attempt, nodes)
            except TrainerError as failure:
                self._recover(failure, attempt)
                continue
            if "result" in answer:
                return RunResult.model_validate(answer["result"])
            step = answer["drained"]
            if self.pod.drain_flag.exists():
                raise Drained(f"The pod was asked to stop; step {step} is committed.", step=step)
            self._go_on(attempt, nodes, step)

    def _begin(self, nodes: Sequence[Node]) -> Attempt:
        """Take the next attempt, whose pods are `nodes`."""
        committed = self._committed()
        attempt = self._attempt.next(committed) if self._attempt else Attempt.take(self.store, committed)
        self._attempt = attempt
        indexes = [node.index for node in nodes]
        logger.info("Attempt %d starts on pods %s", attempt.number, indexes)
        news = {"attempt": attempt.number, "pods": indexes, "state": "Starting", "message": "The ranks start."}
        self.reporter.report(news)
        if self._elastic:
            self._gang = Gang(frozenset(indexes), self._gang.fewest)
        return attempt

    def _check_fence(self) -> None:
        """Raise `Fenced` if another driver goes on with the run: this one was cut off."""
        if self._attempt is not None:
            self._attempt.check_fence()

    def _fit(self, attempt: Attempt, nodes: Sequence[Node]) -> dict[str, Any]:
        with watch_for_joiners(self.pod, nodes) if self._elastic else nullcontext():
            return fit(self.pod, self.config, attempt, nodes, os.environ["TRAININGJOB_REPORT_URL"])

    def _go_on(self, attempt: Attempt, nodes: Sequence[Node], step: int) -> None:
        """An attempt ended in order, because pods joined or another pod was asked to stop."""
        if not self._elastic:
            self._report("Starting", "A pod of the gang was asked to stop; waiting for its successor.")
            return
        change: TrainerError = Drained(f"a pod of {len(nodes)} was asked to stop; the others go on", step=step)
        if self.pod.resize_flag.exists():
            change = Resized(f"pods joined the {len(nodes)} that trained", step=step)
        self._tell(Incident.of(change, attempt.number, step))
        self._gang = replace(self._gang, patience=0.0)
        self._report("Starting", f"Step {step} is committed: {change.cause}.")

    @property
    def _elastic(self) -> bool:
        return self.config.min_replicas is not None

    def _recover(self, failure: TrainerError, attempt: Attempt) -> None:
        """Write the incident down; raises it if another attempt cannot cure it or too many did not."""
        if isinstance(failure, Fenced):
            raise failure
        incident = Incident.of(failure, attempt.number, _step_reached())
        self._tell(incident)
        logger.error("Attempt %d failed: %s: %s", attempt.number, failure.error_class, failure.cause)
        committed = self._committed()
        self._failures = 1 if committed > self._committed_at_failure else self._failures + 1
        self._committed_at_failure = committed
        if not _is_curable(failure) or self._failures > self.config.max_restarts:
            failure.step = incident.step if failure.step is None else failure.step
            raise failure
        cause = failure.cause.partition("\n")[0]
        self._report("Starting", f"Attempt {attempt.number} failed ({failure.error_class}: {cause}); starting again.")

    def _tell(self, incident: Incident) -> None:
        """Write down how an attempt ended, and report it."""
        incident.save(self.store)
        self.incidents = [*self.incidents, incident][-MAX_INCIDENTS:]
        self.reporter.report({"incidents": [each.model_dump(mode="json", by_alias=True) for each in self.incidents]})

    def _committed(self) -> int:
        commit = latest(self.store)
        return commit.step if commit else 0

    def _report(self, state: str, message: str) -> None:
        self.reporter.report({"state": state, "message": message[:500]})


def _whole(pod: Pod, fewest: int | None = None) -> Gang:
    """All pods of the stage, as many as there were to be when this one was made; `fewest` if not all must be there."""
    return Gang(frozenset(range(pod.replicas)), fewest or pod.replicas)


def _is_curable(failure: TrainerError) -> bool:
    return isinstance(failure, WorkerLost | StorageError | Hang) or type(failure) is TrainerError


def _finished(result: RunResult) -> Outcome:
    return Outcome(outcome="Finished", step=result.step, attempt=result.attempt, result=result.wire())


def _step_reached() -> int | None:
    """The last step that the ranks reported to this pod's agent."""
    told = ask(os.environ["TRAININGJOB_REPORT_URL"], "progress") or {}
    step: int | None = (told.get("progress") or {}).get("step")
    return step


STAGES: dict[str, Callable[[Pod, JobConfig, Reporter], Outcome]] = {
    "check": check,
    "prepare-data": prepare,
    "train": train,
}


def main() -> int:
    """Entry point: `python -m trainingjob_trainer.driver check|prepare-data|train`, started by the agent."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    pod = Pod.of(os.environ)
    with Reporter(os.environ["TRAININGJOB_REPORT_URL"], pod.token) as reporter:
        try:
            outcome = STAGES[sys.argv[1]](pod, pod.config(), reporter)
        except Exception as error:
            failure = error if isinstance(error, TrainerError) else of_rank(error, 0)
            if isinstance(failure, Drained):
                logger.info("%s", failure.cause)
            else:
                logger.exception("The stage failed")
            outcome = Outcome.failure(failure)
    temporary = pod.outcome_path.with_suffix(".tmp")
    temporary.write_text(outcome.model_dump_json(by_alias=True))
    temporary.replace(pod.outcome_path)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
