"""The resource as a real API server sees it: what it accepts, fills in, refuses, and what it says then."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from support.play import START, custom, spec
from trainingjob_local.cluster import LocalCluster
from trainingjob_operator.api.spec import TrainingJobSpec
from trainingjob_operator.api.status import TrainingJobStatus
from trainingjob_operator.core.facts import Job
from trainingjob_operator.core.manifests import children, pod, resolve
from trainingjob_operator.core.plan import Settings
from trainingjob_operator.core.pod_template import Place

Json = dict[str, Any]
SUSPEND_FIRST = (
    "can change only while the job is suspended: set runPolicy.suspend to true, change it in a second step, "
    "then set suspend to false"
)
FOR_GOOD = "cannot change, because the run's state depends on it: create a new TrainingJob with another outputUri"


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
        merged = _merge(spec(), changes or {})
        return {
            "apiVersion": "trainingjob.io/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": merged,
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


def _merge(base: Json, changes: Json) -> Json:
    """JSON merge patch: None removes."""
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


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
    assert found["spec"]["checkpoint"] == {"everySteps": 500, "keepLast": 2, "keepBest": 1, "drainSeconds": 120}
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
    assert "trainingjob.trainingjob.io/gpt" in jobs.kubectl("get", "all", "-o", "name")
    assert "Peak learning rate." in jobs.kubectl("explain", "tj.spec.training.optimizer.lr")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputUri": None}, "spec.outputUri: Required value"),
        ({"outputUri": "http://models/run"}, "spec.outputUri: Invalid value"),
        ({"training": {"steps": 0}}, "should be greater than or equal to 1"),
        ({"training": {"optimizer": {"lr": -1}}}, "should be greater than 0"),
        ({"training": {"optimizer": {"name": "adamax"}}}, 'spec.training.optimizer.name: Unsupported value: "adamax"'),
        ({"task": {"kind": "poetry"}}, 'supported values: "language-modeling", "image-classification"'),
        ({"training": {"stepz": 5}}, 'unknown field "spec.training.stepz"'),
        ({"checkpoint": {"drainSeconds": 1}}, "should be greater than or equal to 5"),
        ({"workers": {"replicas": 5000}}, "should be less than or equal to 4096"),
        ({"workers": {"resources": {"memory": "lots"}}}, "spec.workers.resources.memory: Invalid value"),
        ({"storage": {"credentialsSecret": "My Secret"}}, "spec.storage.credentialsSecret: Invalid value"),
        ({"image": "x" * 2000}, "spec.image: Too long"),
        ({"model": {"preset": None}}, "spec.model: Invalid value: exactly one of preset and transformer must be set"),
        (
            {"model": {"transformer": {"layers": 1, "dim": 8, "heads": 1}}},
            "spec.model: Invalid value: exactly one of preset and transformer must be set",
        ),
        (
            {"model": {"preset": None, "transformer": {"layers": 1, "dim": 100, "heads": 3}}},
            "spec.model.transformer.dim: Invalid value: dim (100) must be a multiple of heads (3)",
        ),
        (
            {"model": {"preset": None, "transformer": {"layers": 1, "dim": 12, "heads": 4}}},
            "spec.model.transformer.dim: Invalid value: dim / heads (3) must be even for rotary positions",
        ),
        (
            {"model": {"preset": None, "transformer": {"layers": 1, "dim": 64, "heads": 4, "kvHeads": 3}}},
            "spec.model.transformer.kvHeads: Invalid value: heads (4) must be a multiple of kvHeads (3)",
        ),
        (
            {"data": {"validation": {"fraction": 0.1, "uri": "s3://corpus/v"}}},
            "spec.data.validation: Invalid value: exactly one of fraction and uri must be set",
        ),
        (
            {"data": {"validation": {"fraction": 0.5}, "test": {"fraction": 0.5}}},
            "spec.data: Invalid value: validation.fraction and test.fraction leave nothing to train on",
        ),
        (
            {"data": {"prepare": {"clean": {"minChars": 9, "maxChars": 8}}}},
            "spec.data.prepare.clean.minChars: Invalid value: minChars (9) must not be above maxChars (8)",
        ),
        (
            {"training": {"optimizer": {"l2": 0.1, "weightDecay": 0.1}}},
            "spec.training.optimizer.l2: Invalid value: l2 is coupled and weightDecay decoupled decay: set one of them",
        ),
        (
            {"training": {"optimizer": {"nesterov": True}}},
            "spec.training.optimizer.nesterov: Invalid value: nesterov is for name sgd with a momentum above 0",
        ),
        (
            {"training": {"schedule": {"name": "points"}}},
            "spec.training.schedule.points: Invalid value: points are given exactly if name is points",
        ),
        (
            {
                "training": {
                    "schedule": {"name": "points", "points": [{"step": 5, "ratio": 1}, {"step": 5, "ratio": 0}]}
                }
            },
            "spec.training.schedule.points: Invalid value: points must be in rising order of step, without repetition",
        ),
        (
            {"runPolicy": {"startDeadlineSeconds": 61, "activeDeadlineSeconds": 60}},
            "spec.runPolicy.startDeadlineSeconds: Invalid value: "
            "startDeadlineSeconds (61) must not be above activeDeadlineSeconds (60)",
        ),
        (
            {"storage": {"serviceAccountName": "trainer"}},
            "spec.storage: Invalid value: credentialsSecret and serviceAccountName exclude each other: remove one",
        ),
        (
            {"task": {"kind": "image-classification"}},
            "spec.data.train.format: Invalid value: data.train.format is jsonl: image-classification reads parquet",
        ),
        (
            {"workers": {"replicas": 9, "resources": {"gpus": 8}}},
            "spec.training.globalBatchSize: Invalid value: training.globalBatchSize (64) is below the number of ranks "
            "(72): raise it or ask for fewer workers",
        ),
        ({"outputUri": None}, "spec.outputUri: Required value: outputUri is required for task.kind language-modeling"),
        ({"data": None}, "spec.data: Required value: data is required for task.kind language-modeling"),
        ({"training": None}, "spec.training: Required value: training is required for task.kind language-modeling"),
        ({"task": {"kind": "custom"}}, "spec.task.custom: Required value: custom is required for kind custom"),
        (
            {"task": {"custom": {"command": ["true"]}}},
            "spec.task.custom: Forbidden: custom is not for kind language-modeling: set kind to custom, or remove it",
        ),
        (
            {"task": {"kind": "custom", "custom": {"command": ["true"]}}},
            "spec.model: Forbidden: model is not for task.kind custom, whose command decides about it: remove it",
        ),
        (
            {"task": {"kind": "custom", "custom": {"command": []}}},
            "spec.task.custom.command: Invalid value: 0: spec.task.custom.command in body should have at least 1 items",
        ),
        (
            {"workers": {"replicas": 2, "minReplicas": 3}},
            "spec.workers.minReplicas: Invalid value: workers.minReplicas (3) must not be above workers.replicas (2)",
        ),
        ({"workers": {"minReplicas": 0}}, "should be greater than or equal to 1"),
        (
            {"workers": {"minReplicas": 1}, "runPolicy": {"queueName": "research"}},
            "spec.workers.minReplicas: Forbidden: workers.minReplicas and runPolicy.queueName exclude each other",
        ),
        (
            {"workers": {"template": {"labels": {"trainingjob.io/member": "true"}}}},
            "spec.workers.template.labels: Invalid value: labels: trainingjob.io/* belongs to the operator",
        ),
        (
            {"workers": {"template": {"env": [{"name": "RAY_AUTH_MODE", "value": "none"}]}}},
            "spec.workers.template.env: Invalid value: env: TRAININGJOB_* and RAY_AUTH_* belong to the operator",
        ),
        (
            {"workers": {"template": {"volumes": [{"name": "trainingjob-tmp", "emptyDir": {}}]}}},
            "spec.workers.template.volumes: Invalid value: volumes: trainingjob-* belongs to the operator",
        ),
        (
            {"workers": {"template": {"volumeMounts": [{"name": "nope", "mountPath": "/x"}]}}},
            "spec.workers.template.volumeMounts: Invalid value: volumeMounts: every name must be that of one of the "
            "template's volumes",
        ),
        (
            {"workers": {"template": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}}},
            "spec.workers.template.env[1]: Duplicate value",
        ),
    ],
)
def test_a_wrong_spec_is_refused_with_a_message_that_helps(shared: Jobs, changes: Json, message: str) -> None:
    said = shared.refusal("apply", "-f", "-", stdin=yaml.safe_dump(shared.manifest(changes)))
    assert message in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a" * 47, "metadata.name: Invalid value: the name has 47 characters: at most 46 are allowed"),
        ("gpt.small", "metadata.name: Invalid value: the name must begin with a lower-case letter"),
        ("1gpt", "metadata.name: Invalid value: the name must begin with a lower-case letter"),
    ],
)
def test_a_name_that_pods_cannot_bear_is_refused(shared: Jobs, name: str, message: str) -> None:
    assert message in shared.refusal("apply", "-f", "-", stdin=yaml.safe_dump(shared.manifest(name=name)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"outputUri": "s3://models/other"}, "outputUri"),
        ({"task": {"kind": "image-classification"}, "data": {"train": {"format": "parquet"}}}, "task.kind"),
        ({"data": {"train": {"uri": "s3://corpus/other"}}}, "data.train"),
        ({"data": {"test": {"fraction": 0.2}}}, "data.test"),
        ({"data": {"prepare": {"tokenizer": {"vocabSize": 999}}}}, "data.prepare.tokenizer"),
        ({"model": {"preset": "gpt-3m"}}, "model"),
        ({"training": {"seed": 2}}, "training.seed"),
        ({"training": {"globalBatchSize": 128}}, "training.globalBatchSize"),
        ({"training": {"emaDecay": 0.5}}, "training.emaDecay"),
    ],
)
@pytest.mark.parametrize("suspended", [False, True])
def test_what_the_state_depends_on_never_changes(jobs: Jobs, changes: Json, field: str, suspended: bool) -> None:
    jobs.apply({"runPolicy": {"suspend": suspended}})
    patch = json.dumps({"spec": changes})
    said = jobs.refusal("patch", "tj", "gpt", "--type=merge", "-p", patch)
    assert f"spec.{field}: Forbidden: {field} {FOR_GOOD}" in said


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"image": "other:1"}, "image"),
        ({"workers": {"resources": {"cpu": "2"}}}, "workers.resources"),
        ({"workers": {"template": {"affinity": {"nodeAffinity": {}}}}}, "workers.template"),
        ({"storage": {"region": "eu-west-1"}}, "storage"),
        ({"training": {"steps": 200}}, "training.steps"),
        ({"training": {"microBatchSize": 1}}, "training.microBatchSize"),
        ({"checkpoint": {"everySteps": 7}}, "checkpoint"),
        ({"evaluation": {"everySteps": 7}}, "evaluation"),
        ({"runPolicy": {"onExistingRun": "Overwrite"}}, "runPolicy.onExistingRun"),
    ],
)
def test_what_a_resume_takes_up_changes_only_while_suspended(jobs: Jobs, changes: Json, field: str) -> None:
    jobs.apply()
    as_patch = ("patch", "tj", "gpt", "--type=merge", "-p")
    refused = f"spec.{field}: Forbidden: {field} {SUSPEND_FIRST}"
    assert refused in jobs.refusal(*as_patch, json.dumps({"spec": changes}))
    suspending = _merge({"runPolicy": {"suspend": True}}, changes)
    assert refused in jobs.refusal(*as_patch, json.dumps({"spec": suspending})), "not in the same step"
    jobs.patch({"runPolicy": {"suspend": True}})
    jobs.patch(changes)
    resuming = {"runPolicy": {"suspend": None}}
    jobs.patch(resuming)
    assert "suspend" not in jobs.get()["spec"]["runPolicy"]


def test_a_custom_job_needs_its_command_and_nothing_else(jobs: Jobs) -> None:
    def task(*arguments: str) -> Json:
        return {"task": {"kind": "custom", "custom": {"command": ["python", "train.py"], "args": list(arguments)}}}

    manifest = {**jobs.manifest(), "spec": task()}
    jobs.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    assert jobs.get()["spec"]["task"] == task()["task"]
    as_patch = ("patch", "tj", "gpt", "--type=merge", "-p")
    refused = jobs.refusal(*as_patch, json.dumps({"spec": task("--lr=1")}))
    assert f"spec.task.custom: Forbidden: task.custom {SUSPEND_FIRST}" in refused
    assert f"outputUri {FOR_GOOD}" in jobs.refusal(*as_patch, json.dumps({"spec": {"outputUri": "s3://models/run"}}))
    jobs.patch({"runPolicy": {"suspend": True}})
    jobs.patch(task("--lr=1"))


def test_limits_of_the_run_may_always_change(jobs: Jobs) -> None:
    jobs.apply()
    jobs.patch({"runPolicy": {"maxRestarts": 9, "activeDeadlineSeconds": 60, "podsTTLSecondsAfterFinished": 0}})
    jobs.patch({"runPolicy": {"activeDeadlineSeconds": None, "podsTTLSecondsAfterFinished": None}})
    assert jobs.get()["spec"]["runPolicy"] == {"maxRestarts": 9, "onExistingRun": "Resume"}


NOT_ELASTIC = (
    "spec.workers.replicas: Forbidden: workers.replicas can change while the job runs only if workers.minReplicas is "
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
    assert "spec.workers: Forbidden: workers.minReplicas cannot be added or removed" in said


def test_the_least_number_of_workers_changes_only_while_suspended(jobs: Jobs) -> None:
    jobs.apply({"workers": {"minReplicas": 2}})
    patch = ("patch", "tj", "gpt", "--type=merge", "-p", '{"spec":{"workers":{"minReplicas":1}}}')
    assert f"spec.workers.minReplicas: Forbidden: workers.minReplicas {SUSPEND_FIRST}" in jobs.refusal(*patch)
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
