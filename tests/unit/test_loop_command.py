"""`python -m trainingjob_trainer.train`: what it reads, and how it refuses."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from trainingjob_trainer.errors import Drained, UserError
from trainingjob_trainer.prepare.check import check
from trainingjob_trainer.prepare.limits import check_ranks
from trainingjob_trainer.records import Evaluation, RunResult
from trainingjob_trainer.stop import Stop
from trainingjob_trainer.storage import open_store
from trainingjob_trainer.train import Console, main, read_config

SPEC = {
    "outputUri": "/tmp/run",
    "data": {"train": {"uri": "/tmp/raw.jsonl"}},
    "model": {"preset": "gpt-nano"},
    "training": {"steps": 10},
}


def with_training(**training: object) -> str:
    return yaml.safe_dump({**SPEC, "training": training})


def test_a_training_job_and_its_bare_spec_are_the_same_job(tmp_path: Path) -> None:
    cluster = {"image": "any", "workers": {"replicas": 2}, "runPolicy": {"suspend": True}}
    manifest = {"apiVersion": "trainingjob.io/v1alpha1", "kind": "TrainingJob", "spec": {**SPEC, **cluster}}
    whole, bare = tmp_path / "whole.yaml", tmp_path / "bare.yaml"
    whole.write_text(yaml.safe_dump({**manifest, "metadata": {"name": "bare"}}))
    bare.write_text(yaml.safe_dump(SPEC))
    assert read_config(whole, 2) == read_config(bare, 2)


def test_ranks_are_those_of_their_machine(tmp_path: Path) -> None:
    """By which a rank knows its share of the memory, and a layout which ranks are near each other."""
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({**SPEC, "training": {"steps": 1, "globalBatchSize": 5}}))
    config = read_config(job, ranks=2, machines=3)
    assert (config.ranks_per_pod, config.fewest_pods) == (2, 3)
    with pytest.raises(UserError, match="globalBatchSize is 5, less than one sample for each of 6 ranks"):
        check_ranks(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "cannot be read"),
        ("- steps", "holds no job"),
        ("spec: 3", "holds no job"),
        (yaml.safe_dump({**SPEC, "training": {}}), r"training: .*exactly one of steps, epochs and tokens must be set"),
        (with_training(stpes=10), r"training\.stpes is no field \(do you mean steps\?\)"),
        (with_training(steps=0), r"training\.steps is 0: input should be greater than or equal to 1"),
        (
            with_training(steps=1, optimizer={"name": "adamv"}),
            r"optimizer\.name is 'adamv', not one of adamw, adam, .* \(do you mean adam\w?\?\)",
        ),
        (with_training(steps=1, parallelism={"tensors": 2}), r"parallelism\.tensors is no field .*mean tensor\?"),
        (
            with_training(steps=1, early=3),
            r"training\.early is no field; known are steps, epochs, .*, logEvery\.",
        ),
        (
            with_training(steps=1, microBatchSize="all"),
            r"job: training\.microBatchSize is 'all': input should be a valid integer, .*, nor one of auto\.",
        ),
        (
            with_training(steps=1, optimizer={"betas": [0.9, 1.5]}),
            r"optimizer\.betas\.1 is 1\.5: input should be less than 1",
        ),
        (
            yaml.safe_dump({**SPEC, "data": {"train": {"mixture": [{"name": "a", "url": "/a"}]}}}),
            r"mixture\.0\.uri is required; data\.train\.mixture\.0\.weight is required; "
            r"data\.train\.mixture\.0\.url is no field \(do you mean uri\?\)",
        ),
        (yaml.safe_dump({**SPEC, "data": {}}), r"data\.train is required"),
        (yaml.safe_dump({**SPEC, "outputUri": "runs/a"}), "is 'runs/a', not s3://bucket/name or an absolute path"),
        (yaml.safe_dump({**SPEC, "model": {"cnn": {}}}), r"not a valid job: model\.cnn is not for task\.kind"),
        (yaml.safe_dump({"metadata": "gpt", "spec": SPEC}), "metadata is 'gpt', not a mapping"),
        (yaml.safe_dump({**SPEC, "runPolicy": "Overwrite"}), "runPolicy is 'Overwrite', not a mapping"),
        (yaml.safe_dump({**SPEC, "podMemory": "1Gi"}), r"podMemory is no field; known are storage, .*, evaluation\."),
    ],
)
def test_a_wrong_file_is_a_user_error_that_names_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(job, 1)


def test_a_missing_file_ends_with_the_exit_code_of_a_user_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nothing.yaml")]) == 10
    assert "UserError" in capsys.readouterr().err


def test_neither_help_nor_the_check_needs_torch() -> None:
    code = "import sys, trainingjob_trainer.train, trainingjob_trainer.prepare.check; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def console() -> Iterator[Console]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield Console()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_training_between_steps_and_what_comes_before_at_once(
    console: Console, number: signal.Signals
) -> None:
    with pytest.raises(Drained, match="before training began"):
        signal.raise_signal(number)

    console.training_begins()
    signal.raise_signal(number)
    assert console.stop_requested() is Stop.NOW


def test_lines_say_each_thing_once_and_only_of_steps_that_this_attempt_took(
    console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    at = {"steps": 30, "loss": 2.5, "learningRate": 1e-3, "gradNorm": 1.0, "tokensPerSecond": None, "etaSeconds": None}
    evaluation = {"split": "validation", "step": 20, "metrics": {"loss": 2.0}}
    console.report({"state": "Training", "message": "Training from step 15.", "progress": {"step": 15, **at}})
    console.report({"progress": {"step": 20, **at, "metrics": {"samplesPerSecond": 1234.5}}})
    console.report({"state": "Evaluating", "message": "Evaluating on the validation split."})
    console.report({"state": "Training", "message": "Training.", "evaluation": evaluation})

    said = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    evaluated = ["Evaluating on the validation split.", "validation: loss 2"]
    assert said == [
        "Training from step 15.",
        "step 20/30  loss 2.5000  lr 0.001  grad norm 1  1234 samples/s",
        *evaluated,
    ]
    assert console.step == 20  # what an incident names


def test_a_defect_is_told_with_its_traceback_and_ends_as_it_does_in_a_pod(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise KeyError("blocks")

    monkeypatch.setattr("trainingjob_trainer.train.run", run)
    assert main([str(tmp_path)]) == 20
    told = capsys.readouterr().err
    assert "in run\n" in told
    assert "Internal: KeyError: 'blocks'" in told


def test_who_stops_a_run_is_told_how_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise Drained("Asked to stop; step 7 is committed.", step=7)

    monkeypatch.setattr("trainingjob_trainer.train.run", run)
    assert main([str(tmp_path)]) == 30
    told = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert told[0].endswith("Drained: Asked to stop; step 7 is committed.")
    assert told[1:] == ["The same command goes on from there."]


def test_a_finished_run_answers_with_its_numbers_and_no_screens_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.yaml"
    spec = {**SPEC, "outputUri": f"{tmp_path}/run", "data": {"train": {"uri": str(tmp_path / "raw.jsonl")}}}
    job.write_text(yaml.safe_dump(spec))
    (tmp_path / "raw.jsonl").write_text('{"text": "a text"}\n')
    config = read_config(job, 1)
    store = open_store(config.output_uri, config.storage)
    check(config, store)
    metrics = {"accuracy": 0.5, "confusionMatrix": [[1, 0], [1, 0]], "perClass": [{"class": "a", "f1": 0.6}]}
    evaluation = Evaluation(split="test", step=10, metrics=metrics)
    RunResult(plan_hash=config.plan_hash(), attempt=1, step=10, report_uri="/x", evaluation=evaluation).save(store)
    assert main([str(job)]) == 0
    answered = json.loads(capsys.readouterr().out)
    assert answered["evaluation"] == {"split": "test", "step": 10, "metrics": {"accuracy": 0.5}}
    assert answered["reportUri"] == "/x"
