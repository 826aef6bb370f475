"""Leader election, in virtual time: when a lease is taken, kept, lost and released, and that two never lead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory_api import MemoryApi
from support.virtual_time import in_virtual_time
from trainingjob_operator.kube.api import LEASES, Manifest, Resource, Unreachable
from trainingjob_operator.kube.lease import (
    LEASE_SECONDS,
    LOOK_SECONDS,
    RENEW_DEADLINE_SECONDS,
    REQUEST_TIMEOUT_SECONDS,
    RETRY_SECONDS,
    Candidate,
    LeaderElection,
)

NAME = "operator"
SOON = 0.5


def now() -> float:
    return asyncio.get_running_loop().time()


class Lost(Exception):
    """Stands for the end of the process."""


class Link(MemoryApi):
    """One candidate's way to the API server: requests take `delay` seconds there, and as long back."""

    def __init__(self, server: MemoryApi) -> None:
        super().__init__()
        self.server = server
        self.delay = 0.01
        self.cut = False
        """Requests do not arrive."""
        self.deaf = False
        """Requests are carried out, their answers are lost."""
        self._sent: set[asyncio.Task[Manifest]] = set()

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest:
        return await self._send(lambda: self.server.get(resource, namespace, name))

    async def create(self, resource: Resource, namespace: str, manifest: Manifest) -> Manifest:
        return await self._send(lambda: self.server.create(resource, namespace, manifest))

    async def replace(self, resource: Resource, namespace: str, name: str, manifest: Manifest) -> Manifest:
        return await self._send(lambda: self.server.replace(resource, namespace, name, manifest))

    async def _send(self, request: Callable[[], Coroutine[Any, Any, Manifest]]) -> Manifest:
        sent = asyncio.create_task(self._carry(request))
        self._sent.add(sent)  # It goes on when the caller no longer waits.
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                return await asyncio.shield(sent)
        except TimeoutError:
            raise Unreachable(0, "Unreachable", "no answer in time") from None

    async def _carry(self, request: Callable[[], Coroutine[Any, Any, Manifest]]) -> Manifest:
        await asyncio.sleep(self.delay)
        if self.cut:
            await asyncio.sleep(3600)
        try:
            return await request()
        finally:
            await asyncio.sleep(3600 if self.deaf else self.delay)


class Process:
    """One operator as far as its lease goes."""

    def __init__(self, server: MemoryApi, name: str) -> None:
        self.name = name
        self.link = Link(server)
        self.election = LeaderElection(self.link, "team", NAME, name, lost=self._lost)
        self.since: float | None = None
        """When it began to lead."""
        self.end = ""
        """Why it ended."""
        self.task = asyncio.create_task(self._run())

    def may_write(self) -> bool:
        """What the guard in front of every write says."""
        try:
            self.election.check()
        except (Lost, RuntimeError):
            return False
        return True

    async def terminate(self) -> None:
        """SIGTERM."""
        self.task.cancel()
        await asyncio.wait([self.task])

    async def kill(self) -> None:
        """SIGKILL: nothing of it reaches the server any more."""
        self.link.cut = True
        await self.terminate()

    async def _run(self) -> None:
        try:
            async with self.election.leading():
                self.since = now()
                await asyncio.sleep(100_000)
        except* Lost:
            self.since = None

    def _lost(self, reason: str) -> NoReturn:
        self.end = self.end or reason
        self.link.cut = True
        raise Lost


@dataclass
class World:
    """A server and the processes at it."""

    server: MemoryApi

    def start(self, name: str) -> Process:
        return Process(self.server, name)

    async def leader(self, name: str) -> Process:
        """A process that leads."""
        process = self.start(name)
        await asyncio.sleep(SOON)
        assert process.since is not None
        return process

    def lease(self) -> Manifest:
        return self.server.objects[("leases", "team", NAME)]

    def edit(self, **changes: Any) -> None:
        """Somebody else changes the lease."""
        self.server.put(LEASES, {**self.lease(), **changes})


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 100 s")


