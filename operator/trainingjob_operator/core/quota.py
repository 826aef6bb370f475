"""What the API server tells of a ResourceQuota when it refuses a pod: whether waiting for others can help at all."""

from __future__ import annotations

import re
from dataclasses import replace

from trainingjob_trainer.config import QUANTITY, amount

from trainingjob_operator.core.obstacle import Obstacle, quota_too_small

# As the API server's admission of quotas words it: only what is exceeded, the same resources three times.
_EXCEEDED = re.compile(
    r"^Pod \S+ cannot be created: exceeded quota: (\S+), requested: (\S+), used: \S+, limited: ([^\s;]+)"
)
_USED = re.compile(r", used: [^\s,]+(,[^\s,]+)*")


def judged(refusal: Obstacle | None, pods: int) -> Obstacle | None:
    """`refusal`; if it is that of a pod, and so many like it, which must run together, never fit: then this."""
    found = _EXCEEDED.match(refusal.message) if refusal is not None and refusal.reason == "QuotaExceeded" else None
    if found is None:
        return refusal
    name, requested, limited = found[1], _amounts(found[2]), _amounts(found[3])
    for resource, each in requested.items():
        most = limited.get(resource)
        if most is not None and _number(each) * pods > _number(most):
            return quota_too_small(name, resource, each, most, pods)
    return refusal


def never_fits(obstacle: Obstacle | None) -> bool:
    """Whether it is a quota that is too small, however long the job waits."""
    return obstacle is not None and obstacle.reason == "QuotaTooSmall"


def alike(one: Obstacle | None, other: Obstacle) -> bool:
    """Whether both say the same, but for how much of a quota is used just now."""
    return one is not None and _settled(one) == _settled(other)


def _settled(obstacle: Obstacle) -> Obstacle:
    return replace(obstacle, message=_USED.sub("", obstacle.message))


def _amounts(text: str) -> dict[str, str]:
    """`a=1,b=2` by name, without amounts that are written in a way unknown here."""
    pairs = (part.partition("=") for part in text.rstrip(".").split(","))
    return {name: value for name, _, value in pairs if value == "0" or re.match(QUANTITY, value)}


def _number(quantity: str) -> float:
    return 0.0 if quantity == "0" else amount(quantity)
