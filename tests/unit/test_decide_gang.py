"""Worker pods as a gang: PodGroups where the cluster has them."""

from __future__ import annotations

from dataclasses import replace

from support.play import FINISHED, SETTINGS, Play, policy, spec

GANG = replace(SETTINGS, pod_groups=True)


def group(play: Play) -> dict[str, object] | None:
    """The PodGroup that was wanted with the newest pods."""
    found = [child for child in play.children if child["kind"] == "PodGroup"]
    return found[0] if found else None


def test_the_workers_get_a_pod_group_of_their_number_and_the_pods_before_them_none() -> None:
    play = Play(settings=GANG)
    play.settle()
    assert group(play) is None
    play.to_training()
    assert group(play) is not None
    assert group(play)["spec"] == {  # type: ignore[index]
        "schedulingPolicy": {"gang": {"minCount": 2}},
        "disruptionMode": {"all": {}},
    }
    assert {pod.name: pod.pod_group for pod in play.pods} == {
        "gpt-prepare-0-1": None,
        "gpt-train-0-1": "gpt-tj",
        "gpt-train-1-1": "gpt-tj",
    }
    assert play.condition("GangSchedulingUnavailable") is None


def test_the_gang_of_an_elastic_job_is_what_it_cannot_do_without() -> None:
    play = Play(spec=spec(workers={"replicas": 3, "minReplicas": 2}), settings=GANG)
    play.to_training()
    assert group(play)["spec"] == {  # type: ignore[index]
        "schedulingPolicy": {"gang": {"minCount": 2}},
        "disruptionMode": {"single": {}},
    }
    assert {pod.pod_group for pod in play.pods if pod.role == "train"} == {"gpt-tj"}


def test_a_pod_group_has_the_priority_of_its_pods() -> None:
    play = Play(spec=spec(workers={"replicas": 2, "template": {"priorityClassName": "high"}}), settings=GANG)
    play.to_training()
    assert group(play)["spec"]["priorityClassName"] == "high"  # type: ignore[index]


def test_a_replacement_is_of_the_same_gang_although_the_api_server_was_started_anew_without_gangs() -> None:
    play = Play(settings=GANG)
    play.to_training()
    play.settings = SETTINGS
    play.end("gpt-train-1-1", 137)
    play.settle()
    assert play.pod("gpt-train-1-2").pod_group == "gpt-tj"
    assert group(play) is None  # there is no such thing to create


def test_a_run_that_began_without_gangs_goes_on_without_and_the_next_one_has_them() -> None:
    play = Play()
    play.to_training()
    play.settings = GANG
    play.end("gpt-train-1-1", 137)
    play.settle()
    assert play.pod("gpt-train-1-2").pod_group is None
    assert play.condition("GangSchedulingUnavailable") is None
    play.spec = policy(suspend=True)
    play.settle()
    play.pods = []
    play.settle()
    play.spec = policy(suspend=False)
    play.settle()
    play.end("gpt-prepare-0-2", 0, {"outcome": "Train"})
    play.settle()
    assert {pod.pod_group for pod in play.pods if pod.role == "train"} == {"gpt-tj"}


def test_a_dropped_scheduling_group_is_told_in_a_condition_until_the_pod_is_replaced() -> None:
    play = Play(settings=GANG)
    play.to_training()
    play.change("gpt-train-1-1", pod_group=None)
    play.settle()
    assert play.condition("GangSchedulingUnavailable") == "True"
    (said,) = [c.message for c in play.status.conditions if c.type == "GangSchedulingUnavailable"]
    assert "gpt-train-1-1" in said
    assert "GenericWorkload" in said
    assert play.status.phase == "Running"
    play.end("gpt-train-1-1", 137)
    play.settle()
    assert play.condition("GangSchedulingUnavailable") is None


def test_the_pod_group_goes_with_the_time_to_live() -> None:
    play = Play(spec=policy(podsTTLSecondsAfterFinished=60), settings=GANG)
    play.to_training()
    play.end("gpt-train-0-1", 0, FINISHED)
    play.end("gpt-train-1-1", 0)
    play.settle()
    play.step(60)
    assert ("PodGroup", "gpt-tj") in {(child.kind, child.name) for child in play.plan.delete_children}