def scene(play: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that is played in virtual time."""

    def test() -> None:
        in_virtual_time(play(World(MemoryApi())))

    test.__name__ = play.__name__
    return test


@scene
async def test_a_free_lease_is_taken_at_once(world: World) -> None:
    process = world.start("a")
    await asyncio.sleep(SOON)
    assert process.since is not None
    assert process.since < 0.1
    assert process.may_write()
    spec = world.lease()["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("a", LEASE_SECONDS, 0)


@scene
async def test_a_released_lease_is_taken_at_the_next_look(world: World) -> None:
    leader = await world.leader("a")
    standby = world.start("b")
    await asyncio.sleep(60)
    assert standby.since is None
    told = now()
    await leader.terminate()
    assert world.lease()["spec"]["holderIdentity"] == ""
    await asyncio.sleep(LOOK_SECONDS + SOON)
    assert standby.since is not None
    assert standby.since - told <= LOOK_SECONDS + 0.1
    assert world.lease()["spec"]["leaseTransitions"] == 1


@scene
async def test_after_its_release_nothing_may_be_written(world: World) -> None:
    leader = await world.leader("a")
    await leader.terminate()
    assert not leader.may_write()


@scene
async def test_a_lease_is_released_although_the_renewal_was_cut_off(world: World) -> None:
    leader = await world.leader("a")
    leader.link.delay = 0.2
    version = world.lease()["metadata"]["resourceVersion"]
    await until(lambda: world.lease()["metadata"]["resourceVersion"] != version)
    await leader.terminate()  # The renewal was carried out, its answer is on the way.
    assert world.lease()["spec"]["holderIdentity"] == ""


@pytest.mark.parametrize("silence", ["cut", "deaf"])
def test_a_release_that_has_no_answer_is_tried_again(silence: str) -> None:
    async def play(world: World) -> None:
        leader = await world.leader("a")
        standby = world.start("b")
        await asyncio.sleep(20)
        setattr(leader.link, silence, True)
        told = now()
        ending = asyncio.create_task(leader.terminate())
        await asyncio.sleep(REQUEST_TIMEOUT_SECONDS + SOON)
        setattr(leader.link, silence, False)
        await ending
        assert world.lease()["spec"]["holderIdentity"] != "a"
        await asyncio.sleep(LOOK_SECONDS + SOON)
        assert standby.since is not None
        assert standby.since - told < REQUEST_TIMEOUT_SECONDS + 3 * LOOK_SECONDS

    in_virtual_time(play(World(MemoryApi())))


@scene
async def test_an_end_does_not_wait_for_an_api_server_that_is_gone(world: World) -> None:
    leader = await world.leader("a")
    leader.link.cut = True
    told = now()
    await leader.terminate()
    assert now() - told <= RENEW_DEADLINE_SECONDS + REQUEST_TIMEOUT_SECONDS
    assert world.lease()["spec"]["holderIdentity"] == "a"


@scene
async def test_the_lease_of_a_killed_leader_is_taken_when_it_has_expired_and_not_before(world: World) -> None:
    leader = await world.leader("a")
    standby = world.start("b")
    await asyncio.sleep(20)
    killed = now()
    await leader.kill()
    await asyncio.sleep(30)
    assert standby.since is not None
    assert LEASE_SECONDS - RETRY_SECONDS < standby.since - killed < LEASE_SECONDS + LOOK_SECONDS + 0.1


@pytest.mark.parametrize("century", [1970, 2999])
def test_the_time_of_day_of_the_holder_does_not_matter(century: int) -> None:
    def lease(renewals: int) -> Manifest:
        spec = {"holderIdentity": "a", "renewTime": f"{century}-01-01T00:00:{renewals:02}.000000Z"}
        return {"metadata": {"resourceVersion": str(renewals)}, "spec": spec}

    standby = Candidate("team", NAME, "b")
    for renewals in range(30):
        standby.saw(lease(renewals), now=1000.0 + renewals)
        assert standby.wait(1000.0 + renewals) == LEASE_SECONDS
    standby.saw(lease(29), now=1040.0)
    assert standby.wait(1029.0 + LEASE_SECONDS - 0.1) > 0
    assert standby.wait(1029.0 + LEASE_SECONDS) == 0


@scene
async def test_a_standby_only_reads(world: World) -> None:
    await world.leader("a")
    world.server.calls.clear()
    standby = world.start("b")
    await asyncio.sleep(600)
    assert not standby.may_write()
    holders = {world.server.objects[("leases", "team", NAME)]["spec"]["holderIdentity"]}
    assert holders == {"a"}
    renewals = len(world.server.writes())
    assert abs(renewals - 600 / RETRY_SECONDS) < 10, "the leader's own renewals"


@scene
async def test_of_two_that_claim_at_once_one_leads(world: World) -> None:
    both = [world.start("a"), world.start("b")]
    await asyncio.sleep(60)
    assert len([process for process in both if process.since is not None]) == 1


@scene
async def test_a_foreign_edit_between_two_renewals_does_not_cost_the_lease(world: World) -> None:
    leader = await world.leader("a")
    for _ in range(100):
        await asyncio.sleep(0.3)
        world.edit(metadata={**world.lease()["metadata"], "labels": {"team": "x"}})
    assert leader.may_write()
    assert world.lease()["metadata"]["labels"] == {"team": "x"}


@scene
async def test_a_leader_whose_renewals_lose_their_answers_for_a_while_goes_on(world: World) -> None:
    leader = await world.leader("a")
    await asyncio.sleep(10)
    leader.link.deaf = True
    await asyncio.sleep(RETRY_SECONDS + REQUEST_TIMEOUT_SECONDS)
    leader.link.deaf = False
    await asyncio.sleep(100)
    assert leader.may_write()


@scene
async def test_a_claim_that_lost_its_answer_is_found_and_used(world: World) -> None:
    process = world.start("a")
    await asyncio.sleep(0.025)  # It has read that there is none, and its claim is on the way.
    process.link.deaf = True
    await asyncio.sleep(SOON)
    assert world.lease()["spec"]["holderIdentity"] == "a"
    assert not process.may_write()
    process.link.deaf = False
    await asyncio.sleep(REQUEST_TIMEOUT_SECONDS + LOOK_SECONDS)
    assert process.may_write()


@pytest.mark.parametrize("silence", ["cut", "deaf"])
def test_a_leader_survives_an_outage_that_is_shorter_than_its_deadline(silence: str) -> None:
    async def play(world: World) -> None:
        leader = await world.leader("a")
        await asyncio.sleep(20)
        setattr(leader.link, silence, True)
        await asyncio.sleep(RENEW_DEADLINE_SECONDS - RETRY_SECONDS - REQUEST_TIMEOUT_SECONDS - SOON)
        setattr(leader.link, silence, False)
        await asyncio.sleep(60)
        assert leader.may_write()

    in_virtual_time(play(World(MemoryApi())))


@pytest.mark.parametrize("silence", ["cut", "deaf"])
def test_a_leader_that_cannot_renew_ends_at_its_deadline_before_others_may_take_over(silence: str) -> None:
    async def play(world: World) -> None:
        leader = await world.leader("a")
        standby = world.start("b")
        await asyncio.sleep(20)
        setattr(leader.link, silence, True)
        begun = now()
        await until(lambda: not leader.may_write())
        assert now() - begun <= RENEW_DEADLINE_SECONDS + 0.02
        assert standby.since is None
        await asyncio.sleep(0.02)
        assert "could not be renewed for 10 s" in leader.end
        await asyncio.sleep(LEASE_SECONDS)
        assert standby.since is not None

    in_virtual_time(play(World(MemoryApi())))


@scene
async def test_a_leader_that_finds_another_in_the_lease_ends_at_its_next_renewal(world: World) -> None:
    leader = await world.leader("a")
    world.edit(spec={**world.lease()["spec"], "holderIdentity": "b"})
    await asyncio.sleep(RETRY_SECONDS + 0.1)
    assert leader.end == "b holds the lease"
    assert world.lease()["spec"]["holderIdentity"] == "b"


@scene
async def test_a_leader_whose_lease_was_deleted_ends(world: World) -> None:
    leader = await world.leader("a")
    world.server.remove(LEASES, NAME)
    await asyncio.sleep(RETRY_SECONDS + 0.1)
    assert leader.end == "nobody holds the lease"


Fault = tuple[int, str, float, float]
FAULTS = st.tuples(
    st.integers(0, 2),
    st.sampled_from(["cut", "deaf", "slow"]),
    st.floats(0, 40),
    st.floats(0.1, 30),
)


@settings(max_examples=30)
@given(st.lists(FAULTS, max_size=8))
def test_whatever_happens_to_requests_two_never_write(faults: list[Fault]) -> None:
    async def play() -> None:
        world = World(MemoryApi())
        processes = [world.start(name) for name in "abc"]
        troubles = [asyncio.create_task(trouble(processes[index].link, *rest)) for index, *rest in faults]
        while now() < 80:
            writers = [process.name for process in processes if process.may_write()]
            assert len(writers) <= 1
            await asyncio.sleep(0.2)
        await asyncio.gather(*troubles)
        if any(process.end == "" for process in processes):
            await asyncio.sleep(LEASE_SECONDS + LOOK_SECONDS + REQUEST_TIMEOUT_SECONDS + SOON)
            assert any(process.may_write() for process in processes)

    in_virtual_time(play())


async def trouble(link: Link, kind: str, begin: float, seconds: float) -> None:
    name, value = ("delay", 1.4) if kind == "slow" else (kind, True)
    await asyncio.sleep(begin)
    setattr(link, name, value)
    await asyncio.sleep(seconds)
    setattr(link, name, 0.01 if kind == "slow" else False)
