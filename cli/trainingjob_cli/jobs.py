"""TrainingJobs as the command line sees them: read and followed through the Kubernetes API, and nothing else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kubernetes import client, config, watch
from trainingjob_operator.api.spec import GROUP, KIND, PLURAL, VERSION
from trainingjob_operator.api.status import TrainingJobStatus
from urllib3.exceptions import HTTPError

WATCH_SECONDS = 300
_RETRY_SECONDS = 1.0


class JobError(Exception):
    """What could not be done, and why, in a sentence for the user."""


@dataclass(frozen=True)
class Job:
    """A TrainingJob at one moment."""

    name: str
    namespace: str
    uid: str
    created: datetime
    status: TrainingJobStatus

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> Job:
        """The job that the API server sent."""
        metadata = manifest["metadata"]
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            created=datetime.fromisoformat(metadata["creationTimestamp"]),
            status=TrainingJobStatus.model_validate(manifest.get("status") or {}),
        )

    @property
    def finished(self) -> bool:
        """Whether it has succeeded or failed."""
        return self.status.phase in ("Succeeded", "Failed")


class Jobs:
    """TrainingJobs of one namespace (None: that of the kubeconfig's context). Raises `JobError`."""

    def __init__(
        self, kubeconfig: Path | None = None, context: str | None = None, namespace: str | None = None
    ) -> None:
        file = str(kubeconfig) if kubeconfig else None
        try:
            self._api = client.CustomObjectsApi(config.new_client_from_config(file, context))
            _, current = config.list_kube_config_contexts(file)
        except (config.ConfigException, OSError) as error:
            raise JobError(f"no usable kubeconfig: {error}. Name one with --kubeconfig or $KUBECONFIG") from error
        self.namespace = namespace or current["context"].get("namespace") or "default"
        self._where = {"group": GROUP, "version": VERSION, "namespace": self.namespace, "plural": PLURAL}

    def get(self, name: str) -> Job:
        """The job now."""
        try:
            return Job.from_manifest(self._api.get_namespaced_custom_object(**self._where, name=name))
        except client.ApiException as error:
            raise JobError(self._reason(name, error)) from error
        except HTTPError as error:
            raise JobError(f"the API server does not answer: {error}") from error

    def follow(self, name: str, every: float = 0.5) -> Iterator[Job]:
        """The job now and after each change; at the latest `every` seconds the last one again. Ends when it finishes.

        Raises `JobError` if the job is deleted. An API server that is away for a while is waited for.
        """
        job = self.get(name)
        changes: queue.Queue[Job | None] = queue.Queue()
        over = threading.Event()
        threading.Thread(target=self._watch, args=(job, changes, over), daemon=True).start()
        try:
            yield job
            while not job.finished:
                try:
                    news = changes.get(timeout=every)
                except queue.Empty:
                    yield job
                    continue
                if news is None:
                    raise JobError(f"{KIND} {name} was deleted")
                job = news
                yield job
        finally:
            over.set()

    def _watch(self, job: Job, changes: queue.Queue[Job | None], over: threading.Event) -> None:
        while not over.is_set():
            try:
                self._stream(job, changes, over)
            except client.ApiException as error:
                if error.status == 404:
                    changes.put(None)
                    return
                over.wait(_RETRY_SECONDS)
            except HTTPError:
                over.wait(_RETRY_SECONDS)

    def _stream(self, job: Job, changes: queue.Queue[Job | None], over: threading.Event) -> None:
        """One watch. It begins with the job as it is: so nothing that changed in between is missed."""
        current = Job.from_manifest(self._api.get_namespaced_custom_object(**self._where, name=job.name))
        changes.put(current if current.uid == job.uid else None)
        events = watch.Watch().stream(
            self._api.list_namespaced_custom_object,
            **self._where,
            field_selector=f"metadata.name={job.name}",
            timeout_seconds=WATCH_SECONDS,
        )
        for event in events:
            if over.is_set():
                return
            found = Job.from_manifest(event["object"])
            if found.uid == job.uid:
                changes.put(None if event["type"] == "DELETED" else found)

    def _reason(self, name: str, error: client.ApiException) -> str:
        if error.status == 404:
            return f"there is no {KIND} {name} in namespace {self.namespace}"
        if error.status in (401, 403):
            return f"you may not read {PLURAL}.{GROUP} in namespace {self.namespace}: {error.reason}"
        return f"the API server refused: {error.status} {error.reason}"
