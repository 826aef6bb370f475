"""What is exported loads in `transformers` without this project, and is the same model."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import RUN_PATIENCE
from support.training import job, store_of
from torch.nn.functional import cross_entropy
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import TOKENIZER_KEY, Manifest
from trainingjob_trainer.evaluation.export import export_model
from trainingjob_trainer.huggingface.families import write_config
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.prepare import tokenizer as bpe

PROMPT, TEXT = "the quick", "the quick brown fox jumps over the lazy dog"
STRANGER = Path(__file__).parents[1] / "support" / "load_export.py"
GPT2 = {"norm": "layernorm", "positions": "learned", "ffn": "gelu", "bias": "all", "context": 96}
# Every family, tied and untied, with grouped heads, heads of their own width, other norms' epsilon.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT2, "normEps": 1e-4},
    "gpt2 untied": {**GPT2, "tieEmbeddings": False, "ffnDim": 40},
    "llama": {"kvHeads": 2, "ropeTheta": 500.0},
    "llama untied, biases": {"bias": "all", "headDim": 16, "tieEmbeddings": False, "normEps": 1e-3},
    "llama stretched": {"ropeScaling": {"factor": 4.0, "originalContext": 16}},
    "qwen2": {"kvHeads": 1, "bias": "qkv"},
    "qwen3": {"kvHeads": 2, "headDim": 24, "qkNorm": True, "tieEmbeddings": False},
}


@dataclass
class Exported:
    """A model that has learnt one text by heart, and what a process without this project makes of its export."""

    config: JobConfig
    manifest: Manifest
    logits: torch.Tensor
    found: dict[str, Any]


def learnt_by_heart(config: JobConfig, manifest: Manifest, tokens: list[int]) -> torch.nn.Module:
    """A model that after the text says EOS: there is something for generation to stop at."""
    model = build_model(config, manifest)
    init_weights(model, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    sequence = torch.tensor([tokens])
    for _ in range(150):
        optimizer.zero_grad()
        loss = cross_entropy(model(sequence[:, :-1])[0], sequence[0, 1:])
        torch.autograd.backward(loss)
        optimizer.step()
        if loss < 0.05:
            break
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """All shapes, loaded by one process: offline, in an empty directory, importing nothing of ours."""
    torch.set_num_threads(1)
    stored = bpe.to_json(bpe.train_bpe([TEXT.encode()], 280))
    tokenizer = bpe.load(stored)
    empty: dict[str, Any] = {"shards": [], "documents": 0, "bytes": 0}
    manifest = Manifest.model_validate(
        {
            "kind": "tokens", "dtype": "uint16", "splits": dict.fromkeys(("train", "validation", "test"), empty),
            "vocab_size": tokenizer.get_vocab_size(), "tokenizer_digest": bpe.digest(stored), "eos_id": bpe.EOS_ID,
        }
    )  # fmt: skip
    cases: dict[str, tuple[JobConfig, torch.Tensor, str]] = {}
    for name, shape in SHAPES.items():
        size = {"layers": 2, "dim": 32, "heads": 4, **shape}
        config = job(tmp_path_factory.mktemp("run"), model={"transformer": size}, sequenceLength=96)
        store = store_of(config)
        store.put(TOKENIZER_KEY, stored)
        model = learnt_by_heart(config, manifest, [*tokenizer.encode(TEXT).ids, bpe.EOS_ID])
        uri = export_model(config, manifest, model.state_dict(), Attempt(1, store), 40)
        with torch.no_grad():
            cases[name] = config, model(torch.tensor([tokenizer.encode(PROMPT).ids]))[0], uri
    nowhere = tmp_path_factory.mktemp("empty")
    environment = {"PATH": os.environ["PATH"], "HOME": str(nowhere), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    script = STRANGER.read_text()  # given as text: its directory, with the tests' modules, is not on the path
    command = [sys.executable, "-c", script, PROMPT, *(uri for *_, uri in cases.values())]
    done = subprocess.run(command, cwd=nowhere, env=environment, capture_output=True, text=True, timeout=RUN_PATIENCE)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ours"] == []
    return {
        name: Exported(config, manifest, logits, found)
        for (name, (config, logits, _)), found in zip(cases.items(), answer["found"], strict=True)
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_text_becomes_the_same_logits(exported: dict[str, Exported], shape: str) -> None:
    model = exported[shape]
    assert model.found["model_type"] == shape.split()[0]
    torch.testing.assert_close(torch.tensor(model.found["logits"]), model.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_eos_ends_what_is_generated(exported: dict[str, Exported], shape: str) -> None:
    found = exported[shape].found
    assert found["generated"] == TEXT
    assert found["last"] == bpe.EOS_ID
    assert found["new"] < 60


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_on_either_side_changes_nothing(exported: dict[str, Exported], shape: str) -> None:
    assert exported[shape].found["padding"] < 1e-4
    assert exported[shape].found["batched"] == TEXT


@pytest.mark.parametrize("shape", SHAPES)
def test_every_setting_is_the_runs_own(exported: dict[str, Exported], shape: str) -> None:
    model = exported[shape]
    assert model.found["ids_of_settings"] == [[bpe.EOS_ID] * 3] * 3
    assert model.found["max_positions"] == 96
    assert model.found["dtype"] == "torch.float32"


@pytest.mark.parametrize("shape", SHAPES)
def test_no_setting_of_the_architecture_is_left_to_a_default(exported: dict[str, Exported], shape: str) -> None:
    """Every field of the family's configuration that is about what is computed is written."""
    from transformers import AutoConfig

    model = exported[shape]
    size = model.config.model.size
    written = write_config(size, 300, 96, 0)
    generic = set(AutoConfig.for_model("bert").to_dict())
    not_computed = {
        "initializer_range", "pretraining_tp", "sliding_window", "max_window_layers", "layer_types",
        "add_cross_attention",
    }  # fmt: skip
    left = set(AutoConfig.for_model(written["model_type"]).to_dict()) - generic - set(written) - not_computed
    assert {name for name in left if not name.startswith("summary_")} == set()
