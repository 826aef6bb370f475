"""Every field of the spec, changed: refused with its name, or carried out as if the job had always said so."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support import played
from support.bad_specs import merged
from support.kube_http import KubeHttp, Object, Refused
from support.scene import Scene, difference, make_namespace, scene, wait_until
from support.schema_values import Path as Field
from support.schema_values import change, drawn, invalid, leaves, valid
from support.tally import Tally
from trainingjob_operator.api.crd import schema_of
from trainingjob_operator.api.spec import TrainingJobSpec
from trainingjob_operator.core.obstacle import REASONS

SPEC = schema_of(TrainingJobSpec, defaults=True)
FIELDS = dict(leaves(SPEC))
OFF = {"runPolicy": {"suspend": True}}
CUSTOM = {"task": {"kind": "custom", "custom": {"command": ["true"]}}, "data": None, "model": None, "training": None}
REST = ("Stalled", "Suspended", "Failed")
AT_ONCE = 6
_numbers = itertools.count(1)


async def test_a_value_that_the_schema_forbids_is_refused_by_the_name_of_its_field(
    api: KubeHttp, directory: Path, tally: Tally
) -> None:
    async with scene(api, directory) as stage:
        await stage.apply(**OFF)

        async def run(field: Field) -> None:
            value = drawn(invalid(FIELDS[field]))[-1]
            with pytest.raises(Refused, match=f"spec.*{field[-1]}") as refusal:
                await api.patch(f"{stage.jobs}/gpt", {"spec": change(field, value)})
            assert refusal.value.code == 422, value

        await tally.each(FIELDS, run, at_once=AT_ONCE)


@pytest.mark.parametrize(
    ("step", "examples"),
    [pytest.param(6, 1, id="some fields"), pytest.param(1, 4, id="all fields", marks=pytest.mark.slow)],
)
async def test_a_changed_job_equals_one_that_was_applied_so(
    api: KubeHttp, directory: Path, tally: Tally, step: int, examples: int
) -> None:
    """Changed while it is suspended, then set free. What a rule refuses as a change is tried as a new job."""
    became: Counter[str] = Counter()

    async with two_scenes(api, directory) as (changed, fresh):

        async def run(variant: tuple[Field, Any]) -> None:
            field, value = variant
            name, before, spec = f"gpt-{next(_numbers)}", base(field), change(field, value)
            await create(changed, name, merged(before, OFF))
            if not await accepted(api.patch(f"{changed.jobs}/{name}", {"spec": spec})):
                became["refused as a change"] += 1
                await tried(fresh, name, merged(before, spec), became)
                return
            if field[-1] != "suspend":
                await api.patch(f"{changed.jobs}/{name}", {"spec": {"runPolicy": {"suspend": False}}})
            job = await changed.job(name)
            await create(fresh, name, job["spec"])
            await equal(changed, fresh, name)
            became["accepted"] += 1

        fields = list(FIELDS)[::step]
        variants = [(field, value) for field in fields for value in drawn(valid(FIELDS[field]), 8)[-examples:]]
        await tally.each(variants, run, at_once=AT_ONCE)
        assert changed.operator.ends == 0
        assert "Traceback" not in changed.operator.log.read_text()
        assert became["accepted"] > len(variants) / 4, became


def base(field: Field) -> Object:
    """A spec in which the field means something."""
    spec: Object = played.manifest("any")["spec"]
    return merged(spec, CUSTOM) if field[:2] == ("task", "custom") else spec


@asynccontextmanager
async def two_scenes(api: KubeHttp, directory: Path) -> AsyncIterator[tuple[Scene, Scene]]:
    """Two namespaces of one operator."""
    other = f"faults-fresh-{next(_numbers)}"
    await make_namespace(api, other)
    async with scene(api, directory, "--namespace", other) as stage:
        yield stage, Scene(api, other, stage.proxy, stage.operator)


async def accepted(request: Awaitable[Any]) -> bool:
    """Whether the API server takes it; if not, it names a field."""
    try:
        await request
    except Refused as refusal:
        if "spec" not in refusal.message:
            raise
        return False
    return True


async def create(stage: Scene, name: str, spec: Object) -> None:
    manifest = played.manifest(stage.namespace, name)
    await stage.api.create(stage.jobs, {**manifest, "spec": spec})


async def tried(stage: Scene, name: str, spec: Object, became: Counter[str]) -> None:
    """As a new job: refused with the name of a field, or it begins, or says why not."""
    if not await accepted(create(stage, name, spec)):
        became["refused as a new job"] += 1
        return
    await wait_until(f"{name} begins, or says why not: {spec}", lambda: settled(stage, name))


async def equal(changed: Scene, fresh: Scene, name: str) -> None:
    async def so() -> bool:
        return (
            await settled(changed, name)
            and await settled(fresh, name)
            and await changed.end_state(name) == await fresh.end_state(name)
        )

    def why() -> str:
        return f"{name} is the same however it came about"

    try:
        await wait_until(why, so)
    except AssertionError as late:
        states = await fresh.end_state(name), await changed.end_state(name)
        raise AssertionError(f"{late}\n{difference(*states)}") from None


async def settled(stage: Scene, name: str) -> bool:
    """The operator has seen the newest spec, and the job has a pod, or says why it has none."""
    job = await stage.job(name)
    status = job["status"]
    if status["observedGeneration"] != job["metadata"]["generation"]:
        return False
    waits = [
        condition
        for condition in status["conditions"]
        if condition["status"] == "True" and (condition["type"] in REST or condition["reason"] in REASONS)
    ]
    return bool(waits and status["message"]) or bool(await stage.list("pods", name))
