"""An elastic job (`workers.minReplicas`): its gang follows the spec, and trains on those of its pods that are there."""

from __future__ import annotations

from trainingjob_operator.api.status import Member, TrainingJobStatus
from trainingjob_operator.core.situation import Situation


def resize(here: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` with as many workers as the spec wants now: new ones are licensed, those of the highest indexes no more.

    A member that is no part of the gang stays in the status, because its incarnation must not come again.
    """
    resolved, size = status.resolved, here.spec.workers.replicas
    if resolved is None or not here.spec.workers.elastic or resolved.replicas == size:
        return status
    joining = range(resolved.replicas, size) if status.stage == "Train" else range(0)
    kept = tuple(m for m in status.pods if m.role != "train" or m.index not in joining)
    new = tuple(Member(role="train", index=i, incarnation=here.next_incarnation(status, "train", i)) for i in joining)
    resolved = resolved.model_copy(update={"replicas": size, "world_size": size * resolved.ranks_per_pod})
    return status.model_copy(update={"resolved": resolved, "pods": (*kept, *new)})


def fewest(here: Situation, status: TrainingJobStatus) -> int:
    """Pods that the current stage cannot do without; the head is always one of them."""
    least = here.spec.workers.min_replicas if status.stage == "Train" else None
    return len(here.gang(status)) if least is None else least


def spare(here: Situation, status: TrainingJobStatus, member: Member) -> bool:
    """Whether the run trains without `member`, so that its loss interrupts nothing."""
    indexes = here.taking_part(status)
    return here.spec.workers.elastic and bool(indexes) and member.index not in indexes
