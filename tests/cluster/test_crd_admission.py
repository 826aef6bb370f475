"""The resource as a real API server sees it: what it accepts, fills in, refuses, and what it says then."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from support.bad_specs import FOR_GOOD, SUSPEND_FIRST, merged
from support.play import START, custom, spec
from trainingjob_local.cluster import LocalCluster
from trainingjob_operator.api.spec import TrainingJobSpec
from trainingjob_operator.api.status import TrainingJobStatus
from trainingjob_operator.core.facts import Job
from trainingjob_operator.core.manifests import children, pod, resolve
from trainingjob_operator.core.plan import Settings
from trainingjob_operator.core.pod_template import Place

Json = dict[str, Any]


class Jobs:
    """TrainingJobs of one namespace, by kubectl."""

    def __init__(self, cluster: LocalCluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def apply(self, changes: Json | None = None, name: str = "gpt", *flags: str) -> str:
        return self.kubectl("apply", *flags, "-f", "-", stdin=yaml.safe_dump(self.manifest(changes, name)))

    def manifest(self, changes: Json | None = None, name: str = "gpt") -> Json:
        return {
            "apiVersion": "trainingjob.io/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": merged(spec(), changes or {}),
        }

    def patch(self, changes: Json) -> str:
        return self.kubectl("patch", "tj", "gpt", "--type=merge", "-p", json.dumps({"spec": changes}))

    def get(self) -> Json:
        found: Json = json.loads(self.kubectl("get", "tj", "gpt", "-o", "json"))
        return found

    def refusal(self, *arguments: Any, **keywords: Any) -> str:
        """What kubectl says when the API server refuses."""
        with pytest.raises(RuntimeError) as caught:
            self.kubectl(*arguments, **keywords)
        return str(caught.value)


@pytest.fixture(scope="module")
def shared(cluster: LocalCluster, make_namespace: Callable[[str], str]) -> Iterator[Jobs]:
    """One namespace for all tests of this file: making one takes longer than most of them."""
    namespace = make_namespace("crd")
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    yield Jobs(cluster, namespace)
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture
def jobs(shared: Jobs) -> Iterator[Jobs]:
    """No TrainingJob before, none after."""
    yield shared
    shared.kubectl("delete", "tj", "--all")


def test_defaults_are_filled_in_and_equal_the_models(jobs: Jobs) -> None:
    jobs.apply()
    found = jobs.get()
    assert found["status"] == {"observedGeneration": -1}
    assert found["spec"]["checkpoint"] == {
        "keepLast": 2,
        "keepBest": 1,
        "bestMetric": "loss",
        "bestMode": "min",
        "drainSeconds": 120,
    }
    assert found["spec"]["training"]["optimizer"]["betas"] == [0.9, 0.95]
    assert "suspend" not in found["spec"]["runPolicy"]
    assert TrainingJobSpec.model_validate(found["spec"]) == TrainingJobSpec.model_validate(spec())


def test_a_second_apply_changes_nothing(jobs: Jobs) -> None:
    jobs.apply()
    assert "unchanged" in jobs.apply()
    assert jobs.kubectl("diff", "-f", "-", stdin=yaml.safe_dump(jobs.manifest())) == ""
    assert jobs.get()["metadata"]["generation"] == 1


def test_kubectl_knows_the_resource(jobs: Jobs) -> None:
    jobs.apply()
    assert jobs.kubectl("get", "tj").split("\n")[0].split() == [
        "NAME",
        "PHASE",
        "PROGRESS",
        "LOSS",
        "WORKERS",
        "RESTARTS",
        "AGE",
    ]
    assert jobs.kubectl("get", "tj", "-o", "wide").split("\n")[0].split()[-2:] == ["AGE", "MESSAGE"]
    assert "trainingjob.trainingjob.io/gpt" in jobs.kubectl("get", "all", "-o", "name")
    assert "Peak learning rate." in jobs.kubectl("explain", "tj.spec.training.optimizer.lr")


def test_amounts_may_be_numbers_as_in_pods(jobs: Jobs) -> None:
    amounts = {"cpu": 8, "memory": 2**36}
    manifest = jobs.manifest()
    manifest["spec"]["workers"] = {"resources": amounts}
    jobs.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    stored = jobs.get()["spec"]
    assert amounts.items() <= stored["workers"]["resources"].items()
    resources = TrainingJobSpec.model_validate(stored).workers.resources
    assert (resources.cpu, resources.memory) == ("8", "68719476736")
    for amount, words in ((0, "should be greater than or equal to 1"), (0.5, "must be of type integer,string")):
        wrong = yaml.safe_dump(jobs.manifest({"workers": {"resources": {"cpu": amount}}}, "wrong"))
        assert f"spec.workers.resources.cpu in body {words}" in jobs.refusal("apply", "-f", "-", stdin=wrong)


def test_a_custom_job_needs_its_command_and_nothing_else(jobs: Jobs) -> None:
    def task(*arguments: str) -> Json:
        return {"task": {"kind": "custom", "custom": {"command": ["python", "train.py"], "args": list(arguments)}}}

    manifest = {**jobs.manifest(), "spec": task()}
    jobs.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    assert jobs.get()["spec"]["task"] == task()["task"]
    as_patch = ("patch", "tj", "gpt", "--type=merge", "-p")
    refused = jobs.refusal(*as_patch, json.dumps({"spec": task("--lr=1")}))
    assert f"spec: Forbidden: task.custom {SUSPEND_FIRST}" in refused
    assert f"outputUri {FOR_GOOD}" in jobs.refusal(*as_patch, json.dumps({"spec": {"outputUri": "s3://models/run"}}))
    jobs.patch({"runPolicy": {"suspend": True}})
    jobs.patch(task("--lr=1"))


def test_limits_of_the_run_may_always_change(jobs: Jobs) -> None:
    jobs.apply()
    jobs.patch({"runPolicy": {"maxRestarts": 9, "activeDeadlineSeconds": 60, "podsTTLSecondsAfterFinished": 0}})
    jobs.patch({"runPolicy": {"activeDeadlineSeconds": None, "podsTTLSecondsAfterFinished": None}})
    assert jobs.get()["spec"]["runPolicy"] == {"maxRestarts": 9, "onExistingRun": "Resume"}


NOT_ELASTIC = (
    "spec: Forbidden: workers.replicas can change while the job runs only if workers.minReplicas is "
    "set, and it is not: set runPolicy.suspend to true, change it in a second step, then set suspend to false; or "
    "create a new TrainingJob with workers.minReplicas"
)


def test_a_running_job_that_is_not_elastic_cannot_be_scaled_a_suspended_one_can(jobs: Jobs) -> None:
    jobs.apply()
    assert NOT_ELASTIC in jobs.refusal("scale", "tj", "gpt", "--replicas=3")
    assert NOT_ELASTIC in jobs.refusal(
        "patch", "tj", "gpt", "--type=merge", "-p", '{"spec":{"workers":{"replicas":1}}}'
    )
    jobs.patch({"runPolicy": {"suspend": True}})
    jobs.kubectl("scale", "tj", "gpt", "--replicas=3")
    assert jobs.get()["spec"]["workers"]["replicas"] == 3


def test_an_elastic_job_can_be_scaled_within_its_limits(jobs: Jobs) -> None:
    jobs.apply({"workers": {"minReplicas": 2}, "training": {"globalBatchSize": 8}})
    jobs.kubectl("scale", "tj/gpt", "--replicas=8")
    assert jobs.get()["spec"]["workers"]["replicas"] == 8
    said = jobs.refusal("scale", "tj/gpt", "--replicas=1")
    assert (
        "spec.workers.minReplicas: Invalid value: workers.minReplicas (2) must not be above workers.replicas (1)"
        in said
    )
    said = jobs.refusal("scale", "tj/gpt", "--replicas=9")
    assert "training.globalBatchSize (8) is below the number of ranks (9): raise it or ask for fewer workers" in said


@pytest.mark.parametrize(("least", "changed"), [(None, 1), (2, None)])
@pytest.mark.parametrize("suspended", [False, True])
def test_a_job_is_elastic_from_its_creation_or_never(
    jobs: Jobs, least: int | None, changed: int | None, suspended: bool
) -> None:
    jobs.apply({"workers": {"minReplicas": least}, "runPolicy": {"suspend": suspended}})
    patch = json.dumps({"spec": {"workers": {"minReplicas": changed}}})
    said = jobs.refusal("patch", "tj", "gpt", "--type=merge", "-p", patch)
    assert "spec: Forbidden: workers.minReplicas cannot be added or removed" in said


def test_the_least_number_of_workers_changes_only_while_suspended(jobs: Jobs) -> None:
    jobs.apply({"workers": {"minReplicas": 2}})
    patch = ("patch", "tj", "gpt", "--type=merge", "-p", '{"spec":{"workers":{"minReplicas":1}}}')
    assert f"spec: Forbidden: workers.minReplicas {SUSPEND_FIRST}" in jobs.refusal(*patch)
    jobs.patch({"runPolicy": {"suspend": True}})
    jobs.kubectl(*patch)
    assert jobs.get()["spec"]["workers"]["minReplicas"] == 1


def test_a_whole_status_is_accepted_as_it_is_written(jobs: Jobs) -> None:
    jobs.apply()
    found = jobs.get()
    status = {
        "observedGeneration": 1,
        "phase": "Running",
        "message": "Training on 2 ranks.",
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Running",
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
                "observedGeneration": 1,
            }
        ],
        "stage": "Train",
        "selector": "trainingjob.io/job-name=gpt,trainingjob.io/role=train",
        "workers": {"desired": 2, "ready": 2},
        "progress": {"step": 3, "steps": 10, "percent": 30, "summary": "3/10 (30%)", "loss": 2.5, "eta": "1m01s"},
        "checkpoint": {"latestStep": 2, "latestUri": "s3://models/run/c", "bestStep": 2, "bestLoss": 2.25},
        "evaluation": {"split": "test", "step": 3, "metrics": {"loss": 2.5, "accuracy": 0.5}},
        "restarts": {"total": 1, "withoutProgress": 1, "committedStep": 2, "lastFailureTime": "2026-01-01T00:00:00Z"},
        "history": [{"time": "2026-01-01T00:00:00Z", "class": "Killed", "cause": "x", "pod": "gpt-train-1-1"}],
        "pods": [{"role": "train", "index": 0, "incarnation": 1, "uid": "u", "notBefore": "2026-01-01T00:00:00Z"}],
        "resolved": {
            "image": "i",
            "templateVersion": 1,
            "configHash": "h",
            "replicas": 2,
            "ranksPerPod": 1,
            "worldSize": 2,
        },
        "result": {"modelUri": "s3://models/run/model", "reportUri": "s3://models/run/reports"},
        "startTime": "2026-01-01T00:00:00Z",
        "completionTime": "2026-01-01T00:00:00Z",
    }
    written = TrainingJobStatus.model_validate(status).wire()
    path = f"/apis/trainingjob.io/v1alpha1/namespaces/{jobs.namespace}/trainingjobs/gpt/status"
    jobs.kubectl("replace", "--raw", path, "-f", "-", stdin=json.dumps({**found, "status": written}))
    assert jobs.get()["status"] == written
    assert "3/10 (30%)" in jobs.kubectl("get", "tj")
    stored = json.loads(jobs.kubectl("get", "tj", "gpt", "-o", "json", "--show-managed-fields"))
    owned = [entry["fieldsV1"] for entry in stored["metadata"]["managedFields"] if entry.get("subresource") == "status"]
    assert owned == [{"f:status": {}}], "who owns what of a status is half of a stored job"


@pytest.mark.parametrize(
    ("place", "fields"),
    [
        (Place("Check", 0, 1, 1), spec()),
        (Place("PrepareData", 1, 2, 1), spec()),
        (Place("Train", 1, 2, 1), spec()),
        (Place("Train", 1, 2, 1), custom()),
    ],
)
def test_the_pods_pass_pod_security_restricted(shared: Jobs, place: Place, fields: Json) -> None:
    parsed = TrainingJobSpec.model_validate(fields)
    job = Job("gpt", shared.namespace, "job-uid", 1, "1", START, False, parsed, TrainingJobStatus())
    resolved = resolve(job, parsed, Settings("registry.example/trainer:1"))
    for manifest in (*children(job, parsed, resolved), pod(job, parsed, resolved, place)):
        said = shared.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))
        assert "created (server dry run)" in said


def test_the_api_server_would_refuse_a_pod_that_is_not_restricted(shared: Jobs) -> None:
    """The test above can fail."""
    parsed = TrainingJobSpec.model_validate(spec())
    job = Job("gpt", shared.namespace, "job-uid", 1, "1", START, False, parsed, TrainingJobStatus())
    manifest = pod(job, parsed, resolve(job, parsed, Settings("i")), Place("Train", 0, 1, 1))
    del manifest["spec"]["containers"][0]["securityContext"]["capabilities"]
    said = shared.refusal("create", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))
    assert "violates PodSecurity" in said
