"""One attempt as a Ray Train run: one worker for each rank, in the order of the pods, so that rank 0 is on index 0.

Ray Train places, starts and watches the ranks. It does not hold training state: no `report()`, no checkpoints, no
failure handling of its own.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from .agent.pod import Pod
from .config import JobConfig
from .errors import Drained, Hang, TrainerError, WorkerLost
from .failures import of_attempt, of_rank, peer_gone
from .narration import Narrator
from .network import interface_of
from .ray_node import INCARNATION_LABEL, INDEX_LABEL, RANK_RESOURCE
from .ray_pods import Node, unheard
from .reporting import Reporter, ask
from .standstill import Stand, apart, hang
from .stop import Stop

if TYPE_CHECKING:
    from .checkpoint.attempt import Attempt

logger = logging.getLogger(__name__)

RENDEZVOUS_PORTS = range(29500, 29600)
SECONDARY_DELAY = 5.0  # seconds

# What of Ray Train the job uses, without what costs time and actors.
TRAIN_ENV = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def fit(pod: Pod, config: JobConfig, attempt: Attempt, nodes: Sequence[Node], report_url: str) -> dict[str, Any]:
    """Train until the run is finished or drained: rank 0's answer. Raises the `TrainerError` that ended the attempt.

    `nodes`: the pods that take part, by index.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from .ray_gang import GangTrainer

    gpus = all(node.gpus >= config.ranks_per_pod for node in nodes)
    places = [{INDEX_LABEL: str(node.index), INCARNATION_LABEL: str(node.incarnation)} for node in nodes]
    ranks = [place for place in places for _ in range(config.ranks_per_pod)]
    port = RENDEZVOUS_PORTS[attempt.number % len(RENDEZVOUS_PORTS)]
    trainer = GangTrainer(
        run_rank,
        train_loop_config={
            "config": config.wire(),
            "attempt": attempt,
            "rendezvous": f"tcp://{pod.ip}:{port}",
            "report_url": report_url,
            "pods": [node.index for node in nodes],
        },
        scaling_config=ScalingConfig(
            num_workers=len(ranks),
            use_gpu=gpus,
            resources_per_worker={RANK_RESOURCE: 1, **({"GPU": 1} if gpus else {})},
            label_selector=ranks,
        ),
        run_config=RunConfig(
            name=f"attempt-{attempt.number}",
            storage_path=str(pod.work / "ray-train"),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
    try:
        answer: dict[str, Any] = trainer.fit().return_value
    except Exception as error:
        stands = _stands(report_url, attempt.number)
        indexes = [node.index for node in nodes]
        raise (hang(stands, len(ranks), indexes) if stands else of_attempt(error)) from error
    return answer


def _stands(report_url: str, attempt: int) -> dict[int, Stand]:
    """Where the ranks of this attempt stand still, as they have told this pod's agent."""
    told = ask(report_url, "standing")
    standing = told["standing"] if told is not None and told["attempt"] == attempt else {}
    return {int(rank): Stand.model_validate(stand) for rank, stand in standing.items()}


class RankHooks:
    """A rank's surroundings, as the training loop sees them."""

    def __init__(self, reporter: Reporter, attempt: int, rank: int, pod: Pod, pods: Sequence[int] = ()) -> None:
        """pods: indexes of those that take part, if it is this rank that looks for them when nothing goes on."""
        self._reporter = reporter
        self._attempt = attempt
        self._rank = rank
        self._pod = pod
        self._pods = pods
        self._narrator = Narrator()

    def report(self, fields: Mapping[str, Any]) -> None:
        """Tell the head's agent, and the log."""
        for line in self._narrator.lines(fields):
            logger.info("%s", line)
        self._reporter.report({**fields, "attempt": self._attempt})

    def stop_requested(self) -> Stop:
        """If this pod was asked to stop, or the driver wants to take in pods that joined."""
        if self._pod.drain_flag.exists():
            return Stop.NOW
        return Stop.TO_RESIZE if self._pod.resize_flag.exists() else Stop.NO

    def stands(self, stand: Stand | None) -> None:
        """Tell the head's agent, where the driver finds it: Ray only tells it that the process is gone."""
        if stand is not None:
            stand = stand.model_copy(update={"unheard": unheard(self._pod, self._pods)})
        told = {str(self._rank): None if stand is None else stand.wire()}
        self._reporter.report({"attempt": self._attempt, "standing": told})

    def hung(self, error: Hang) -> NoReturn:
        """End; the driver says why when it has heard of all ranks."""
        self._reporter.close()
        os._exit(error.exit_code)


def run_rank(work: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank; runs in a Ray worker. Returns `{"drained": step}` or `{"result": ...}`, the same on all ranks.

    A drain is an answer, not an exception: at the first exception Ray Train kills the other ranks, which may still be
    committing.
    """
    from ray.train import get_context

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    pod = Pod.of(os.environ)
    rank, size = get_context().get_world_rank(), get_context().get_world_size()
    (pod.ranks / str(os.getpid())).touch()
    try:
        if (rank == 0) != (pod.index == 0 and get_context().get_local_rank() == 0):
            raise TrainerError(f"Rank {rank} was placed on pod {pod.index}.", "This is a defect; please report it.")
        with Reporter(work["report_url"], pod.token) as reporter:
            config = JobConfig.model_validate(work["config"])
            _join(work["rendezvous"], rank, size, pod, work["pods"], config.training.collective_timeout)
            pods = work["pods"] if get_context().get_local_rank() == 0 else ()
            return _train(config, work["attempt"], RankHooks(reporter, work["attempt"].number, rank, pod, pods))
    except Exception as error:
        logger.exception("Rank %d failed", rank)
        failure = of_rank(error, rank)
        if isinstance(failure, WorkerLost):
            time.sleep(SECONDARY_DELAY)  # the rank that made this one fail is heard first
        raise failure from None


def _train(config: JobConfig, attempt: Attempt, hooks: RankHooks) -> dict[str, Any]:
    from . import loop

    try:
        result = loop.train(config, attempt, hooks)
    except Drained as drained:
        return {"drained": drained.step}
    return {"result": result.wire()}


def _join(rendezvous: str, rank: int, size: int, pod: Pod, pods: Sequence[int], timeout: timedelta) -> None:
    """Form the process group: NCCL for CUDA tensors, gloo for the others. A world of one has no group.

    Raises `Hang` if it comes to nothing though all ranks are there.
    """
    import torch
    import torch.distributed as dist

    if size == 1:
        return
    interface = interface_of(pod.ip)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    begun = time.monotonic()
    try:
        dist.init_process_group(backend, rendezvous, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError as error:
        if peer_gone(error):
            raise
        raise apart(time.monotonic() - begun, pod.index, unheard(pod, pods)) from error
