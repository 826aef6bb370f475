"""What the operator knows of the cluster: TrainingJobs and their pods.

Fed by watches, by LISTs and by the answers of the operator's own writes, in any order: an object never goes back to a
lower resourceVersion of the same uid, and a uid that was deleted never comes back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from typing import Any, NamedTuple

from .facts import Job, PodFacts, controlling_job
from .names import LABEL_JOB_UID, parse_pod_name

DELETED_UIDS_KEPT = 16384
"""An answer can arrive after the watch's DELETED; it never does so after as many other deletions."""


class Key(NamedTuple):
    """Names a TrainingJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


Place = tuple[str, int]  # role and index


class _Pod(NamedTuple):
    facts: PodFacts
    key: Key


class Cache:
    """TrainingJobs by key, pods by job uid. Each change names the jobs that must be decided anew.

    A pod is known by its owner and its name, not by its labels. Of a pod that is gone the last state is kept until it
    has a successor: an eviction or a preemption is told there, and may be noticed too late.
    """

    def __init__(self) -> None:
        self._jobs: dict[Key, Job] = {}
        self._pods: dict[str, dict[str, _Pod]] = {}
        self._gone: dict[str, dict[Place, PodFacts]] = {}
        self._deleted: OrderedDict[str, None] = OrderedDict()

    def job(self, key: Key) -> Job | None:
        """The newest known state of a job, or None when there is no such job."""
        return self._jobs.get(key)

    def jobs(self) -> Iterator[tuple[Key, Job]]:
        """All jobs."""
        return iter(self._jobs.items())

    def pods(self, job_uid: str) -> list[PodFacts]:
        """The pods of one job, in the order of their names' parts."""
        pods = (pod.facts for pod in self._pods.get(job_uid, {}).values())
        return sorted(pods, key=lambda pod: (pod.role, pod.index, pod.incarnation))

    def put_job(self, body: Mapping[str, Any]) -> Key | None:
        """Take in a TrainingJob; None when it says nothing new."""
        meta = body["metadata"]
        key = Key(meta["namespace"], meta["name"])
        known = self._jobs.get(key)
        if meta["uid"] in self._deleted or (known is not None and not _newer(meta, known.resource_version)):
            return None
        self._jobs[key] = Job.from_object(body, known)
        if known is not None and known.uid != meta["uid"]:
            self._bury(known.uid)
        return key

    def remove_job(self, body: Mapping[str, Any]) -> Key | None:
        """Take in a TrainingJob's deletion."""
        meta = body["metadata"]
        key = Key(meta["namespace"], meta["name"])
        self._bury(meta["uid"])
        known = self._jobs.get(key)
        if known is None or known.uid != meta["uid"]:
            return None
        del self._jobs[key]
        return key

    def retain_jobs(self, namespace: str | None, uids: Set[str], version: str) -> set[Key]:
        """Take in what a LIST of one namespace (None: of all) as of `version` lacks: those jobs are gone."""
        changed = set()
        for key, job in list(self._jobs.items()):
            gone = job.uid not in uids and int(job.resource_version) <= int(version)
            if gone and namespace in (None, key.namespace):
                self._bury(job.uid)
                del self._jobs[key]
                changed.add(key)
        return changed

    def orphans(self) -> Iterator[tuple[Key, str]]:
        """Keys and uids of jobs that are gone while a queue still holds pods of theirs."""
        for uid, pods in self._pods.items():
            for pod in pods.values():
                job = self._jobs.get(pod.key)
                if pod.facts.queued is not None and pod.facts.queued.held and (job is None or job.uid != uid):
                    yield pod.key, uid
                    break

    def gone_pods(self, job_uid: str) -> list[PodFacts]:
        """The last state of each pod of one job that is gone and has no successor yet."""
        return list(self._gone.get(job_uid, {}).values())

    def put_pod(self, body: Mapping[str, Any]) -> Key | None:
        """Take in a pod; None when it says nothing new or is no child of a TrainingJob.

        KeyError or ValueError if a child cannot be read.
        """
        meta = body["metadata"]
        owner, name = controlling_job(body), parse_pod_name(meta["name"])
        if owner is None or name is None:
            return self._drop_pod(_labelled_owner(meta), meta["uid"])
        if meta["uid"] in self._deleted:
            return None
        known = self._pods.get(owner, {}).get(meta["uid"])
        if known is not None and not _newer(meta, known.facts.resource_version):
            return None
        pod = _Pod(PodFacts.from_object(body), Key(meta["namespace"], name.job))
        self._pods.setdefault(owner, {})[meta["uid"]] = pod
        self._forget_gone(pod.facts)
        return pod.key

    def readmit_pod(self, uid: str) -> None:
        """A pod left the watch for another reason than its end: it may come back."""
        self._deleted.pop(uid, None)

    def lose_pod(self, pod: PodFacts) -> None:
        """A pod is gone that no watch tells of."""
        self._bury(pod.uid)
        self._drop_pod(pod.job_uid, pod.uid)

    def remove_pod(self, body: Mapping[str, Any]) -> Key | None:
        """Take in a pod's deletion; `body` is its last state."""
        meta = body["metadata"]
        self._bury(meta["uid"])
        owner = controlling_job(body)
        if owner is None or parse_pod_name(meta["name"]) is None:
            return self._drop_pod(_labelled_owner(meta), meta["uid"])
        return self._drop_pod(owner, meta["uid"], PodFacts.from_object(body))

    def retain_pods(self, namespace: str | None, uids: Set[str], version: str, job_uid: str | None = None) -> set[Key]:
        """Take in what a LIST of pods of one namespace (None: of all), or of one job, as of `version` lacks."""
        changed = set()
        owners = list(self._pods) if job_uid is None else [job_uid]
        for owner in owners:
            for uid, pod in list(self._pods.get(owner, {}).items()):
                gone = uid not in uids and int(pod.facts.resource_version) <= int(version)
                if gone and namespace in (None, pod.key.namespace):
                    self._bury(uid)
                    self._drop_pod(owner, uid)
                    changed.add(pod.key)
        return changed

    def _drop_pod(self, job_uid: str, uid: str, last: PodFacts | None = None) -> Key | None:
        pods = self._pods.get(job_uid, {})
        pod = pods.pop(uid, None)
        if not pods:
            self._pods.pop(job_uid, None)
        if pod is None:
            return None
        self._remember_gone(pod.key, replace(last or pod.facts, gone=True))
        return pod.key

    def _remember_gone(self, key: Key, gone: PodFacts) -> None:
        job = self._jobs.get(key)
        if job is None or job.uid != gone.job_uid or job.status.completion_time is not None:
            return
        there = (pod.facts for pod in self._pods.get(gone.job_uid, {}).values())
        place = (gone.role, gone.index)
        if not any((p.role, p.index) == place and p.incarnation > gone.incarnation for p in there):
            self._gone.setdefault(gone.job_uid, {})[place] = gone

    def _forget_gone(self, successor: PodFacts) -> None:
        """Drop what is known of predecessors of `successor`."""
        gone = self._gone.get(successor.job_uid, {})
        last = gone.get((successor.role, successor.index))
        if last is not None and last.incarnation <= successor.incarnation:
            del gone[(successor.role, successor.index)]
            if not gone:
                del self._gone[successor.job_uid]

    def _bury(self, uid: str) -> None:
        self._deleted[uid] = None
        self._gone.pop(uid, None)
        while len(self._deleted) > DELETED_UIDS_KEPT:
            self._deleted.popitem(last=False)


def _labelled_owner(meta: Mapping[str, Any]) -> str:
    """The job that a pod's labels name: once it had it as its owner as well."""
    return str((meta.get("labels") or {}).get(LABEL_JOB_UID, ""))


def _newer(meta: Mapping[str, Any], known_version: str) -> bool:
    # Versions of all objects of one kind come from one counter, so this orders different uids of one name as well.
    return int(meta["resourceVersion"]) > int(known_version)
