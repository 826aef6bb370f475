"""Compiled blocks: one graph for all of them, the same numbers, and nothing compiled twice by a run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import RUN_PATIENCE
from support.training import job, put_tokens, store_of
from torch import Tensor
from trainingjob_trainer.compile_cache import PREFIX
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.parallel.compiling import compiler, compiles
from trainingjob_trainer.tasks import head

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LAYERS = 10  # more than torch would compile a function for
OURS = {"transformer": {"layers": LAYERS, "dim": 16, "heads": 2, "ffnDim": 32}}
NEOX = {
    "model_type": "gpt_neox", "hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip
LIBRARYS = {"huggingface": {"config": json.dumps(NEOX)}}
# What a run compiles, and what it finds compiled: in a process of its own with an empty cache, as in a new pod.
PROGRAM = """
import json, sys
from pathlib import Path
from support.training import Hooks, store_of
from torch._dynamo.utils import counters
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.errors import Drained
from trainingjob_trainer.loop import train
config = JobConfig.model_validate_json(Path(sys.argv[1]).read_text())
hooks = Hooks(stop_after=int(sys.argv[2]))
try:
    train(config, Attempt.take(store_of(config), 0), hooks)
except Drained:
    pass
losses = [report["progress"]["loss"] for report in hooks.reports if "progress" in report]
print(json.dumps({"losses": [l for l in losses if l], **counters["stats"], **counters["inductor"]}))
"""


def attempt(config: JobConfig, caches: Path, stop_after: int) -> dict[str, Any]:
    """What an attempt compiled (torch's counters), and its losses."""
    caches.mkdir()
    spec = caches / "config.json"
    spec.write_text(config.model_dump_json(by_alias=True))
    places = {"TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"), "TRITON_CACHE_DIR": str(caches / "triton")}
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | places | {"PYTHONPATH": path}
    command = [sys.executable, "-c", PROGRAM, str(spec), str(stop_after)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_PATIENCE, check=False)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.slow  # a minute of compilation
@pytest.mark.parametrize(("shape", "graphs", "kernels"), [(OURS, 5, 7), (LIBRARYS, 2, 3)], ids=["ours", "library's"])
def test_all_blocks_run_one_graph_and_a_later_attempt_finds_it_compiled(
    tmp_path: Path, shape: dict[str, Any], graphs: int, kernels: int
) -> None:
    """A block in training (kernels for its way forward and back) and in evaluation, not one for each layer; of ours
    also the last norm, in both, and the loss: logits of a library's model are there already."""
    evaluation = {"everySteps": 2, "maxSamples": 8}
    eager = job(tmp_path / "eager", model=shape, evaluation=evaluation, steps=6, compile="never", microBatchSize=10)
    config = job(tmp_path / "run", model=shape, evaluation=evaluation, steps=6, compile="always", microBatchSize=10)
    for one in (eager, config):
        put_tokens(store_of(one))
    first = attempt(config, tmp_path / "first", stop_after=4)
    assert first["unique_graphs"] == graphs
    assert first["fxgraph_cache_miss"] == kernels
    assert sorted(found.key.rpartition("/")[2] for found in store_of(config).list(PREFIX)) == [
        "evaluation.bin",
        "training.bin",
    ]
    second = attempt(config, tmp_path / "second", stop_after=6)
    assert second.get("fxgraph_cache_miss", 0) == 0, "nothing is compiled again"
    plain = attempt(eager, tmp_path / "eager-caches", stop_after=6)
    assert "unique_graphs" not in plain
    both = [*first["losses"], *second["losses"]]
    assert both[-1] == pytest.approx(plain["losses"][-1], rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("entries", [9, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_compiler_gets_of_the_loss_is_the_same_formula(
    smoothing: float, entries: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 11, dtype=dtype, generator=generator)
    targets = torch.randint(entries, (7,), generator=generator)
    ours: tuple[Tensor, Tensor] = head._losses_and_gradient_in_one(logits, targets, smoothing, entries)
    theirs = head._losses_and_gradient(logits.clone(), targets, smoothing, entries)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_it_is_for_cuda_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, sys.executable)  # a program that is there
    chosen = {
        (wanted, device.type): compiles(job(tmp_path, compile=wanted).training, device)
        for wanted in ("auto", "always", "never")
        for device in (CPU, CUDA)
    }
    assert [key for key, compiled in chosen.items() if compiled] == [
        ("auto", "cuda"),
        ("always", "cpu"),
        ("always", "cuda"),
    ]


@pytest.mark.parametrize(("device", "names", "variable"), [(CPU, "g\\+\\+", "CXX"), (CUDA, "gcc or clang", "CC")])
def test_a_missing_compiler_is_the_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device, names: str, variable: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(
        UserError, match=f"training.compile: always needs a compiler, and there is no {names}"
    ) as caught:
        compiles(job(tmp_path, compile="always").training, device)
    assert variable in (caught.value.next_step or "")
    assert "training.compile: never" in (caught.value.next_step or "")


@pytest.mark.parametrize(("compiler", "told"), [("", "needs a compiler"), ("false", "could not be compiled")])
def test_a_run_that_cannot_compile_ends_as_the_users_error(tmp_path: Path, compiler: str, told: str) -> None:
    words = [json.dumps({"text": f"{number} is a number. " * 20}) for number in range(200)]
    (tmp_path / "raw.jsonl").write_text("\n".join(words))
    (tmp_path / "job.yaml").write_text(
        f"outputUri: {tmp_path}/run\nmodel: {{preset: gpt-nano}}\n"
        f"data: {{train: {{uri: {tmp_path}/raw.jsonl}}, validation: {{fraction: 0.2}}, test: {{fraction: 0.2}}}}\n"
        "training: {steps: 2, globalBatchSize: 4, sequenceLength: 16, compile: always}\n"
    )
    named = {"CXX": compiler} if compiler else {"PATH": str(tmp_path)}
    environment = {k: v for k, v in os.environ.items() if k != "CXX"} | named
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "caches")
    command = [sys.executable, "-m", "trainingjob_trainer.train", str(tmp_path / "job.yaml")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_PATIENCE, check=False)
    assert ended.returncode == 10, ended.stderr
    assert told in ended.stderr
    assert "training.compile: never" in ended.stderr


def test_a_compiler_may_be_named(tmp_path: Path) -> None:
    named = tmp_path / "own-cc"
    named.touch(mode=0o755)
    assert compiler(CUDA, {"PATH": "", "CC": f"{named} -O2"}) == str(named)
    assert compiler(CUDA, {"PATH": str(tmp_path)}) is None
