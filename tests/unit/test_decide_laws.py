"""What holds of every plan, whatever happens to a job: a random world, played against `decide`."""

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.play import Play, spec
from trainingjob_operator.core.conditions import FINISHED, ON_THE_WAY
from trainingjob_operator.core.facts import ProgressFacts
from trainingjob_operator.core.obstacle import Obstacle, foreign

QUOTA = Obstacle("QuotaExceeded", "Pod gpt-train-0-1 cannot be created: exceeded quota; ask for less.", room=True)
TOO_SMALL = replace(QUOTA, message=QUOTA.message.replace(";", ": q, requested: pods=1, used: pods=0, limited: pods=1;"))
FROZEN = Obstacle("DeleteRefused", "Pod gpt-train-0-1 cannot be deleted: no; have the policy changed.", stalled=True)

ENDS = [
    (0, None),
    (0, {"outcome": "PrepareData"}),
    (0, {"outcome": "Train"}),
    (0, {"outcome": "Finished", "result": {"step": 100}}),
    (10, {"class": "UserError", "cause": "no bucket"}),
    (20, {"class": "Storage"}),
    (30, {"class": "Drained"}),
    (137, None),
]


class World(RuleBasedStateMachine):
    """Pods live and die, people edit, time passes; after every move the operator decides."""

    @initialize(
        deadline=st.sampled_from([None, 500]),
        start=st.sampled_from([None, 50, 400]),
        ttl=st.sampled_from([None, 0, 100]),
        restarts=st.integers(0, 3),
        elastic=st.booleans(),
        training=st.booleans(),
    )
    def begin(
        self, deadline: int | None, start: int | None, ttl: int | None, restarts: int, elastic: bool, training: bool
    ) -> None:
        policy = {"activeDeadlineSeconds": deadline, "podsTTLSecondsAfterFinished": ttl, "maxRestarts": restarts}
        policy["startDeadlineSeconds"] = start
        workers = {"replicas": 2, "minReplicas": 1} if elastic else {"replicas": 2}
        self.play = Play(spec=spec(runPolicy=policy, workers=workers))
        self.attempt = 0
        self.highest: dict[tuple[str, int], int] = {}
        self.ended = None
        self.seen = 0
        self.play.step()
        if training:  # else few plays come that far
            self.play.to_training()
            self.attempt = 1

    @rule(seconds=st.sampled_from([0, 1, 11, 61, 301]))
    def time_passes(self, seconds: int) -> None:
        self.play.step(seconds)

    @rule()
    def pods_start(self) -> None:
        self.play.run_pods()
        self.play.step(1)

    @precondition(lambda self: self.play.pods)
    @rule(data=st.data(), end=st.sampled_from(ENDS), together=st.booleans())
    def a_pod_ends(self, data: st.DataObject, end: tuple[int, dict[str, object] | None], together: bool) -> None:
        alive = [p.name for p in self.play.pods if p.phase == "Running"]
        if alive:
            for name in alive if together else [data.draw(st.sampled_from(alive))]:
                self.play.end(name, *end)
        self.play.step(1)

    @precondition(lambda self: self.play.pods)
    @rule(data=st.data())
    def a_pod_vanishes(self, data: st.DataObject) -> None:
        self.play.vanish(data.draw(st.sampled_from(self.play.names)))
        self.play.step(1)

    @precondition(lambda self: self.play.pods)
    @rule(data=st.data(), disruption=st.sampled_from([None, "DeletionByTaintManager", "EvictionByEvictionAPI"]))
    def a_pod_is_deleted(self, data: st.DataObject, disruption: str | None) -> None:
        name = data.draw(st.sampled_from(self.play.names))
        due = self.play.now + timedelta(seconds=120)
        self.play.change(name, deleting=True, deletion_due=due, disruption=disruption)
        self.play.step(1)

    @precondition(lambda self: self.play.pods)
    @rule(data=st.data(), edit=st.sampled_from([{"mislabelled": True}, {"member": False}]))
    def a_label_is_changed(self, data: st.DataObject, edit: dict[str, bool]) -> None:
        self.play.change(data.draw(st.sampled_from(self.play.names)), **edit)
        self.play.step(1)

    @rule()
    def the_operator_starts_anew(self) -> None:
        self.play.gone.clear()
        self.play.progress = ProgressFacts()
        self.play.step(1)

    @rule(commits=st.booleans(), pods=st.sampled_from([[], [0], [0, 1]]))
    def the_head_reports(self, commits: bool, pods: list[int]) -> None:
        head = self.play.head() if self.play.plan.wants_progress else None
        if head in self.play.names and "train" in head:
            self.attempt += 1
            committed = self.attempt if commits else None
            self.play.train(self.attempt, self.attempt, committed=committed, pods=pods)
        self.play.step(1)

    @rule()
    def the_head_falls_silent(self) -> None:
        self.play.progress = replace(self.play.progress, unreachable_since=self.play.now)
        self.play.step(1)

    @rule(refusal=st.sampled_from([None, foreign("Service", "gpt-tj"), QUOTA, FROZEN]))
    def the_api_server_refuses(self, refusal: Obstacle | None) -> None:
        self.play.refuse(refusal)
        self.play.step(1)

    @rule(seconds=st.sampled_from([1, 16]))
    def the_quota_is_too_small(self, seconds: int) -> None:
        self.play.refuse(TOO_SMALL)
        self.play.step(1)
        self.play.step(seconds)

    @precondition(lambda self: self.play.pods)
    @rule(data=st.data(), why=st.sampled_from([None, {"unschedulable": "no room"}, {"waiting_reason": "ErrImagePull"}]))
    def a_pod_cannot_start(self, data: st.DataObject, why: dict[str, str] | None) -> None:
        name = data.draw(st.sampled_from(self.play.names))
        if self.play.pod(name).phase == "Pending":
            self.play.change(name, **(why or {"unschedulable": None, "waiting_reason": None}))
        self.play.step(1)

    @rule(warning=st.sampled_from([None, ("FailedMount", "no such volume")]))
    def the_events_are_read(self, warning: tuple[str, str] | None) -> None:
        self.play.look(warning)
        self.play.step(1)

    @rule(suspend=st.booleans())
    def someone_suspends_or_resumes(self, suspend: bool) -> None:
        self.play.spec = {**self.play.spec, "runPolicy": {**self.play.spec["runPolicy"], "suspend": suspend}}
        self.play.generation += 1
        self.play.step(1)

    def blocked(self) -> bool:
        """Whether a person has to clear the way of a run that is on."""
        refusal, status = self.play.findings.refusal, self.play.status
        if status.message.startswith("Quota q is too small: 2 pods must run together"):
            assert refusal is TOO_SMALL or status.given_way
            return True
        return refusal is not None and refusal.stalled and status.message == refusal.message

    def overdue(self) -> bool:
        """Whether the pods are drained because a deadline has passed."""
        return any(c.reason in ("DeadlineExceeded", "StartDeadlineExceeded") for c in self.play.status.conditions)

    @invariant()
    def kstatus_is_of_one_mind(self) -> None:
        """https://github.com/kubernetes-sigs/cli-utils/tree/master/pkg/kstatus: what tools read, at every instant."""
        for status in self.play.statuses[self.seen :]:
            found = {c.type: c for c in status.conditions}
            assert len(found) == len(status.conditions), "a condition is said twice"
            true = {
                kind for kind in ("Ready", "Reconciling", "Stalled") if kind in found and found[kind].status == "True"
            }
            assert len(true) == (status.phase != "Suspended"), "in progress, there, or stuck: one of the three"
            assert status.phase != "Suspended" or "Ready" not in found
            for condition in found.values():
                assert condition.observed_generation == status.observed_generation
                assert condition.reason
                assert condition.status == "False" or condition.message
            if "Reconciling" in true or "Stalled" in true:
                (kind,) = true
                assert found[kind].message == status.message
        self.seen = len(self.play.statuses)

    @invariant()
    def an_unchanged_condition_keeps_its_time(self) -> None:
        for old, new in pairwise(self.play.statuses):
            before = {c.type: c for c in old.conditions}
            for condition in new.conditions:
                known = before.get(condition.type)
                if known is not None and known.status == condition.status:
                    assert condition.last_transition_time == known.last_transition_time

    @invariant()
    def no_event_is_told_twice_for_one_change(self) -> None:
        told = len(self.play.events)
        self.play.step()
        assert len(self.play.events) == told, "an event with nothing having changed"

    @precondition(lambda self: "minReplicas" in self.play.spec["workers"])
    @rule(replicas=st.integers(1, 4))
    def someone_scales(self, replicas: int) -> None:
        self.play.spec = {**self.play.spec, "workers": {"replicas": replicas, "minReplicas": 1}}
        self.play.generation += 1
        self.play.step(1)

    @invariant()
    def the_gang_has_the_size_that_the_spec_wants(self) -> None:
        status = self.play.status
        ending = status.phase == "Suspending" or self.overdue()
        if status.phase not in FINISHED and status.stage == "Train" and not ending:
            gang = {m.index for m in status.pods if m.role == "train"}
            assert set(range(self.play.spec["workers"]["replicas"])) <= gang
            beyond = [p for p in self.play.pods if p.role == "train" and p.index >= status.workers.desired]
            assert all(p.finished or p.deleting for p in beyond)

    @invariant()
    def the_conditions_agree_with_the_phase(self) -> None:
        phase, condition = self.play.status.phase, self.play.condition
        assert phase is not None
        assert (condition("Finished") == "True") == (phase in FINISHED)
        assert (condition("Complete") == "True") == (phase == "Succeeded")
        assert (condition("Failed") == "True") == (phase == "Failed")
        assert (condition("Stalled") == "True") == (phase == "Failed" or (phase in ON_THE_WAY and self.blocked()))
        assert (condition("Reconciling") == "True") == (phase in ON_THE_WAY and not self.blocked())
        assert (condition("Ready") == "True") == (phase in ("Running", "Succeeded"))
        assert (condition("Suspended") == "True") == (phase == "Suspended")
        assert [condition(kind) for kind in ("Ready", "Reconciling", "Stalled")].count("True") <= 1
        assert (phase == "Suspended") or "True" in [condition(kind) for kind in ("Ready", "Reconciling", "Stalled")]
        assert all(c.last_transition_time <= self.play.now for c in self.play.status.conditions)
        assert (self.play.status.completion_time is not None) == (phase in FINISHED)

    @invariant()
    def the_operator_comes_to_rest(self) -> None:
        self.play.settle()

    @invariant()
    def incarnations_never_fall(self) -> None:
        for member in self.play.status.pods:
            place = (member.role, member.index)
            assert member.incarnation >= self.highest.get(place, 0)
            self.highest[place] = member.incarnation

    @invariant()
    def one_pod_of_an_index_works_at_most(self) -> None:
        working = [(p.role, p.index) for p in self.play.pods if not p.finished and not p.deleting]
        assert len(working) == len(set(working))

    @invariant()
    def the_end_is_the_end(self) -> None:
        phase = self.play.status.phase
        assert self.ended in (None, phase)
        if phase in FINISHED:
            self.ended = phase
            assert all(p.finished or p.deleting for p in self.play.pods)

    @invariant()
    def the_counts_are_bounded(self) -> None:
        status = self.play.status
        assert len(status.history) <= 10
        assert status.restarts.without_progress <= status.restarts.total
        allowed = self.play.spec["runPolicy"]["maxRestarts"]
        assert status.phase == "Failed" or status.restarts.without_progress <= allowed


# Three times the examples of other laws: fewer never scale a run that trains.
World.TestCase.settings = settings(
    max_examples=3 * settings().max_examples, stateful_step_count=20, suppress_health_check=list(HealthCheck)
)
TestWorld = World.TestCase
