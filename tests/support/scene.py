"""A namespace with an operator behind a fault proxy, and a level-triggered player for the pods that no node runs."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import played
from support.fault_proxy import FaultProxy, Rule
from support.kube_http import JOBS, PODS, STRATEGIC_PATCH, KubeHttp, Object, Refused
from support.runs import PATIENCE, Looks
from support.supervised import SupervisedOperator

EVERY = 0.05
"""Seconds between two looks at what is waited for."""

_numbers = itertools.count(1)
# What differs from run to run though nothing does.
# What depends on how fast things went, and not on what went wrong.
_VOLATILE = {"uid", "observedGeneration", "secondsToRecover", "trainingStartTime", "waited"}
_TIME = re.compile(r'"\d{4}-\d\d-\d\dT[0-9:.]+Z"')


class Scene:
    """One namespace. Its pods are played: see `Player`."""

    def __init__(self, api: KubeHttp, namespace: str, proxy: FaultProxy, operator: SupervisedOperator) -> None:
        self.api = api
        self.namespace = namespace
        self.proxy = proxy
        self.operator = operator
        self.jobs = JOBS.format(namespace)
        self.pods = PODS.format(namespace)

    async def apply(self, name: str = "gpt", **spec: Any) -> Object:
        """A new TrainingJob."""
        return await self.api.create(self.jobs, played.manifest(self.namespace, name, **spec))

    async def delete(self) -> None:
        """The job and its pods are no more."""
        await self.api.delete(f"{self.jobs}/gpt")

        async def gone() -> bool:
            return not await self.pod_names()

        await wait_until("the pods are gone", gone)

    async def job(self, name: str = "gpt") -> Object:
        return await self.api.get(f"{self.jobs}/{name}")

    async def wait(self, what: str, holds: Callable[[Object], Any], name: str = "gpt") -> Any:
        """The job's status, once `holds` of it."""
        last: Object = {}

        async def seen() -> bool:
            nonlocal last
            last = (await self.job(name))["status"]
            return bool(holds(last))

        await wait_until(lambda: f"{what}: {json.dumps(last)}\n{self._log()}", seen)
        return last

    async def wait_phase(self, *phases: str, name: str = "gpt") -> Object:
        status: Object = await self.wait(
            f"phase {' or '.join(phases)}", lambda status: status.get("phase") in phases, name
        )
        return status

    async def list(self, kind: str, job: str = "") -> list[Object]:
        """All objects of a core kind in the namespace, or those of one job."""
        selector = f"?labelSelector=trainingjob.io/job-name={job}" if job else ""
        items: list[Object] = (await self.api.get(f"/api/v1/namespaces/{self.namespace}/{kind}{selector}"))["items"]
        return items

    async def pod_names(self) -> set[str]:
        return {pod["metadata"]["name"] for pod in await self.list("pods")}

    async def pod_uids(self) -> dict[str, str]:
        """Of the pods that are not on their way out."""
        metas = (pod["metadata"] for pod in await self.list("pods"))
        return {meta["name"]: meta["uid"] for meta in metas if "deletionTimestamp" not in meta}

    async def wait_pods(self, *names: str) -> None:
        """All these pods are there."""

        async def there() -> bool:
            return set(names) <= await self.pod_names()

        await wait_until(lambda: f"pods {sorted(names)}\n{self._log()}", there)

    async def set_pod(self, name: str, status: Object) -> None:
        """A pod's status changes, as the kubelet would do it."""
        await self.api.patch(f"{self.pods}/{name}/status", {"status": status}, STRATEGIC_PATCH)

    async def end_state(self, name: str = "gpt") -> Object:
        """The job and all that belongs to it, without uids, hashes of them, and times: equal after equal runs."""
        job = await self.job(name)
        uid, run = job["metadata"]["uid"], job["status"].get("resolved") or {}
        children = {}
        for kind in ("pods", "services", "configmaps", "secrets"):
            for item in await self.list(kind, name):
                meta = item["metadata"]
                if "deletionTimestamp" in meta:
                    continue  # Its node is lost: Kubernetes' garbage collector takes its time.
                children[f"{kind}/{meta['name']}"] = {
                    "owners": [owner["uid"] for owner in meta.get("ownerReferences", [])],
                    "labels": meta.get("labels"),
                    "phase": item.get("status", {}).get("phase"),
                    "content": item.get("data") if kind == "configmaps" else item.get("spec"),
                }
        current = job["status"]["observedGeneration"] == job["metadata"]["generation"]
        state = {"current": current, "status": _steady(job["status"]), "children": children}
        text = json.dumps(state).replace(uid, "<uid>").replace(self.namespace, "<namespace>")
        if "configHash" in run:
            text = text.replace(run["configHash"], "<hash>")
        end: Object = json.loads(_TIME.sub('"<time>"', text))
        return end

    async def comes_to(self, end: Object) -> None:
        """The end state is this one, or will be soon."""

        async def there() -> bool:
            return await self.end_state() == end

        with contextlib.suppress(AssertionError):
            await wait_until("", there)
        found = await self.end_state()
        assert found == end, f"{difference(end, found)}\n{self._log()}"

    async def restart(self) -> None:
        """Kill the operator; the next one has listed all and watches."""
        before = len(self.proxy.seen)
        self.operator.kill()

        async def watched() -> bool:
            paths = " ".join(exchange.path for exchange in self.proxy.seen[before:] if exchange.verb == "watch")
            return "/pods" in paths and "/trainingjobs" in paths

        await wait_until(lambda: f"the operator watches again\n{self._log()}", watched)

    async def wait_running(self, *names: str) -> None:
        """These pods of the job (named without it) run."""

        async def so() -> bool:
            return {f"gpt-{name}" for name in names} <= {
                pod["metadata"]["name"] for pod in await self.list("pods") if pod["status"]["phase"] == "Running"
            }

        await wait_until(lambda: f"pods {names} run\n{self._log()}", so)

    async def rest(self) -> None:
        """Nothing is written for two seconds from now on, at last, in which API server and operator answer: who stands
        still has not come to rest. Events are written half a second apart."""
        looks = Looks(int(2.0 / EVERY))

        async def quiet() -> bool:
            await self.api.get(f"{self.pods}?limit=1")
            return looks.alike(len(self.proxy.writes()) if await self.operator.answers() else None)

        await wait_until("the operator comes to rest", quiet)

    async def events(self, *types: str) -> dict[str, int]:
        """How often each event of the types (none: of all) was told, by its reason and message."""
        told: dict[str, int] = defaultdict(int)
        for event in await self.list("events"):
            if event["source"].get("component") == "trainingjob-operator" and (not types or event["type"] in types):
                told[f"{event['reason']}: {event['message'].replace(self.namespace, '<namespace>')}"] += event["count"]
        return dict(told)

    def _log(self) -> str:
        return self.operator.log.read_text()[-3000:] if self.operator.log.exists() else ""


