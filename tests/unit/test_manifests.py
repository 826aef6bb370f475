"""The objects that a job gets."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.play import START, custom, spec
from trainingjob_operator.api.spec import TrainingJobSpec
from trainingjob_operator.api.status import TrainingJobStatus
from trainingjob_operator.core.facts import Job, PodFacts
from trainingjob_operator.core.manifests import children, differs_for_good, pod, pod_group, resolve
from trainingjob_operator.core.plan import Settings
from trainingjob_operator.core.pod_template import BUILDERS, Place
from trainingjob_trainer.config import JobConfig, JobSpec, PodConfig, TrainerSpec

TEMPLATE = {
    "labels": {"team": "a"},
    "annotations": {"karpenter.sh/do-not-disrupt": "false"},
    "nodeSelector": {"gpu": "h200"},
    "affinity": {"podAntiAffinity": {}, "nodeAffinity": {"x": 1}},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "env": [
        {"name": "HOME", "value": "/elsewhere"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ],
    "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "c"}}],
    "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
    "schedulerName": "other",
    "priorityClassName": "high",
    "imagePullSecrets": [{"name": "registry"}],
}


def job(whole: dict[str, Any] | None = None, **changes: Any) -> tuple[Job, TrainingJobSpec]:
    parsed = TrainingJobSpec.model_validate(whole or spec(**changes))
    made = Job("gpt", "research", "job-uid", 1, "1", START, False, parsed, TrainingJobStatus())
    return made, parsed


def built(place: Place, **changes: Any) -> dict[str, Any]:
    made, parsed = job(**changes)
    return pod(made, parsed, resolve(made, parsed, Settings("trainer:1")), place)


def env(manifest: dict[str, Any]) -> dict[str, Any]:
    entries = manifest["spec"]["containers"][0]["env"]
    assert len({e["name"] for e in entries}) == len(entries)
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in entries}


WORKER = Place("Train", 1, 2, 3)


def test_name_labels_and_host_name_say_what_the_pod_stands_for() -> None:
    manifest = built(WORKER)
    assert manifest["metadata"]["name"] == "gpt-train-1-3"
    labels = {k.removeprefix("trainingjob.io/"): v for k, v in manifest["metadata"]["labels"].items()}
    assert labels == {
        "job-name": "gpt",
        "job-uid": "job-uid",
        "role": "train",
        "index": "1",
        "incarnation": "3",
        "member": "true",
        "app.kubernetes.io/managed-by": "trainingjob-operator",
    }
    assert (manifest["spec"]["hostname"], manifest["spec"]["subdomain"]) == ("train-1", "gpt-tj")


def test_the_pod_reads_back_as_the_facts_it_was_built_from() -> None:
    manifest = built(WORKER)
    manifest["metadata"] |= {"uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}
    facts = PodFacts.from_object(manifest)
    assert (facts.role, facts.index, facts.incarnation, facts.job_uid) == ("train", 1, 3, "job-uid")
    assert facts.member
    assert facts.created_at == START


def test_the_head_is_found_by_its_place_under_every_incarnation() -> None:
    assert env(built(WORKER))["TRAININGJOB_HEAD"] == "train-0.gpt-tj"
    assert env(built(Place("PrepareData", 1, 2, 1)))["TRAININGJOB_HEAD"] == "prepare-0.gpt-tj"


@pytest.mark.parametrize(
    ("place", "command", "replicas"),
    [
        (Place("Check", 0, 1, 1), "check", "1"),
        (Place("PrepareData", 1, 2, 1), "prepare-data", "2"),
        (WORKER, "train", "2"),
    ],
)
def test_the_agent_is_told_its_stage(place: Place, command: str, replicas: str) -> None:
    manifest = built(place)
    container = manifest["spec"]["containers"][0]
    assert container["command"] == ["python", "-m", "trainingjob_trainer.agent", command]
    assert env(manifest)["TRAININGJOB_REPLICAS"] == replicas


def test_only_workers_ask_for_gpus() -> None:
    workers = {"replicas": 2, "resources": {"cpu": "8", "memory": "64Gi", "gpus": 4, "gpuResourceName": "amd.com/gpu"}}
    worker, check = built(WORKER, workers=workers), built(Place("Check", 0, 1, 1), workers=workers)
    limits = {"cpu": "8", "memory": "64Gi", "amd.com/gpu": "4"}
    assert worker["spec"]["containers"][0]["resources"] == {"requests": limits, "limits": limits}
    assert set(check["spec"]["containers"][0]["resources"]["limits"]) == {"cpu", "memory"}


def test_the_template_is_merged_in() -> None:
    manifest = built(WORKER, workers={"replicas": 2, "template": TEMPLATE})
    pod_spec, container = manifest["spec"], manifest["spec"]["containers"][0]
    assert manifest["metadata"]["labels"]["team"] == "a"
    assert manifest["metadata"]["annotations"] == {
        "karpenter.sh/do-not-disrupt": "false",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }
    assert pod_spec["nodeSelector"] == {"gpu": "h200"}
    assert pod_spec["affinity"] == TEMPLATE["affinity"]
    assert [t["key"] for t in pod_spec["tolerations"]] == [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
        "gpu",
    ]
    assert (pod_spec["schedulerName"], pod_spec["priorityClassName"]) == ("other", "high")
    assert pod_spec["imagePullSecrets"] == [{"name": "registry"}]
    assert pod_spec["volumes"][-1] == {"name": "cache", "persistentVolumeClaim": {"claimName": "c"}}
    assert container["volumeMounts"][-1] == {"name": "cache", "mountPath": "/cache", "readOnly": False}
    assert env(manifest)["HOME"] == "/elsewhere"
    assert env(manifest)["TOKEN"] == {"secretKeyRef": {"name": "s", "key": "k"}}


def test_what_a_pod_writes_to_lies_on_an_emptydir_though_its_root_is_read_only() -> None:
    """The caches of Inductor and Triton among it."""
    manifest = built(WORKER)
    container, variables = manifest["spec"]["containers"][0], env(manifest)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    empty = {volume["name"] for volume in manifest["spec"]["volumes"] if "emptyDir" in volume}
    mounts = [m for m in container["volumeMounts"] if m["name"] in empty and not m.get("readOnly", False)]
    for name in ("HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR", "RAY_TMPDIR"):
        assert any(Path(variables[name]).is_relative_to(mount["mountPath"]) for mount in mounts), name


def test_prepare_pods_are_not_sent_to_the_nodes_of_workers() -> None:
    manifest = built(Place("Check", 0, 1, 1), workers={"replicas": 2, "template": TEMPLATE})
    assert not {"nodeSelector", "affinity"} & set(manifest["spec"])
    assert env(manifest)["TOKEN"]


def test_credentials_come_from_the_secret_or_the_service_account() -> None:
    by_secret = built(WORKER)
    assert env(by_secret)["AWS_SESSION_TOKEN"] == {
        "secretKeyRef": {"name": "s3", "key": "AWS_SESSION_TOKEN", "optional": True}
    }
    by_account = built(WORKER, storage={"serviceAccountName": "trainer"})
    assert by_account["spec"]["serviceAccountName"] == "trainer"
    assert not any(name.startswith("AWS_") for name in env(by_account))


def test_the_grace_period_is_the_time_to_drain() -> None:
    assert built(WORKER, checkpoint={"drainSeconds": 77})["spec"]["terminationGracePeriodSeconds"] == 77


def test_children_are_owned_and_named_so_that_none_is_mistaken() -> None:
    made, parsed = job()
    resolved = resolve(made, parsed, Settings("trainer:1"))
    config_map, secret, service = children(made, parsed, resolved)
    assert config_map["metadata"]["name"] == f"gpt-tj-{resolved.config_hash}"
    assert config_map["immutable"] is True
    assert secret["metadata"]["name"] == "gpt-tj-job-uid"
    assert "data" not in secret
    assert "stringData" not in secret
    assert service["spec"]["selector"] == {"trainingjob.io/job-uid": "job-uid", "trainingjob.io/member": "true"}
    assert service["spec"]["publishNotReadyAddresses"] is True
    for child in (config_map, secret, service, built(WORKER)):
        (owner,) = child["metadata"]["ownerReferences"]
        assert owner["uid"] == "job-uid"
        assert owner["controller"] is True
        assert owner["blockOwnerDeletion"] is True


def test_the_pod_mounts_the_children_of_its_run() -> None:
    made, parsed = job()
    resolved = resolve(made, parsed, Settings("trainer:1"))
    volumes = {v["name"]: v for v in pod(made, parsed, resolved, WORKER)["spec"]["volumes"]}
    config_map, secret, _ = children(made, parsed, resolved)
    assert volumes["trainingjob-config"]["configMap"]["name"] == config_map["metadata"]["name"]
    assert volumes["trainingjob-ray"]["secret"]["secretName"] == secret["metadata"]["name"]


def test_the_trainer_reads_the_configuration_that_was_asked_for() -> None:
    made, parsed = job(runPolicy={"maxRestarts": 7, "onExistingRun": "Overwrite"})
    config_map = children(made, parsed, resolve(made, parsed, Settings("trainer:1")))[0]
    config = JobConfig.model_validate(json.loads(config_map["data"]["config.json"]))
    asked = TrainerSpec(**{name: getattr(parsed, name) for name in JobSpec.model_fields})
    assert config.identity() == asked.identity()
    assert config.plan_hash() == asked.plan_hash()
    assert (config.name, config.max_restarts, config.on_existing_run) == ("gpt", 7, "Overwrite")


def test_a_trainer_that_is_older_than_the_operator_reads_what_asks_for_nothing_new() -> None:
    """Users pin images, and unknown fields are refused: of those at their defaults an older trainer hears nothing."""
    asked = spec(training={"steps": 100, "optimizer": {"lr": 0.01}})
    made, parsed = job(TrainingJobSpec.model_validate(asked).wire())  # with all defaults, as the API server keeps it
    config_map = children(made, parsed, resolve(made, parsed, Settings("trainer:1")))[0]
    told = json.loads(config_map["data"]["config.json"])
    assert told["training"] == asked["training"]
    assert set(told) - set(asked) == {"name", "namespace", "ranksPerPod", "fewestPods", "podMemory", "maxRestarts"}
    assert (
        JobConfig.model_validate(told).plan_hash()
        == TrainerSpec(**{name: getattr(parsed, name) for name in JobSpec.model_fields}).plan_hash()
    )


def test_another_configuration_has_another_name() -> None:
    (one, a), (two, b) = job(), job(training={"steps": 200})
    assert resolve(one, a, Settings("i")).config_hash != resolve(two, b, Settings("i")).config_hash
    assert resolve(one, a, Settings("i")).config_hash == resolve(one, a, Settings("other")).config_hash


def test_the_world_has_one_rank_a_gpu() -> None:
    made, parsed = job(workers={"replicas": 3, "resources": {"gpus": 8}})
    assert resolve(made, parsed, Settings("i")).world_size == 24
    made, parsed = job(workers={"replicas": 3})
    assert resolve(made, parsed, Settings("i")).world_size == 3


def test_a_template_version_that_is_gone_is_built_as_the_newest() -> None:
    made, parsed = job()
    resolved = resolve(made, parsed, Settings("i", template_version=max(BUILDERS) + 1))
    assert pod(made, parsed, resolved, WORKER)["spec"]["containers"]


def test_only_what_is_immutable_in_a_pod_group_makes_it_differ_for_good() -> None:
    def group(**workers: Any) -> dict[str, Any]:
        made, parsed = job(workers=workers)
        return pod_group(made, parsed, resolve(made, parsed, Settings("i", pod_groups=True)))

    two, three = group(replicas=2), group(replicas=3)
    assert two["spec"] != three["spec"]
    assert not differs_for_good(two, three)
    assert differs_for_good(two, group(replicas=2, template={"priorityClassName": "high"}))
    assert differs_for_good({"metadata": {}}, two)


def test_a_custom_command_gets_no_ray_and_no_token_for_it() -> None:
    made, parsed = job(custom())
    resolved = resolve(made, parsed, Settings("trainer:1"))
    objects = children(made, parsed, resolved)
    assert [o["kind"] for o in objects] == ["ConfigMap", "Service"]
    config = PodConfig.model_validate_json(objects[0]["data"]["config.json"])
    assert config.task.custom is not None
    assert config.task.custom.command == ["python", "train.py"]
    manifest = pod(made, parsed, resolved, WORKER)
    (container,) = manifest["spec"]["containers"]
    assert container["command"] == ["python", "-m", "trainingjob_trainer.agent", "custom"]
    assert not any(name.startswith("RAY_") for name in env(manifest))
    assert env(manifest)["TRAININGJOB_INCARNATION"] == "3"
    assert {v["name"] for v in manifest["spec"]["volumes"]} == {
        "trainingjob-config",
        "trainingjob-tmp",
        "trainingjob-home",
        "trainingjob-shm",
    }
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in manifest["spec"]["volumes"]}
