"""What the operator knows of the cluster: TrainingJobs and their pods.

Fed by watches, by LISTs and by the answers of the operator's own writes, in any order: an object never goes back to a
lower resourceVersion of the same uid, and a uid that was deleted never comes back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from .facts import Job, PodFacts
from .names import LABEL_JOB_NAME, LABEL_JOB_UID

DELETED_UIDS_KEPT = 16384
"""An answer can arrive after the watch's DELETED; it never does so after as many other deletions."""


class Key(NamedTuple):
    """Names a TrainingJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class _Pod(NamedTuple):
    facts: PodFacts
    key: Key


class Cache:
    """TrainingJobs by key, pods by job uid. Each change names the jobs that must be decided anew."""

    def __init__(self) -> None:
        self._jobs: dict[Key, Job] = {}
        self._pods: dict[str, dict[str, _Pod]] = {}
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
        self._jobs[key] = Job.from_object(body)
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

    def replace_jobs(self, namespace: str | None, bodies: Iterable[Mapping[str, Any]], version: str) -> set[Key]:
        """Take in a LIST of one namespace (None: of all) as of `version`; jobs that it lacks are gone."""
        listed = list(bodies)
        changed = {key for body in listed if (key := self.put_job(body)) is not None}
        present = {body["metadata"]["uid"] for body in listed}
        for key, job in list(self._jobs.items()):
            gone = job.uid not in present and int(job.resource_version) <= int(version)
            if gone and namespace in (None, key.namespace):
                self._bury(job.uid)
                del self._jobs[key]
                changed.add(key)
        return changed

    def put_pod(self, body: Mapping[str, Any]) -> Key | None:
        """Take in a pod; None when it says nothing new or is no child of a TrainingJob.

        KeyError or ValueError if a child cannot be read.
        """
        meta = body["metadata"]
        if meta["uid"] in self._deleted or not is_controlled_by(body, (meta.get("labels") or {}).get(LABEL_JOB_UID)):
            return None
        owner = meta["labels"][LABEL_JOB_UID]
        known = self._pods.get(owner, {}).get(meta["uid"])
        if known is not None and not _newer(meta, known.facts.resource_version):
            return None
        pod = _Pod(PodFacts.from_object(body), Key(meta["namespace"], meta["labels"][LABEL_JOB_NAME]))
        self._pods.setdefault(owner, {})[meta["uid"]] = pod
        return pod.key

    def remove_pod(self, body: Mapping[str, Any]) -> Key | None:
        """Take in a pod's deletion."""
        meta = body["metadata"]
        self._bury(meta["uid"])
        return self._drop_pod((meta.get("labels") or {}).get(LABEL_JOB_UID, ""), meta["uid"])

    def replace_pods(
        self, namespace: str | None, bodies: Iterable[Mapping[str, Any]], version: str, job_uid: str | None = None
    ) -> set[Key]:
        """Take in a LIST of pods of one namespace (None: of all), or of one job, as of `version`."""
        listed = list(bodies)
        changed = {key for body in listed if (key := self.put_pod(body)) is not None}
        present = {body["metadata"]["uid"] for body in listed}
        owners = list(self._pods) if job_uid is None else [job_uid]
        for owner in owners:
            for uid, pod in list(self._pods.get(owner, {}).items()):
                gone = uid not in present and int(pod.facts.resource_version) <= int(version)
                if gone and namespace in (None, pod.key.namespace):
                    self._bury(uid)
                    self._drop_pod(owner, uid)
                    changed.add(pod.key)
        return changed

    def _drop_pod(self, job_uid: str, uid: str) -> Key | None:
        pods = self._pods.get(job_uid, {})
        pod = pods.pop(uid, None)
        if not pods:
            self._pods.pop(job_uid, None)
        return None if pod is None else pod.key

    def _bury(self, uid: str) -> None:
        self._deleted[uid] = None
        while len(self._deleted) > DELETED_UIDS_KEPT:
            self._deleted.popitem(last=False)


def is_controlled_by(body: Mapping[str, Any], uid: str | None) -> bool:
    """Whether an object's controller is the owner with this uid. Labels alone prove nothing: anybody may set them."""
    owners = body["metadata"].get("ownerReferences") or ()
    return uid is not None and any(owner.get("controller") and owner["uid"] == uid for owner in owners)


def _newer(meta: Mapping[str, Any], known_version: str) -> bool:
    # Versions of all objects of one kind come from one counter, so this orders different uids of one name as well.
    return int(meta["resourceVersion"]) > int(known_version)
