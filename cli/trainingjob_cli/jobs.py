"""TrainingJobs as the command line sees them: read and followed through the Kubernetes API, and nothing else."""

from __future__ import annotations

import json
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
from trainingjob_operator.core.facts import read_status
from urllib3.exceptions import HTTPError

WATCH_SECONDS = 300
REQUEST_SECONDS = 15
"""For an answer. A server that is cut off says nothing at all, and a watch would wait for it for ever."""
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
            status=read_status(manifest.get("status") or {}),
        )

    @property
    def finished(self) -> bool:
        """Whether it has succeeded or failed."""
        return self.status.phase in ("Succeeded", "Failed")


class Jobs:
    """TrainingJobs of one namespace (None: that of the context). Raises `JobError`."""

    def __init__(
        self, kubeconfig: Path | None = None, context: str | None = None, namespace: str | None = None
    ) -> None:
        file = str(kubeconfig) if kubeconfig else None
        try:
            self._api = client.CustomObjectsApi(config.new_client_from_config(file, context))
            contexts, current = config.list_kube_config_contexts(file)
        except Exception as error:  # The library trips over whatever is no kubeconfig, each time in another way.
            why = " ".join(str(error).split()).rstrip(".")
            raise JobError(f"no usable kubeconfig: {why}. Name one with --kubeconfig or $KUBECONFIG") from error
        chosen = next((one for one in contexts if one["name"] == context), current)
        self.namespace = namespace or chosen["context"].get("namespace") or "default"
        self._where = {"group": GROUP, "version": VERSION, "namespace": self.namespace, "plural": PLURAL}

    def get(self, name: str) -> Job:
        """The job now."""
        if not name:
            raise JobError(f"which {KIND}? its name is empty")
        try:
            return self._read(name)
        except client.ApiException as error:
            raise JobError(self._reason(name, error)) from error
        except HTTPError as error:
            raise JobError(f"the API server does not answer: {error}") from error

    def follow(self, name: str, every: float = 0.5) -> Iterator[Job]:
        """The job now and after each change; at the latest `every` seconds the last one again. Ends when it finishes.

        Raises `JobError` if the job is deleted, or may not be watched. An API server that is away for a while is waited
        for.
        """
        job = self.get(name)
        changes: queue.Queue[Job | Exception] = queue.Queue()
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
                if isinstance(news, Exception):
                    raise news
                job = news
                yield job
        finally:
            over.set()

    def _watch(self, job: Job, changes: queue.Queue[Job | Exception], over: threading.Event) -> None:
        """Until `over`, or until there is nothing more to hear: then why, or the defect that ended this thread."""
        while not over.is_set():
            try:
                self._stream(job, changes, over)
            except client.ApiException as error:
                if error.status in (401, 403):
                    changes.put(JobError(self._reason(job.name, error)))
                    return
                if error.status == 404:
                    changes.put(_deleted(job))
                    return
                over.wait(_RETRY_SECONDS)
            except HTTPError:
                over.wait(_RETRY_SECONDS)
            except Exception as error:
                changes.put(error)
                return

    def _stream(self, job: Job, changes: queue.Queue[Job | Exception], over: threading.Event) -> None:
        """One watch. It begins with the job as it is: so nothing that changed in between is missed."""
        current = self._read(job.name)
        changes.put(current if current.uid == job.uid else _deleted(job))
        events = watch.Watch().stream(
            self._api.list_namespaced_custom_object,
            **self._where,
            field_selector=f"metadata.name={job.name}",
            timeout_seconds=WATCH_SECONDS,
            _request_timeout=(REQUEST_SECONDS, WATCH_SECONDS + REQUEST_SECONDS),
        )
        for event in events:
            if over.is_set():
                return
            found = Job.from_manifest(event["object"])
            if found.uid == job.uid:
                changes.put(_deleted(job) if event["type"] == "DELETED" else found)

    def _read(self, name: str) -> Job:
        answer = self._api.get_namespaced_custom_object(**self._where, name=name, _request_timeout=REQUEST_SECONDS)
        return Job.from_manifest(answer)

    def _reason(self, name: str, error: client.ApiException) -> str:
        try:
            said = json.loads(error.body)["message"]
        except (TypeError, ValueError, KeyError):
            said = ""  # So answers a server that does not know the resource at all.
        if error.status == 404:
            if not said:
                return f"the API server knows no {PLURAL}.{GROUP}: the operator's chart installs them"
            return f"there is no {KIND} {name} in namespace {self.namespace}"
        return f"the API server refuses: {said or f'{error.status} {error.reason}'}"


def _deleted(job: Job) -> JobError:
    return JobError(f"{KIND} {job.name} was deleted")
