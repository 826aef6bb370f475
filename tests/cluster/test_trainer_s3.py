"""The trainer by hand against a real S3 server: from raw text to a result, and an exact resume after a kill."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.begin import write_source
from support.merge_patch import merged
from support.rank_functions import load_and_go_on, save_and_go_on
from support.ranks import run_ranks
from support.runs import PATIENCE, RUN_PATIENCE
from support.s3_proxy import Request, S3Proxy
from support.spread import in_turn_on_s3
from support.training import OPTIMIZERS, job, put_tokens, store_of
from trainingjob_local.cluster import LocalCluster

PYTHON = [sys.executable, "-m", "trainingjob_trainer.train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *PYTHON[1:]]

Object = dict[str, Any]


class Trainer:
    """`train.py` on jobs in one bucket that differ by their run directory only."""

    def __init__(self, cluster: LocalCluster, bucket: str, directory: Path, command: list[str]) -> None:
        self.s3, self.bucket, self._directory, self._command = cluster.s3.client(), bucket, directory, command
        self.endpoint = cluster.s3.endpoint
        self._env = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": cluster.s3.access_key,
            "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key,
            "OMP_NUM_THREADS": "1",
        }
        paragraphs = [text for topic in topics.topics.values() for text in topic.split("\n\n")][:800]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in paragraphs)
        self.s3.put_object(Bucket=bucket, Key="raw/manual.jsonl", Body=lines.encode())

    def start(self, run: str, changes: Object | None = None) -> "subprocess.Popen[bytes]":
        """Train `run`, its log in a file. changes: merged into its spec."""
        spec = {
            "outputUri": f"s3://{self.bucket}/runs/{run}",
            "storage": {"endpointUrl": self.endpoint, "region": "us-east-1"},
            "data": {
                "train": {"uri": f"s3://{self.bucket}/raw/manual.jsonl"},
                "validation": {"fraction": 0.1},
                "test": {"fraction": 0.1},
                "prepare": {"tokenizer": {"vocabSize": 300}},
            },
            "model": {"transformer": {"layers": 2, "dim": 32, "heads": 4, "dropout": 0.1}},
            "training": {
                "steps": 100,
                "globalBatchSize": 4,
                "sequenceLength": 32,
                "deterministic": True,
                "logEvery": 1,
                "schedule": {"warmupSteps": 10},
                "parallelism": {"fsdp": "full"},
            },
            "checkpoint": {"everySteps": 10},
            "evaluation": {"everySteps": 50},
        }
        job = self._directory / f"{run}.yaml"
        job.write_text(yaml.safe_dump({"metadata": {"name": run}, "spec": merged(spec, changes or {})}))
        command = [*self._command, str(job)]
        with (self._directory / f"{run}.log").open("ab") as log:
            return subprocess.Popen(command, env=self._env, stdout=log, stderr=log)

    def finish(self, run: str, changes: Object | None = None) -> Object:
        """Train to the end; the run's result."""
        with self.start(run, changes) as process:
            code = process.wait(RUN_PATIENCE)
        assert code == 0, (self._directory / f"{run}.log").read_text()[-3000:]
        return self.read(run, "result.json")

    def read(self, run: str, key: str) -> Object:
        body = self.s3.get_object(Bucket=self.bucket, Key=f"runs/{run}/{key}")["Body"]
        value: Object = json.loads(body.read())
        return value

    def keys(self, run: str, prefix: str = "") -> list[str]:
        listing = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=f"runs/{run}/{prefix}")
        return [entry["Key"].removeprefix(f"runs/{run}/") for entry in listing.get("Contents", [])]

    def final_state(self, run: str) -> Object:
        """Checksums of the last checkpoint's objects: weights, moments, loss history. The index names the attempt."""
        commit = self.read(run, "checkpoints/step-00000100/COMMIT.json")
        return {o["key"].rpartition("/")[2]: o["sha256"] for o in commit["objects"] if "index" not in o["key"]}


@contextmanager
def held_at_its_first_commit(trainer: Trainer, run: str) -> "Iterator[tuple[subprocess.Popen[bytes], threading.Event]]":
    """A run whose first commit is there. The answer is held back until the event is set: it gets no further than to its
    next save, however long its disturber takes."""
    there, go_on = threading.Event(), threading.Event()

    def hold(request: Request) -> None:
        if request.method == "PUT" and "COMMIT.json" in request.path and not there.is_set():
            there.set()
            go_on.wait()

    with S3Proxy(trainer.endpoint) as proxy:
        proxy.after = hold
        with trainer.start(run, {"storage": {"endpointUrl": proxy.endpoint}}) as process:
            try:
                assert there.wait(RUN_PATIENCE), "no commit"
                yield process, go_on
            finally:
                go_on.set()
                process.kill()


