"""`python -m trainingjob_trainer.train`: what it reads, and how it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.train import main, read_config

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
        (yaml.safe_dump({**SPEC, "data": {}}), r"data\.train is required"),
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
