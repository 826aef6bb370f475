"""The Check stage: what it decides, what it refuses and how, and what it leaves in the run directory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.dying import die_after_a_deletion
from support.training import job, store_of
from trainingjob_trainer.accounting import host_memory
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.commits import Commit, publish
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.config.data import ORDER_VERSION
from trainingjob_trainer.errors import DataError, Fenced, StorageError, UserError
from trainingjob_trainer.prepare.check import check
from trainingjob_trainer.prepare.limits import model_size
from trainingjob_trainer.prepare.local import prepare_data
from trainingjob_trainer.prepare.supposed import supposed_manifest
from trainingjob_trainer.records import Evaluation, RunResult
from trainingjob_trainer.storage import Store


def spec(directory: Path, **changes: Any) -> JobConfig:
    """A job over 100 documents in `directory/raw.jsonl`; the run lies in `directory/run`."""
    source = directory / "raw.jsonl"
    directory.mkdir(exist_ok=True)
    if not source.exists():
        source.write_text("".join(json.dumps({"text": f"{i} " * 40}) + "\n" for i in range(100)))
    fifth = {"fraction": 0.2}
    data = {
        "train": {"uri": str(source)},
        "validation": fifth,
        "test": fifth,
        "prepare": {"tokenizer": {"vocabSize": 300}},
    }
    config = job(directory / "run", **{"data": data, **changes}).wire()
    return JobConfig.model_validate({**config, "onExistingRun": changes.get("onExistingRun", "Resume")})


def overwriting(config: JobConfig) -> JobConfig:
    return config.model_copy(update={"on_existing_run": "Overwrite"})


def record(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.get("run.json"))
    return found


def finish(config: JobConfig, store: Store) -> RunResult:
    result = RunResult(
        plan_hash=config.plan_hash(),
        attempt=1,
        step=config.training.steps,
        model_uri="m",
        report_uri="r",
        evaluation=Evaluation(split="test", step=config.training.steps, metrics={"loss": 1.0}),
    )
    return result.save(store)


def test_a_new_run_is_prepared_then_trained_then_finished(tmp_path: Path) -> None:
    config = spec(tmp_path)
    store = store_of(config)
    assert check(config, store).outcome == "PrepareData"
    created = record(store)
    assert created["identityHash"] == config.identity_hash()
    assert created["identity"]["training.seed"] == 1
    prepare_data(config, store)
    assert check(config, store).outcome == "Train"
    result = finish(config, store)
    done = check(config, store)
    assert (done.outcome, done.result) == ("Finished", result.wire())
    assert record(store) == created, "checking again changed the record"


def test_a_manifest_that_is_damaged_is_named(tmp_path: Path) -> None:
    config = spec(tmp_path)
    store = store_of(config)
    check(config, store)
    store.put("data/manifest.json", prepare_data(config, store).to_json()[:99])
    with pytest.raises(StorageError, match=r"data/manifest\.json is not the manifest of prepared data: Invalid JSON"):
        check(config, store)


def test_a_finished_run_needs_its_raw_data_no_more(tmp_path: Path) -> None:
    config = spec(tmp_path)
    store = store_of(config)
    check(config, store)
    finish(config, store)
    (tmp_path / "raw.jsonl").unlink()
    assert check(config, store).outcome == "Finished"


def test_more_steps_continue_a_finished_run_and_are_recorded(tmp_path: Path) -> None:
    config = spec(tmp_path)
    store = store_of(config)
    check(config, store)
    prepare_data(config, store)
    finish(config, store)
    longer = spec(tmp_path, steps=80)
    assert check(longer, store).outcome == "Train"
    assert check(longer, store).outcome == "Train"
    [change] = record(store)["changes"]
    assert (change["steps"], change["planHash"]) == (80, longer.plan_hash())


def test_a_run_that_has_taken_more_steps_than_are_asked_for_is_refused(tmp_path: Path) -> None:
    """Its weights, which are those after step 60, would pass for those after step 59."""
    config = spec(tmp_path, steps=60)
    store = store_of(config)
    check(config, store)
    prepare_data(config, store)
    identity = config.identity_hash()
    publish(Commit(step=60, attempt=1, world_size=1, identity_hash=identity, objects=[]), Attempt.take(store, 0))
    before = record(store)
    with pytest.raises(UserError, match=r"steps is 59, but the run .* step 60") as caught:
        check(spec(tmp_path, steps=59), store)
    assert "60 steps or more" in caught.value.next_step
    assert record(store) == before
    with pytest.raises(UserError, match=r"tokens is 1000, which is \d+ steps, but the run .* step 60"):
        check(spec(tmp_path, steps=None, tokens=1000), store)
    assert check(config, store).outcome == "Train"


def test_another_identity_is_refused_with_the_fields_and_the_ways_out(tmp_path: Path) -> None:
    store = store_of(spec(tmp_path))
    check(spec(tmp_path), store)
    before = store.get("run.json")
    with pytest.raises(UserError) as refused:
        check(spec(tmp_path, seed=2, sequenceLength=32), store)
    assert "training.seed: 1 -> 2" in refused.value.cause
    assert "training.sequenceLength: 16 -> 32" in refused.value.cause
    assert "globalBatchSize" not in refused.value.cause
    assert "outputUri" in refused.value.next_step
    assert "onExistingRun" in refused.value.next_step
    assert store.get("run.json") == before


def test_overwrite_replaces_another_run_and_outdates_who_still_works_for_it(tmp_path: Path) -> None:
    old = spec(tmp_path)
    store = store_of(old)
    check(old, store)
    prepare_data(old, store)
    attempt = Attempt.take(store, 0)
    keys = ("checkpoints/step-00000020/COMMIT.json", "checkpoints/step-00000020/a1/x", "model/a1/x", "incidents/1.json")
    for key in keys:
        store.put(key, b"{}")
    finish(old, store)
    new = overwriting(spec(tmp_path, seed=2))
    assert check(new, store).outcome == "PrepareData"
    assert {info.key for info in store.list()} == {"run.json", "attempts/1.json", "attempts/2.json"}
    assert record(store)["identityHash"] == new.identity_hash()
    with pytest.raises(Fenced):
        attempt.check_fence()


def test_overwrite_never_touches_its_own_run(tmp_path: Path) -> None:
    config = overwriting(spec(tmp_path))
    store = store_of(config)
    check(config, store)
    prepare_data(config, store)
    finish(config, store)
    assert check(config, store).outcome == "Finished"


def test_overwrite_deletes_commits_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the first deletion: no checkpoint is left that has lost objects, and the next check goes on."""
    store = store_of(spec(tmp_path))
    check(spec(tmp_path), store)
    for key in ("checkpoints/step-00000020/COMMIT.json", "checkpoints/step-00000020/a1/x"):
        store.put(key, b"{}")
    new = overwriting(spec(tmp_path, seed=2))
    die_after_a_deletion(store, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        check(new, store)
    monkeypatch.undo()
    assert [info.key for info in store.list("checkpoints/")] == ["checkpoints/step-00000020/a1/x"]
    assert check(new, store).outcome == "PrepareData"


TABLE: dict[str, Any] = {"task": {"kind": "regression"}, "model": {"mlp": {}}}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"train": {"uri": "/nothing/here/*.jsonl"}}}, DataError, "There is no data at /nothing/here"),
        ({"data": {"train": {"uri": "RAW", "field": "body"}}}, UserError, "no field 'body'; its fields are 'text'"),
        ({"data": {"train": {"uri": "RAW", "format": "parquet"}}}, DataError, "not readable as Parquet"),
        ({"data": {"train": {"uri": "RAW"}, "test": {"uri": "RAW.gone"}}}, DataError, r"There is no data at .*\.gone"),
        (
            {"data": {"train": {"uri": "RAW"}, "validation": {"uri": "RAW"}}},
            UserError,
            r"data\.validation\.uri is .*raw\.jsonl, and so is the data of train: no example can be in both",
        ),
        (
            {"data": {"train": {"uri": "RAW"}, "validation": {"uri": "/held-out/"}, "test": {"uri": "/held-out/"}}},
            UserError,
            r"data\.test\.uri is /held-out/, and so is the data of validation: no example can be in both",
        ),
        ({"ranksPerPod": 6, "globalBatchSize": 5}, UserError, "less than one sample for each of 6 ranks"),
        ({"ranksPerPod": 3, "parallelism": {"tensor": 2}}, UserError, "3 ranks do not divide into groups of 2"),
        (
            {"task": {"huberDelta": 2.0}},
            UserError,
            r"task\.huberDelta is 2\.0, and is not read where task\.loss is cross-entropy",
        ),
        (
            {
                "data": {"train": {"uri": "RAW", "format": "csv", "features": ["a"]}},
                "task": {"kind": "regression"},
                "model": {"mlp": {}},
                "labelSmoothing": 0.1,
            },
            UserError,
            r"training\.labelSmoothing is 0\.1, and is not read where task\.kind is regression",
        ),
        (
            {"optimizer": {"momentum": 0.5}},
            UserError,
            r"optimizer\.momentum is 0\.5, and is not read where name is adamw",
        ),
        (
            {"optimizer": {"name": "sgd", "betas": [0.9, 0.99]}},
            UserError,
            r"training\.optimizer\.betas is \[0\.9, 0\.99\], and is not read where name is sgd",
        ),
        ({"optimizer": {"alpha": 0.9}}, UserError, r"optimizer\.alpha is 0\.9, and is not read where name is adamw"),
        (
            {"schedule": {"decaySteps": 9}},
            UserError,
            r"schedule\.decaySteps is 9, and is not read where name is cosine",
        ),
        (
            {"schedule": {"name": "constant", "minRatio": 0}},
            UserError,
            r"schedule\.minRatio is 0\.0, and is not read where name is constant",
        ),
        (
            {"checkpoint": {"bestMetric": "accurcay", "bestMode": "max"}},
            UserError,
            r"bestMetric is accurcay, which task\.kind language-modeling does not have \(do you mean accuracy\?\)",
        ),
        ({"checkpoint": {"bestMetric": "accuracy"}}, UserError, "bestMode is min, but more of accuracy is better"),
        ({"profile": {"fromStep": 41}}, UserError, r"profile\.fromStep is 41, but the last step is 40: nothing would"),
        ({"earlyStopping": {"metric": "f1"}}, UserError, r"earlyStopping\.metric is f1, which task\.kind lang"),
        ({"earlyStopping": {"mode": "max"}}, UserError, r"earlyStopping\.mode is max, but less of loss is better"),
    ],
)
def test_a_job_that_cannot_run_is_refused_and_leaves_no_trace(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    spec(tmp_path)
    text = json.dumps(changes).replace("RAW", str(tmp_path / "raw.jsonl"))
    config = spec(tmp_path, **json.loads(text))
    with pytest.raises(error, match=message):
        check(config, store_of(config))
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_batch_larger_than_the_data_is_refused_when_the_data_is_known(tmp_path: Path) -> None:
    config = spec(tmp_path)
    prepare_data(config, store_of(config))
    manifest = json.loads(store_of(config).get("data/manifest.json"))
    larger = spec(tmp_path, globalBatchSize=100_000)
    manifest["identityHash"] = larger.identity_hash()
    store_of(config).put("data/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(UserError, match="globalBatchSize is 100000"):
        check(larger, store_of(config))


def test_a_run_that_began_in_another_data_order_is_refused(tmp_path: Path) -> None:
    """Its checkpoints hold a number of samples: it would go on with samples that it has seen, and miss others."""
    config = spec(tmp_path)
    store = store_of(config)
    check(config, store)
    old = record(store)
    del old["identity"]["data.order"]
    store.put("run.json", json.dumps({**old, "identityHash": "of the old order"}).encode())
    with pytest.raises(UserError, match=rf"holds another run; it differs in data\.order: null -> {ORDER_VERSION}\."):
        check(config, store)


def test_another_tokenizer_than_that_of_the_data_is_refused_before_training(tmp_path: Path) -> None:
    config = spec(tmp_path)
    store = store_of(config)
    prepare_data(config, store)
    assert check(config, store).outcome == "Train"
    store.put("data/tokenizer.json", store.get("data/tokenizer.json") + b" ")
    with pytest.raises(UserError, match=r"tokenizer\.json .* is not the tokenizer that the data was prepared with"):
        check(config, store)
    store.delete(["data/tokenizer.json"])
    with pytest.raises(UserError, match=r"tokenizer\.json, the tokenizer that the data was prepared with, is missing"):
        check(config, store)


def test_a_shard_that_is_not_there_whole_is_told_of_before_training_unless_it_is_to_be_skipped(tmp_path: Path) -> None:
    config = spec(tmp_path)
    store = store_of(config)
    shard = prepare_data(config, store).splits["train"].shards[0]
    store.put(shard.key, store.get(shard.key)[:-2])
    with pytest.raises(DataError, match=f"{shard.key} has {shard.size - 2} bytes, not the {shard.size} that the"):
        check(config, store)
    store.delete([shard.key])
    with pytest.raises(DataError, match=f"{shard.key} is missing"):
        check(config, store)
    skipping = config.model_copy(update={"data": config.data.model_copy(update={"on_corrupt": "skip"})})
    assert check(skipping, store).outcome == "Train"


def test_the_check_is_light(tmp_path: Path) -> None:
    """It runs before a GPU is asked for, on every start: without torch, Ray, transformers and tokenizers."""
    config = spec(tmp_path)
    program = (
        "import sys, json; from trainingjob_trainer.config import JobConfig\n"
        "from trainingjob_trainer.prepare.check import check; from trainingjob_trainer.storage import open_store\n"
        "config = JobConfig.model_validate(json.loads(sys.argv[1]))\n"
        "print(check(config, open_store(config.output_uri, config.storage)).outcome)\n"
        "print(sorted({'torch', 'ray', 'transformers', 'tokenizers', 'pandas', 'matplotlib'} & set(sys.modules)))\n"
    )
    arguments = [sys.executable, "-c", program, json.dumps(config.wire())]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["PrepareData", "[]"]


def test_a_pod_that_is_too_small_is_refused_with_the_figures(tmp_path: Path) -> None:
    config = spec(tmp_path, model={"preset": "gpt-124m"})
    store = store_of(config)
    enough = config.model_copy(update={"pod_memory": "4Gi"})
    small = config.model_copy(update={"pod_memory": "1Gi"})
    with pytest.raises(UserError) as raised:
        check(small, store)
    assert "spec.workers.resources.memory is 1Gi (1.07 GB), less than the" in raised.value.cause
    assert "for weights, gradients and moments" in raised.value.cause
    assert "Gi or more" in raised.value.next_step
    assert not list(store.list()), "a refused job left something behind"
    assert check(enough, store).outcome == "PrepareData"
    needed = host_memory(config, model_size(config, supposed_manifest(config, None)), 0).total
    with pytest.raises(UserError, match=r"memory is \d+ "):
        check(config.model_copy(update={"pod_memory": str(needed - 1)}), store)
    assert check(config.model_copy(update={"pod_memory": str(needed)}), store).outcome == "PrepareData"


def test_a_pod_that_is_too_small_for_an_encoder_is_refused_too(tmp_path: Path) -> None:
    spec(tmp_path)
    data = {"train": {"uri": str(tmp_path / "raw.jsonl"), "labelField": "text"}}
    config = spec(tmp_path, task={"kind": "text-classification"}, data=data, model={"preset": "llama-1b"})
    with pytest.raises(UserError, match=r"memory is 8Gi \(8\.59 GB\), less than the \d+ GB that a worker pod needs"):
        check(config.model_copy(update={"pod_memory": "8Gi"}), store_of(config))
    roomy = config.model_copy(update={"pod_memory": "64Gi"})
    assert check(roomy, store_of(roomy)).outcome == "PrepareData"


@pytest.mark.parametrize(
    "model",
    [
        {"rnn": {"layers": 8, "dim": 4096}},
        {"huggingface": {"config": '{"model_type": "gpt_neox", "hidden_size": 2048, "num_hidden_layers": 24}'}},
    ],
    ids=["rnn", "transformers"],
)
def test_so_is_one_for_a_model_that_is_no_transformer_of_our_own(tmp_path: Path, model: dict[str, Any]) -> None:
    config = spec(tmp_path, model=model)
    small, enough = (config.model_copy(update={"pod_memory": limit}) for limit in ("16Gi", "200Gi"))
    with pytest.raises(UserError, match=r"memory is 16Gi .* less than the \d+ GB .*/dev/shm.* for weights, gradients"):
        check(small, store_of(config))
    assert check(enough, store_of(config)).outcome == "PrepareData"


def test_a_checkpoint_that_a_drain_has_no_time_for_is_told_of(tmp_path: Path) -> None:
    """Judged by an upload that is really made: no disk takes 84 GB in 5 s, and each takes 1.5 GB in a day. Where
    there are no pods, none drains."""
    roomy = {"pod_memory": "900Gi"}
    big = spec(tmp_path, model={"preset": "llama-8b"}, checkpoint={"drainSeconds": 5}).model_copy(update=roomy)
    store = store_of(big)
    warning = check(big, store).warning
    assert "A pod's part of a checkpoint has 84 GB" in warning
    assert "spec.checkpoint.drainSeconds (5)" in warning
    assert "probe" not in [info.key for info in store.list()]
    patient = spec(tmp_path / "b", model={"preset": "gpt-124m"}, checkpoint={"drainSeconds": 300})
    patient = patient.model_copy(update=roomy)
    assert check(patient, store_of(patient)).warning == ""
    by_hand = spec(tmp_path / "c", model={"preset": "llama-8b"}, checkpoint={"drainSeconds": 5})
    assert check(by_hand, store_of(by_hand)).warning == ""


def test_a_small_checkpoint_is_not_worth_a_probe(tmp_path: Path) -> None:
    """Nothing but run.json is written for a model whose checkpoint any storage takes in time."""
    config = spec(tmp_path)
    written: list[str] = []
    store = store_of(config)
    original = store.put
    store.put = lambda key, *rest, **more: (written.append(key), original(key, *rest, **more))[1]  # type: ignore[method-assign]
    check(config, store)
    assert written == ["run.json"]


@pytest.mark.parametrize(("name", "usual", "other"), [("sgd", 0.9, 0.0), ("rmsprop", 0.0, 0.9)])
def test_a_momentum_that_checkpoints_do_not_have_is_another_run(
    tmp_path: Path, name: str, usual: float, other: float
) -> None:
    plain, same, apart = (
        spec(tmp_path, optimizer={"name": name, **more}) for more in ({}, {"momentum": usual}, {"momentum": other})
    )
    assert plain.identity() == same.identity()
    assert plain.identity()["training.optimizer.name"] == name
    check(plain, store_of(plain))
    with pytest.raises(UserError, match=r"holds another run; it differs in training\.optimizer\.momentum: null -> "):
        check(apart, store_of(apart))
    less = spec(tmp_path, optimizer={"name": "sgd", "momentum": 0.5})
    assert less.identity() == spec(tmp_path, optimizer={"name": "sgd"}).identity()


def test_a_field_of_the_model_at_its_default_is_no_part_of_the_identity(tmp_path: Path) -> None:
    shape = {"layers": 2, "dim": 32, "heads": 4}
    plain, spelt = (job(tmp_path, model={"transformer": {**shape, **more}}) for more in ({}, {"normEps": 1e-5}))
    assert {name for name in plain.identity() if name.startswith("model.")} == {f"model.{name}" for name in shape}
    assert spelt.identity_hash() == plain.identity_hash()
    assert job(tmp_path, model={"transformer": {**shape, "normEps": 1e-6}}).identity_hash() != plain.identity_hash()