def difference(wanted: Object, found: Object) -> str:
    """The lines in which two objects differ."""
    texts = [json.dumps(state, indent=1, sort_keys=True).splitlines() for state in (wanted, found)]
    return "\n".join(difflib.unified_diff(*texts, "wanted", "found", lineterm="", n=4))


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(part) for key, part in value.items() if key not in _VOLATILE}
    return [_steady(part) for part in value] if isinstance(value, list) else value


@asynccontextmanager
async def scene(api: KubeHttp, directory: Path, *flags: str) -> AsyncIterator[Scene]:
    """A fresh namespace with a running operator of its own; flags are the operator's."""
    name = f"faults-{next(_numbers)}"
    home = directory / name
    home.mkdir()
    await make_namespace(api, name)
    async with FaultProxy(api, home) as proxy:
        async with operator_in(name, proxy, home / "operator.log", *flags) as operator:
            yield Scene(api, name, proxy, operator)


async def make_namespace(api: KubeHttp, name: str) -> None:
    """A namespace in which pods can be created: before it has its account, they are refused, and that would be told."""
    await api.create("/api/v1/namespaces", {"metadata": {"name": name}})

    async def there() -> bool:
        accounts = await api.get(f"/api/v1/namespaces/{name}/serviceaccounts?fieldSelector=metadata.name=default")
        return bool(accounts["items"])

    await wait_until(f"{name} has its account", there)


