"""Where a place in a quota becomes free, the oldest job that waits for one is woken."""

from typing import Any

from trainingjob_operator.core.cache import Cache, Key
from trainingjob_operator.core.obstacle import Obstacle
from trainingjob_operator.core.shortage import Shortage

QUOTA = Obstacle("QuotaExceeded", "Pod p cannot be created: exceeded quota: team; it waits.", room=True)
POLICY = Obstacle("CreateRefused", "Pod p cannot be created: no; have the policy changed.", stalled=True)


class World:
    """Jobs that wait, the first of them the longest, and who was woken."""

    def __init__(self, *names: str) -> None:
        self.cache = Cache()
        self.woken: list[str] = []
        self.shortage = Shortage(self.cache, lambda key: self.woken.append(key.name))
        for age, name in enumerate(names):
            self.cache.put_job(job(name, age))
            self.shortage.refused(Key("team", name), QUOTA)


def job(name: str, age: int = 0, reason: str = "QuotaExceeded", version: int = 1) -> dict[str, Any]:
    created = f"2030-01-01T00:00:{age:02}Z"
    meta = {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": str(version)}
    said = {"type": "Reconciling", "status": "True", "reason": reason, "message": "no", "lastTransitionTime": created}
    return {"metadata": {**meta, "creationTimestamp": created}, "spec": {}, "status": {"conditions": [said]}}


def test_the_oldest_is_woken_and_then_the_next_one() -> None:
    world = World("b", "a", "c")
    world.shortage.freed("elsewhere")
    assert world.woken == []
    world.shortage.freed("team")
    assert world.woken == ["b"]
    world.shortage.refused(Key("team", "b"), QUOTA)
    assert world.woken == ["b"], "there was not enough for it"
    world.shortage.over(Key("team", "b"))
    assert world.woken == ["b", "a"], "there may be more"
    world.shortage.over(Key("team", "b"))
    assert world.woken == ["b", "a"], "it had nothing to wait for"


def test_nobody_is_woken_in_vain() -> None:
    world = World("gone", "deleted", "too-large", "waits")
    world.shortage.forget(Key("team", "gone"))
    world.cache.remove_job(job("deleted", 1))
    world.cache.put_job(job("too-large", 2, "QuotaTooSmall", version=2))
    world.cache.put_job(job("refused", 0))
    world.shortage.refused(Key("team", "refused"), POLICY)
    world.shortage.freed("team")
    assert world.woken == ["waits"]
