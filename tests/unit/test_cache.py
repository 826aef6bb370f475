"""The cache takes in watches, LISTs and answers of own writes in any order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.memory_api import owner
from trainingjob_operator.core.cache import Cache, Key
from trainingjob_operator.core.names import LABEL_INCARNATION, LABEL_INDEX, LABEL_JOB_NAME, LABEL_JOB_UID, LABEL_ROLE

KEY = Key("team", "job")


def job(version: int, uid: str = "job-1", namespace: str = "team", phase: str | None = None) -> dict[str, Any]:
    meta = {"name": "job", "namespace": namespace, "uid": uid, "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {}, "status": {"phase": phase} if phase else {}}


def pod(version: int, uid: str = "pod-1", job_uid: str = "job-1", index: int = 0, **status: Any) -> dict[str, Any]:
    labels = {
        LABEL_JOB_NAME: "job",
        LABEL_JOB_UID: job_uid,
        LABEL_ROLE: "train",
        LABEL_INDEX: str(index),
        LABEL_INCARNATION: "1",
    }
    return {
        "metadata": {
            "name": f"job-train-{index}-1",
            "namespace": "team",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": labels,
            "ownerReferences": [owner(job_uid)],
        },
        "status": status,
    }


def test_an_older_state_never_replaces_a_newer_one() -> None:
    cache = Cache()
    assert cache.put_job(job(5, phase="Running")) == KEY
    assert cache.put_job(job(4, phase="Pending")) is None
    assert cache.put_job(job(5, phase="Pending")) is None
    known = cache.job(KEY)
    assert known is not None
    assert known.status.phase == "Running"


def test_a_deleted_uid_never_comes_back_but_its_successor_of_the_same_name_does() -> None:
    cache = Cache()
    cache.put_job(job(5))
    assert cache.remove_job(job(6)) == KEY
    assert cache.put_job(job(7)) is None
    assert cache.job(KEY) is None
    assert cache.put_job(job(8, uid="job-2")) == KEY


def test_a_spec_is_validated_once_a_generation() -> None:
    def state(version: int, generation: int, uid: str = "job-1", replicas: int = 2) -> dict[str, Any]:
        body = job(version, uid)
        body["metadata"]["generation"] = generation
        return {
            **body,
            "spec": {"task": {"kind": "custom", "custom": {"command": ["x"]}}, "workers": {"replicas": replicas}},
        }

    def spec(body: dict[str, Any]) -> Any:
        cache.put_job(body)
        known = cache.job(KEY)
        assert known is not None
        return known.spec

    cache = Cache()
    first = spec(state(5, 1))
    assert spec(state(6, 1)) is first
    assert spec(state(7, 2, replicas=3)).workers.replicas == 3
    assert spec(state(8, 2, uid="job-2", replicas=4)).workers.replicas == 4


def test_the_deletion_of_a_predecessor_does_not_remove_its_successor() -> None:
    cache = Cache()
    cache.put_job(job(5))
    cache.put_job(job(9, uid="job-2"))
    assert cache.remove_job(job(8)) is None
    known = cache.job(KEY)
    assert known is not None
    assert known.uid == "job-2"


def test_a_list_removes_what_vanished_but_not_what_is_newer_than_the_list() -> None:
    cache = Cache()
    cache.put_pod(pod(5, "old"))
    cache.put_pod(pod(20, "new", index=1))
    assert cache.retain_pods(None, set(), "10") == {KEY}
    assert [known.uid for known in cache.pods("job-1")] == ["new"]


def test_a_list_of_one_namespace_leaves_the_others_alone() -> None:
    cache = Cache()
    cache.put_job(job(1))
    cache.put_job(job(2, uid="job-2", namespace="other"))
    assert cache.retain_jobs("other", set(), "10") == {Key("other", "job")}
    assert cache.job(KEY) is not None


def test_a_list_of_one_jobs_pods_leaves_other_jobs_pods_alone() -> None:
    cache = Cache()
    cache.put_pod(pod(1, "a"))
    cache.put_pod(pod(2, "b", job_uid="job-2"))
    cache.retain_pods("team", set(), "10", job_uid="job-1")
    assert cache.pods("job-1") == []
    assert [known.uid for known in cache.pods("job-2")] == ["b"]


@pytest.mark.parametrize(
    "owners",
    [
        [],
        [{**owner("job-1"), "controller": False}],
        [{**owner("job-1"), "kind": "ReplicaSet"}],
        [owner("another")],
    ],
)
def test_a_pod_with_our_labels_that_the_job_does_not_control_is_not_ours(owners: list[dict[str, Any]]) -> None:
    cache = Cache()
    foreign = pod(1)
    foreign["metadata"]["ownerReferences"] = owners
    cache.put_pod(foreign)
    assert cache.pods("job-1") == []


@pytest.mark.parametrize("place", ["00-1", "0-01", "0-1000000000", f"0-{10**30}"])
def test_a_pod_whose_name_we_would_not_have_made_stands_for_no_place(place: str) -> None:
    """A copy that somebody made by hand; no incarnation is ever made that the API server does not store."""
    cache = Cache()
    copy = pod(1)
    copy["metadata"]["name"] = f"job-train-{place}"
    cache.put_pod(copy)
    assert cache.pods("job-1") == []


@pytest.mark.parametrize("labels", [{LABEL_JOB_UID: "job-1"}, {LABEL_JOB_UID: "another", LABEL_INDEX: "seven"}])
def test_a_pod_is_known_whatever_becomes_of_its_labels(labels: dict[str, str]) -> None:
    cache = Cache()
    edited = pod(2, phase="Failed")
    edited["metadata"]["labels"] = labels
    cache.put_pod(pod(1))
    assert cache.put_pod(edited) == KEY
    (known,) = cache.pods("job-1")
    assert (known.role, known.index, known.incarnation, known.phase) == ("train", 0, 1, "Failed")
    assert known.mislabelled


def test_a_pod_that_is_taken_away_from_its_job_is_gone() -> None:
    cache = Cache()
    cache.put_job(job(1))
    cache.put_pod(pod(2))
    orphan = pod(3)
    orphan["metadata"]["ownerReferences"] = []
    assert cache.put_pod(orphan) == KEY
    assert cache.pods("job-1") == []


def test_the_last_state_of_a_pod_is_kept_until_it_has_a_successor() -> None:
    cache = Cache()
    cache.put_job(job(1))
    cache.put_pod(pod(2))
    cache.remove_pod(pod(3, phase="Failed"))
    (last,) = cache.gone_pods("job-1")
    assert (last.gone, last.phase) == (True, "Failed")
    successor = pod(4, "pod-2")
    successor["metadata"]["name"] = "job-train-0-2"
    cache.put_pod(successor)
    assert cache.gone_pods("job-1") == []
    cache.remove_pod(successor)
    cache.remove_job(job(6))
    assert cache.gone_pods("job-1") == []


def test_a_pod_that_left_the_watch_and_is_there_after_all_comes_back() -> None:
    cache = Cache()
    cache.put_job(job(1))
    cache.put_pod(pod(2))
    cache.remove_pod(pod(3))
    assert cache.put_pod(pod(4)) is None
    cache.readmit_pod("pod-1")
    assert cache.put_pod(pod(5)) == KEY
    assert len(cache.pods("job-1")) == 1


@given(st.permutations([("put", 1), ("put", 2), ("put", 3), ("remove", 4)]), st.booleans())
def test_order_of_arrival_does_not_matter(arrivals: list[tuple[str, int]], deleted: bool) -> None:
    cache = Cache()
    for what, version in arrivals:
        if what == "put":
            cache.put_pod(pod(version))
        elif deleted:
            cache.remove_pod(pod(version))
    assert [known.resource_version for known in cache.pods("job-1")] == ([] if deleted else ["3"])