def operator_in(namespace: str, proxy: FaultProxy, log: Path, *flags: str) -> SupervisedOperator:
    """An operator behind a proxy. Alone, unless the flags say otherwise: a killed one's lease would outlive it."""
    return SupervisedOperator(proxy.kubeconfig, log, "--namespace", namespace, "--no-leader-elect", *flags)


async def wait_until(what: str | Callable[[], str], holds: Callable[[], Awaitable[Any]]) -> Any:
    """The first true value; an AssertionError that names `what` after the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while not (value := await holds()):
        if loop.time() > deadline:
            raise AssertionError(f"not within {PATIENCE:.0f} s: {what if isinstance(what, str) else what()}")
        await asyncio.sleep(EVERY)
    return value


class Player:
    """Plays the pods of a scene's job `gpt` from what is there, whoever made it, and keeps an eye on them.

    Data are prepared; worker 1's node is lost; when its successor runs, the head crashes; when the head's successor
    runs, it finishes. `waits` holds acts that are not played yet. `wrongs` lists what must never be: a second pod of
    one name, two pods that work for one index.
    """

    def __init__(self, scene: Scene, waits: Iterable[str] = ()) -> None:
        self.scene = scene
        self.waits = set(waits)
        self.wrongs: list[str] = []
        self.names: dict[str, set[str]] = defaultdict(set)
        self._pods: dict[str, Object] = {}
        self._done: set[tuple[str, str]] = set()
        self._addresses = itertools.count(1)

    async def __aenter__(self) -> Player:
        version = (await self.scene.api.get(self.scene.pods))["metadata"]["resourceVersion"]
        self._task = asyncio.create_task(self._play(version))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task.done():
            self._task.result()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _play(self, version: str) -> None:
        async with contextlib.aclosing(self.scene.api.watch(self.scene.pods, version)) as events:
            async for event in events:
                pod = event["object"]
                name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
                if event["type"] == "ADDED":
                    self._look_at(name, uid, pod)
                if event["type"] == "DELETED":
                    self._pods.pop(uid, None)
                else:
                    self._pods[uid] = pod
                await self._act()

    async def release(self) -> None:
        """Play what was held back."""
        self.waits.clear()
        await self._act()

    async def _act(self) -> None:
        for act, subject, what in self._due():
            if (act, subject) not in self._done and act not in self.waits:
                self._done.add((act, subject))
                await what()

    def _look_at(self, name: str, uid: str, new: Object) -> None:
        self.names[name].add(uid)
        if len(self.names[name]) > 1:
            self.wrongs.append(f"{name} was created {len(self.names[name])} times")
        place = _place(new)
        for other in self._pods.values():
            if _place(other) == place and _works(other):
                self.wrongs.append(f"{name} was created while {other['metadata']['name']} works")

    def _due(self) -> list[tuple[str, str, Callable[[], Awaitable[None]]]]:
        """What the pods would do now: (act, the pod's name, how)."""
        pods = {_short(pod): pod for pod in self._pods.values()}
        busy = {name for name, pod in pods.items() if pod["status"].get("phase") == "Running" and _works(pod)}
        acts: list[tuple[str, str, Callable[[], Awaitable[None]]]] = []
        for name, pod in pods.items():
            if pod["status"]["phase"] == "Pending" and "deletionTimestamp" not in pod["metadata"]:
                acts.append(("run", name, lambda name=name: self._set(name, played.running(self._address()))))  # type: ignore[misc]
            if name in busy and name.startswith("prepare-0"):
                acts.append(("end", name, lambda name=name: self._set(name, played.ended(outcome="Train"))))  # type: ignore[misc]
        if {"train-0-1", "train-1-1"} <= busy:
            acts.append(("lose", "train-1-1", self._lose_the_node))
        if {"train-0-1", "train-1-2"} <= busy:
            crash = played.ended(20, **{"class": "Internal", "cause": "it broke", "step": 7})
            acts.append(("crash", "train-0-1", lambda: self._set("train-0-1", crash)))
        if {"train-0-2", "train-1-2"} <= busy:
            result = {"modelUri": "s3://models/gpt/model/a2", "step": 100}
            finished = played.ended(outcome="Finished", result=result)
            acts.append(("finish", "train-0-2", lambda: self._set("train-0-2", finished)))
        return acts

    async def _lose_the_node(self) -> None:
        path = f"{self.scene.pods}/gpt-train-1-1"
        # Kubernetes' collector force-deletes pods 40 s after it first missed their node. Of a node that another scene
        # has lost before, that may be at once, too soon for an operator that sees LISTs alone to be told why.
        node = f"lost-in-{self.scene.namespace}"
        binding = {"target": {"kind": "Node", "name": node}, "metadata": {"name": "gpt-train-1-1"}}
        await self.scene.api.create(f"{path}/binding", {"apiVersion": "v1", "kind": "Binding", **binding})
        # As the collector says.
        await self._set("train-1-1", played.disrupted("DeletionByPodGC"))
        with contextlib.suppress(Refused):
            await self.scene.api.delete(path)

    async def _set(self, name: str, status: Object) -> None:
        with contextlib.suppress(Refused):  # it is gone meanwhile
            await self.scene.set_pod(f"gpt-{name}", status)

    def _address(self) -> str:
        return f"10.99.0.{next(self._addresses)}"


@dataclass
class Reference:
    """The run of `gpt` when nothing goes wrong."""

    writes: list[str]
    watched: dict[str, int]
    end: Object
    events: dict[str, int]  # warnings

    @classmethod
    async def of(cls, stage: Scene) -> Reference:
        async with Player(stage) as player:
            await stage.apply()
            await stage.wait_phase("Succeeded")
            await stage.rest()
            assert player.wrongs == []
        writes = [str(write) for write in stage.proxy.applied]
        return cls(writes, dict(stage.proxy.events), await stage.end_state(), await stage.events("Warning"))

    async def is_reached(self, stage: Scene, *rules: Rule) -> None:
        """Apply the job, let the rules strike, play its pods: the end is the same, with nothing wrong on the way."""
        stage.proxy.rules += rules
        async with Player(stage) as player:
            await stage.apply()
            await self.is_the_end(stage, player)

    async def is_the_end(self, stage: Scene, player: Player) -> None:
        """The run that is on ends like this one."""
        await stage.wait_phase("Succeeded")
        await stage.comes_to(self.end)
        assert player.wrongs == []
        told = await stage.events("Warning")  # which phases are seen is a matter of speed
        assert told == {event: count for event, count in self.events.items() if event in told}


def _short(pod: Object) -> str:
    name: str = pod["metadata"]["name"]
    return name.removeprefix("gpt-")


def _place(pod: Object) -> str:
    """Role and index."""
    return re.sub(r"-\d+$", "", pod["metadata"]["name"])


def _works(pod: Object) -> bool:
    """Whether the pod stands for its index: not over, not on its way out, in the Service."""
    labels = pod["metadata"]["labels"]
    over = pod["status"].get("phase") in ("Succeeded", "Failed") or "deletionTimestamp" in pod["metadata"]
    return not over and labels.get("trainingjob.io/member") == "true"
