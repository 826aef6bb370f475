"""Whole runs of language modelling: undisturbed, disturbed in every way that one run can be, and deleted."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.held import Held, held
from support.manifests import language_job
from support.runs import RUN_PATIENCE, Run, wait_until
from trainingjob_local.crash import crash
from trainingjob_local.sample_data import manual

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

Object = dict[str, Any]
JOB = "trainingjob.io/job-name"


def loss_series(run: Run) -> list[tuple[int, float]]:
    """(step, loss) of the whole run, as its report tells it."""
    return [(point["step"], point["loss"]) for point in run.report()["history"]["train"]]


def model_weights(run: Run) -> bytes:
    return run.read(run.relative(run.result()["modelUri"]).rstrip("/") + "/model.safetensors")


@pytest.fixture(scope="module")
def baseline(operator: Any, start_job: Any, cluster: "LocalCluster") -> Run:
    """Run 1: nobody disturbs it, but the operator is restarted in its middle."""
    with held(cluster.s3.endpoint) as way:
        way.let(20)
        run: Run = start_job(on_the(way), "baseline")
        run.wait_commit()
        before = uids(run)
        operator.restart()
        way.let(math.inf)
        run.wait_succeeded()
    after = {
        int(pod["metadata"]["labels"]["trainingjob.io/index"]): pod["metadata"]["uid"]
        for pod in run.kubectl.json("pods", "-l", "trainingjob.io/job-name=baseline,trainingjob.io/role=train")["items"]
    }
    # A worker that is not done when the head is gets deleted; a successor would have another uid.
    assert after[0] == before[0]
    assert after.items() <= before.items(), "the operator's restart touched the pods"
    return run


def on_the(way: Held) -> Callable[[str, str, str], Object]:
    """The language model, with its storage at the end of this way."""
    return lambda name, bucket, _: language_job(name, bucket, way.endpoint)


def test_a_job_goes_from_raw_text_to_an_evaluated_exported_model(baseline: Run) -> None:
    status = baseline.status()
    assert status["progress"]["step"] == 400
    assert status["progress"]["percent"] == 100
    assert status["restarts"]["total"] == 0
    assert status["evaluation"]["split"] == "test"
    conditions = {c["type"]: c["status"] for c in status["conditions"]}
    assert conditions["Finished"] == conditions["Complete"] == conditions["Ready"] == "True"
    losses = [loss for _, loss in loss_series(baseline)]
    assert len(losses) == 400
    assert sum(losses[-20:]) / 20 < 0.8 * losses[0], "the loss did not fall"


def test_the_evaluation_in_the_status_is_what_a_stranger_computes_from_the_exported_model(
    baseline: Run, tmp_path: Path
) -> None:
    recomputed = baseline.recomputed_metrics(tmp_path)
    reported = baseline.status()["evaluation"]["metrics"]
    for name in ("loss", "perplexity", "bitsPerByte", "accuracy"):
        assert recomputed[name] == pytest.approx(reported[name], rel=1e-4), name


def test_two_prepare_pods_each_wrote_a_shard(baseline: Run) -> None:
    manifest = json.loads(baseline.read("data/manifest.json"))
    writers = {shard["writer"] for split in manifest["splits"].values() for shard in split["shards"]}
    assert len(writers) == 2, writers


def test_the_report_says_how_many_documents_were_left_out(baseline: Run) -> None:
    texts = [json.loads(line)["text"].strip() for line in manual().splitlines()]
    data = baseline.report()["data"]
    assert (data["dropped"], data["duplicates"]) == (0, len(texts) - len(set(texts)))
    assert sum(split["documents"] for split in data["splits"].values()) == len(set(texts))


def test_applying_the_same_file_again_changes_nothing_and_the_diff_is_empty(baseline: Run) -> None:
    before = baseline.kubectl.json("tj", baseline.name)["metadata"]["resourceVersion"]
    assert "unchanged" in baseline.apply()
    assert baseline.kubectl("diff", "-f", "-", stdin=json.dumps(baseline.manifest)) == ""
    assert baseline.kubectl.json("tj", baseline.name)["metadata"]["resourceVersion"] == before


def test_the_job_applied_again_over_its_finished_run_succeeds_without_a_worker(baseline: Run, start_job: Any) -> None:
    before = baseline.etags()
    run = again(baseline, start_job, "again")
    status = run.wait_succeeded()
    assert status["result"] == baseline.status()["result"]
    assert status["progress"]["step"] == 400
    assert {pod["metadata"]["name"] for pod in run.kubectl.json("pods", "-l", f"{JOB}=again")["items"]} == {
        "again-prepare-0-1"
    }
    assert baseline.etags() == before, "the run directory was changed"


def test_another_job_over_a_finished_run_is_refused_by_the_names_of_the_fields_that_differ(
    baseline: Run, start_job: Any
) -> None:
    before = baseline.etags()
    run = again(baseline, start_job, "other", seed=7, optimizer={"name": "sgd", "lr": 2e-3})
    status = run.wait_finished()
    assert status["phase"] == "Failed"
    assert status["message"].startswith("UserError: ")
    assert "training.seed: 1 -> 7" in status["message"]
    assert 'training.optimizer.name: "adamw" -> "sgd"' in status["message"]
    assert "training.steps" not in status["message"]
    assert "outputUri" in status["message"]
    assert run.pods() == {}
    assert baseline.etags() == before, "the run directory was changed"


def again(run: Run, start_job: Any, name: str, **training: Any) -> Run:
    """A new job of another name over the run's directory, with these fields of training."""

    def build(*place: str) -> Object:
        job = language_job(*place)
        job["spec"]["outputUri"] = run.manifest["spec"]["outputUri"]
        job["spec"]["training"] |= training
        return job

    started: Run = start_job(build, name)
    return started