def descendants(pid: int) -> list[int]:
    """The processes below a process."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


@pytest.mark.parametrize("command", [PYTHON, TORCHRUN], ids=["python", "torchrun"])
def test_a_killed_run_resumes_from_s3_bit_for_bit(
    cluster: LocalCluster, bucket: str, tmp_path: Path, command: list[str]
) -> None:
    trainer = Trainer(cluster, bucket, tmp_path, command)
    expected = trainer.finish("baseline")

    with held_at_its_first_commit(trainer, "disturbed") as (process, _):
        for pid in [process.pid, *descendants(process.pid)]:  # torchrun gives its workers sessions of their own
            os.kill(pid, signal.SIGKILL)
    committed = [key for key in trainer.keys("disturbed", "checkpoints/") if key.endswith("COMMIT.json")]
    result = trainer.finish("disturbed")

    assert trainer.read("disturbed", "attempts/2.json")["resumesFromStep"] == int(committed[-1].split("/")[1][5:])
    assert result["attempt"] == 2
    assert result["evaluation"] == expected["evaluation"]
    assert trainer.final_state("disturbed") == trainer.final_state("baseline")


def test_every_optimizer_resumes_from_s3_bit_for_bit(
    cluster: LocalCluster, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of two ranks, and an average: three steps, a checkpoint, two more, by the same and by new processes."""
    storage = {"endpointUrl": cluster.s3.endpoint, "region": "us-east-1"}
    keys = {"AWS_ACCESS_KEY_ID": cluster.s3.access_key, "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    runs = {
        name: job(f"s3://{bucket}/{name}", storage=storage, optimizer=optimizer, emaDecay=0.9)
        for name, optimizer in OPTIMIZERS.items()
    }
    for config in runs.values():
        put_tokens(store_of(config))
    gone_on = run_ranks(2, in_turn_on_s3, keys, [(save_and_go_on, (config, 3, 5)) for config in runs.values()])
    resumed = run_ranks(2, in_turn_on_s3, keys, [(load_and_go_on, (config, 5)) for config in runs.values()])
    assert gone_on[0] == gone_on[1]
    assert resumed == gone_on
    assert all(saved != after for saved, after in gone_on[0])


def test_sigterm_commits_a_checkpoint_and_a_finished_run_answers_at_once(
    cluster: LocalCluster, bucket: str, tmp_path: Path
) -> None:
    trainer = Trainer(cluster, bucket, tmp_path, PYTHON)
    with held_at_its_first_commit(trainer, "drained") as (process, go_on):
        process.terminate()
        go_on.set()
        assert process.wait(PATIENCE) == 30
    drained = int(max(k for k in trainer.keys("drained", "checkpoints/") if "COMMIT" in k).split("/")[1][5:])
    assert f"step {drained} is committed" in (tmp_path / "drained.log").read_text()
    result = trainer.finish("drained")
    assert trainer.read("drained", "attempts/2.json")["resumesFromStep"] == drained
    assert trainer.finish("drained") == result
    assert "attempts/3.json" not in trainer.keys("drained", "attempts/")


@pytest.mark.slow  # half a minute; directories are tried in the unit tests
def test_a_model_of_transformers_begins_with_its_path_in_s3(cluster: LocalCluster, bucket: str, tmp_path: Path) -> None:
    """On two ranks; a learning rate of nothing leaves it as it was."""
    trainer = Trainer(cluster, bucket, tmp_path, TORCHRUN)
    theirs = write_source(tmp_path / "source")
    for file in (tmp_path / "source").iterdir():
        trainer.s3.upload_file(str(file), bucket, f"models/neox/{file.name}")
    model = {"transformer": None, "huggingface": {}, "initFrom": {"uri": f"s3://{bucket}/models/neox"}}
    trainer.finish("by-path", {"model": model, "training": {"steps": 2, "optimizer": {"lr": 1e-12, "weightDecay": 0}}})
    exported = "model/a1/model.safetensors"
    trainer.s3.download_file(bucket, f"runs/by-path/{exported}", str(tmp_path / "exported"))
    ours, source = load_file(tmp_path / "exported"), load_file(tmp_path / "source" / "model.safetensors")
    assert ours.keys() == source.keys()
    assert len(source) == len(dict(theirs.named_parameters()))
    assert all(torch.allclose(ours[name], weight, atol=1e-6) for name, weight in source.items())
    assert trainer.read("by-path", "model/a1/config.json")["vocab_size"] == 288
