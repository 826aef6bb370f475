"""A TrainingJob under test: applied, watched, disturbed and asked, through kubectl and S3 like a user would."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainingjob_local.s3 import S3Server

Object = dict[str, Any]

PATIENCE = 180.0
"""Seconds after which a test that waits has failed. They end tests that hang and say nothing about speed: the operator
tries again what was refused after up to 72 s, Kubernetes looks for lost nodes, new kinds and old events once in 20 to
40 s, and machines are slow."""
RUN_PATIENCE = 900.0
"""And for what takes many steps of real ranks, on Ray, which itself takes up to a minute to begin."""


def wait_until(what: str, condition: Callable[[], Any], seconds: float = PATIENCE, every: float = 0.1) -> Any:
    """The first true value of `condition`; an AssertionError that names `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}; last seen: {value!r}")
        time.sleep(every)


class Looks:
    """Tells that something no longer changes: by the number of looks at it, since time passes for who sleeps, too."""

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._found: Any = None
        self._count = 0

    def alike(self, found: Any) -> bool:
        """Whether it has been the same so many times; None: it could not be seen."""
        self._count = self._count + 1 if found is not None and found == self._found else 0
        self._found = found
        return self._count >= self._enough


@dataclass(frozen=True)
class Kubectl:
    """kubectl with a kubeconfig and a namespace."""

    binary: Path
    kubeconfig: Path
    namespace: str

    def __call__(self, *args: str, stdin: str | None = None, check: bool = True) -> str:
        done = subprocess.run(
            [self.binary, "--kubeconfig", self.kubeconfig, *self._known, "--namespace", self.namespace, *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(args)} -> {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout if check else done.stdout + done.stderr

    @property
    def _known(self) -> tuple[str | Path, ...]:
        """Where it keeps what it knows of the API server: by address, which all local clusters have in common."""
        return "--cache-dir", self.kubeconfig.with_name("kubectl-cache")

    def json(self, *args: str) -> Object:
        value: Object = json.loads(self("get", *args, "-o", "json"))
        return value


@dataclass(frozen=True)
class Run:
    """One TrainingJob in the cluster and its run directory."""

    kubectl: Kubectl
    server: "S3Server"
    manifest: Object

    @cached_property
    def s3(self) -> Any:
        return self.server.client()

    def environment(self) -> dict[str, str]:
        """What a program of a stranger needs to read the run directory."""
        return {
            "AWS_ENDPOINT_URL": self.server.endpoint,
            "AWS_ACCESS_KEY_ID": self.server.access_key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret_key,
            "AWS_REGION": "us-east-1",
            "PATH": os.environ["PATH"],
        }

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def bucket(self) -> str:
        return str(self.manifest["spec"]["outputUri"]).removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        return str(self.manifest["spec"]["outputUri"]).removeprefix("s3://").partition("/")[2].rstrip("/")

    def apply(self) -> str:
        return self.kubectl("apply", "-f", "-", stdin=json.dumps(self.manifest))

    def patch(self, spec: Object) -> None:
        self.kubectl("patch", "tj", self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def status(self) -> Object:
        status: Object = self.kubectl.json("tj", self.name).get("status") or {}
        return status

    def phase(self) -> str | None:
        return self.status().get("phase")

    def pods(self, role: str = "train") -> dict[int, Object]:
        """The newest living pod of each index."""
        selector = f"trainingjob.io/job-name={self.name},trainingjob.io/role={role}"
        pods = self.kubectl.json("pods", "-l", selector)["items"]
        living = [p for p in pods if p["status"].get("phase") not in ("Succeeded", "Failed")]
        living.sort(key=lambda pod: int(pod["metadata"]["labels"]["trainingjob.io/incarnation"]))
        return {int(pod["metadata"]["labels"]["trainingjob.io/index"]): pod for pod in living}

    def keys(self, below: str = "") -> list[str]:
        """Keys of the run directory, relative to it."""
        return list(self.etags(below))

    def etags(self, below: str = "") -> dict[str, str]:
        """ETags of all objects of the run directory, by their keys relative to it."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/{below}")
        items = (item for page in pages for item in page.get("Contents", []))
        return {item["Key"].removeprefix(f"{self.prefix}/"): item["ETag"] for item in items}

    def read(self, key: str) -> bytes:
        body: bytes = self.s3.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")["Body"].read()
        return body

    def result(self) -> Object:
        """`result.json`."""
        result: Object = json.loads(self.read("result.json"))
        return result

    def report(self) -> Object:
        """The report of the run, for programs."""
        page = self.relative(self.result()["reportUri"])
        report: Object = json.loads(self.read(page.removesuffix(".html") + ".json"))
        return report

    def relative(self, uri: str) -> str:
        """Key below the run directory of one of its URIs."""
        return uri.removeprefix(f"s3://{self.bucket}/{self.prefix}/")

    def recomputed_metrics(self, directory: Path) -> Object:
        """The test metrics as a program computes them that imports nothing of the trainer, run in `directory`."""
        script = Path(__file__).parents[1] / "e2e" / "evaluate_export.py"
        done = subprocess.run(
            [sys.executable, "-I", str(script), self.manifest["spec"]["outputUri"]],
            env=self.environment(),
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        metrics: Object = json.loads(done.stdout)
        return metrics

    def committed_steps(self) -> list[int]:
        commits = [key for key in self.keys("checkpoints/") if key.endswith("/COMMIT.json")]
        return sorted(int(key.split("/")[1].removeprefix("step-")) for key in commits)

    def wait_finished(self, seconds: float = RUN_PATIENCE) -> Object:
        """The status once the job is finished."""

        def finished() -> Object | None:
            status = self.status()
            return status if status.get("phase") in ("Succeeded", "Failed") else None

        status: Object = wait_until(f"{self.name} is finished", finished, seconds, every=0.5)
        return status

    def wait_succeeded(self, seconds: float = RUN_PATIENCE) -> Object:
        status = self.wait_finished(seconds)
        assert status["phase"] == "Succeeded", f"{self.name}: {status.get('message')}\n{json.dumps(status, indent=1)}"
        return status

    def wait_commit(self, after: int = 0, seconds: float = RUN_PATIENCE) -> int:
        """The newest committed step once it is above `after`."""
        steps: list[int] = wait_until(
            f"{self.name} commits a step above {after}",
            lambda: [step for step in self.committed_steps() if step > after],
            seconds,
        )
        return steps[-1]