def test_a_killed_worker_a_killed_head_and_a_suspension_leave_no_trace_in_the_result(
    baseline: Run, start_job: Any, cluster: "LocalCluster"
) -> None:
    with held(cluster.s3.endpoint) as way:
        way.let(20)
        run: Run = start_job(on_the(way), "disturbed")
        run.wait_commit()
        kill(run, 1, way)
        step = kill(run, 0, way)

        run.patch({"runPolicy": {"suspend": True}})
        way.let(step + 100)
        wait_until("the job is suspended", lambda: run.phase() == "Suspended")
        assert run.pods() == {}
        suspended_at = run.committed_steps()[-1]
        assert suspended_at >= step
        run.patch({"runPolicy": {"suspend": False}})

        way.let(math.inf)
        status = run.wait_succeeded()
    history = [entry for entry in status["history"] if entry["class"] != "Drained"]
    assert [entry["pod"] for entry in history] == ["disturbed-train-1-1", "disturbed-train-0-1"]
    for entry in history:
        assert entry["class"]
        assert entry["stepsLost"] >= 0
        assert entry["secondsToRecover"] > 0
    assert loss_series(run) == loss_series(baseline), "the loss series differ"
    assert model_weights(run) == model_weights(baseline), "the weights differ"


def kill(run: Run, index: int, way: Held) -> int:
    """Kill this pod, and wait until the run commits again, a hundred steps on at most, with a successor of the pod and
    the others untouched. The step that is committed then."""
    before = uids(run)
    committed, attempts = run.committed_steps()[-1], len(run.keys("attempts/"))
    killed = before.pop(index)
    crash(killed)
    way.let(committed + 100)
    wait_until(f"{index} has a successor", lambda: uids(run).get(index, killed) != killed)
    wait_until("a new attempt begins", lambda: len(run.keys("attempts/")) > attempts, RUN_PATIENCE)
    newest = json.loads(run.read(sorted(run.keys("attempts/"), key=_number)[-1]))
    assert newest["resumesFromStep"] >= committed, "a committed step was trained again"
    step = run.wait_commit(after=committed)
    wait_until("the status says what it cost", lambda: "stepsLost" in run.status()["history"][-1])
    assert before.items() <= uids(run).items(), "a pod that was not killed was replaced"
    return step


def uids(run: Run) -> dict[int, str]:
    """Of the newest living pod of each index."""
    return {index: pod["metadata"]["uid"] for index, pod in run.pods().items()}


def _number(key: str) -> int:
    return int(key.removesuffix(".json").rpartition("/")[2])


def test_a_deleted_job_commits_a_checkpoint_within_its_grace_and_leaves_nothing(start_language_job: Any) -> None:
    run: Run = start_language_job("deleted")
    committed = run.wait_commit()
    run.kubectl("delete", "tj", "deleted", "--wait=false")

    def left() -> list[str]:
        kinds = "tj,pods,services,configmaps,secrets"
        items = run.kubectl.json(kinds)["items"]
        return [i["metadata"]["name"] for i in items if i["metadata"]["name"].startswith("deleted")]

    wait_until("nothing is left", lambda: not left())
    steps = run.committed_steps()
    assert steps[-1] > committed or steps[-1] % 20, f"no checkpoint was committed while draining: {steps}"
