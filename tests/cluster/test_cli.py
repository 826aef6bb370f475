"""The command line against the real API server."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs import wait_until
from trainingjob_cli.jobs import Job, JobError, Jobs
from trainingjob_cli.main import app
from trainingjob_local.cluster import LocalCluster
from typer.testing import CliRunner

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


@pytest.fixture
def jobs(cluster: LocalCluster, namespace: str) -> Jobs:
    """A namespace with one TrainingJob in it, which no operator looks at."""
    manifest = yaml.safe_load(EXAMPLE.read_text())
    manifest["metadata"]["namespace"] = namespace
    cluster.apply(manifest)
    return Jobs(cluster.kubeconfig, namespace=namespace)


def set_status(cluster: LocalCluster, jobs: Jobs, **status: Any) -> None:
    patch = json.dumps({"status": status})
    cluster.kubectl(
        "patch", "tj", "quickstart", "-n", jobs.namespace, "--subresource=status", "--type=merge", "-p", patch
    )


def next_with_phase(stream: Any, phase: str) -> Job:
    for job in stream:
        if job.status.phase == phase:
            assert isinstance(job, Job)
            return job
    raise AssertionError(f"the stream ended without {phase}")


def test_follow_tells_each_change_and_ends_with_the_job(cluster: LocalCluster, jobs: Jobs) -> None:
    stream = jobs.follow("quickstart")
    assert next(stream).status.phase is None
    for phase in ("Preparing", "Running", "Succeeded"):
        set_status(cluster, jobs, phase=phase)
        assert next_with_phase(stream, phase).finished is (phase == "Succeeded")
    with pytest.raises(StopIteration):
        next(stream)


def test_follow_says_that_the_job_was_deleted(cluster: LocalCluster, jobs: Jobs) -> None:
    stream = jobs.follow("quickstart")
    next(stream)
    cluster.kubectl("delete", "tj", "quickstart", "-n", jobs.namespace)
    with pytest.raises(JobError, match="was deleted"):
        next_with_phase(stream, "Succeeded")


def test_a_job_that_does_not_exist_is_said_so(jobs: Jobs) -> None:
    with pytest.raises(JobError, match=f"there is no TrainingJob nothing in namespace {jobs.namespace}"):
        jobs.get("nothing")


def test_a_cluster_without_the_resource_is_said_so(
    cluster: LocalCluster, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainingjob_cli.jobs.VERSION", "v0")
    with pytest.raises(JobError, match=r"the API server knows no trainingjobs.trainingjob.io"):
        Jobs(cluster.kubeconfig, namespace=jobs.namespace).get("quickstart")


def test_who_may_not_read_or_not_watch_is_told_so(cluster: LocalCluster, jobs: Jobs) -> None:
    user = f"jane-{jobs.namespace}"
    jane = Jobs(cluster.control_plane.client_kubeconfig(user), namespace=jobs.namespace)
    with pytest.raises(JobError, match=f'refuses: .* User "{user}" cannot get resource'):
        jane.get("quickstart")
    cluster.kubectl("create", "role", "reader", "--verb=get", "--resource=trainingjobs", "-n", jobs.namespace)
    cluster.kubectl("create", "rolebinding", "jane", "--role=reader", f"--user={user}", "-n", jobs.namespace)
    wait_until("she may read", lambda: may_read(jane))
    with pytest.raises(JobError, match=f'refuses: .* User "{user}" cannot watch resource'):
        next_with_phase(jane.follow("quickstart"), "Succeeded")


def may_read(jobs: Jobs) -> bool:
    try:
        return bool(jobs.get("quickstart"))
    except JobError:
        return False


@pytest.mark.parametrize(("phase", "code"), [("Succeeded", 0), ("Failed", 1)])
def test_watch_ends_with_the_jobs_success_as_exit_code(
    cluster: LocalCluster, jobs: Jobs, phase: str, code: int
) -> None:
    set_status(cluster, jobs, phase=phase, message="It is over.")
    result = CliRunner().invoke(
        app, ["watch", "quickstart", "-n", jobs.namespace, "--kubeconfig", str(cluster.kubeconfig)]
    )
    assert result.exit_code == code
    assert "It is over." in result.output


def test_status_as_json_is_the_status(cluster: LocalCluster, jobs: Jobs) -> None:
    set_status(cluster, jobs, phase="Running", progress={"step": 3, "steps": 9})
    result = CliRunner().invoke(
        app, ["status", "quickstart", "-n", jobs.namespace, "-o", "json", "--kubeconfig", str(cluster.kubeconfig)]
    )
    status = json.loads(result.output)
    assert (status["phase"], status["progress"]["step"]) == ("Running", 3)


def test_every_example_is_taken_by_the_api_server_and_means_what_the_models_say(
    cluster: LocalCluster, namespace: str
) -> None:
    from trainingjob_operator.api.spec import TrainingJobSpec

    for path in sorted(EXAMPLE.parent.glob("*.yaml")):
        answer = cluster.kubectl(
            "create", "--dry-run=server", "--validate=strict", "-n", namespace, "-o", "json", "-f", str(path)
        )
        stored = TrainingJobSpec.model_validate(json.loads(answer)["spec"])
        assert stored == TrainingJobSpec.model_validate(yaml.safe_load(path.read_text())["spec"])
