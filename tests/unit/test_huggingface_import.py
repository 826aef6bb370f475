"""A run begins with weights that `transformers` wrote: the same logits, streamed to shards, or a named error."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.begin import begun, manifest_of
from support.ranks import run_ranks
from support.training import Hooks, job, newest, store_of
from trainingjob_trainer.beginning import CommittedRun
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.checkpointer import read_progress
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import TOKENIZER_KEY
from trainingjob_trainer.errors import Drained, UserError
from trainingjob_trainer.evaluation.export import export_model
from trainingjob_trainer.huggingface.families import read_config
from trainingjob_trainer.huggingface.load import load_weights
from trainingjob_trainer.loop import train
from trainingjob_trainer.models import build_model
from trainingjob_trainer.prepare import tokenizer as bpe
from trainingjob_trainer.prepare.check import check, load_manifest
from trainingjob_trainer.prepare.local import prepare_data

TEXT = "the quick brown fox jumps over the lazy dog"
EOS = "<|endoftext|>"
LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-4,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
# What transformers is asked to write: the family, its settings, and how it is saved.
SOURCES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2, {}),
    "gpt2, saved without its head": ("gpt2", GPT2, {"headless": True}),
    "gpt2, untied, in several files": (
        "gpt2", {**GPT2, "tie_word_embeddings": False, "n_inner": 40}, {"max_shard_size": "20KB"}
    ),
    "llama, untied": ("llama", {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, {}),
    "llama, biases, tied": (
        "llama", {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, {}
    ),
    "llama, stretched": (
        "llama",
        {
            **LLAMA, "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            }
        },
        {},
    ),
    "qwen2, in several files": ("qwen2", LLAMA, {"max_shard_size": "20KB"}),
    "qwen3, wide heads, tied": ("qwen3", {**LLAMA, "head_dim": 24, "tie_word_embeddings": True}, {}),
}  # fmt: skip


def tokenizer() -> bytes:
    return bpe.to_json(bpe.train_bpe([TEXT.encode()], 280))


def write_source(path: Path, source: str, dtype: torch.dtype = torch.float32, padding: int = 8) -> Any:
    """Have transformers write a random model with a padded vocabulary and a tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    family, settings, saving = copy.deepcopy(SOURCES[source])
    backend = bpe.load(tokenizer())
    vocab_size = backend.get_vocab_size() + padding
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    configured = AutoConfig.for_model(family, vocab_size=vocab_size, **ids, **settings)
    model = AutoModelForCausalLM.from_config(configured)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # biases that are zero would hide that they are not read
    model = model.to(dtype)
    saved = model.base_model if saving.pop("headless", False) else model
    saved.save_pretrained(path, **saving)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(path)
    return model.eval()


def of_run(directory: Path, source: Path, **changes: Any) -> JobConfig:
    """A job that begins with a model; its shape is the one that the source says."""
    shape = read_config(json.loads((source / "config.json").read_text())).wire()
    model = {"transformer": shape, "initFrom": {"uri": str(source)}}
    return job(directory, model=model, sequenceLength=32, **changes)


@pytest.mark.parametrize("source", SOURCES)
def test_the_logits_are_those_of_transformers(tmp_path: Path, source: str) -> None:
    theirs = write_source(tmp_path / "source", source)
    config = of_run(tmp_path / "run", tmp_path / "source")
    manifest = manifest_of(config)
    ours = build_model(config, manifest)
    load_weights(ours, config, manifest)
    tokens = torch.randint(manifest.vocab_size or 0, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, expected = ours.eval()(tokens), theirs(tokens).logits
    assert manifest.vocab_size == expected.shape[-1] - 8, "rows that only pad the vocabulary are left out"
    torch.testing.assert_close(logits, expected[..., : manifest.vocab_size], rtol=1e-4, atol=1e-4)


def test_half_precision_is_read_as_it_is_stored(tmp_path: Path) -> None:
    theirs = write_source(tmp_path / "source", "llama, untied", torch.bfloat16)
    config = of_run(tmp_path / "run", tmp_path / "source")
    manifest = manifest_of(config)
    ours = build_model(config, manifest)
    load_weights(ours, config, manifest)
    stored = theirs.state_dict()["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(ours.get_parameter("blocks.1.ffn.up.weight"), stored.float())


@pytest.mark.parametrize("source", ["gpt2", "llama, untied"])
def test_each_of_two_ranks_reads_what_it_keeps(tmp_path: Path, source: str) -> None:
    write_source(tmp_path / "source", source)
    config = of_run(tmp_path / "run", tmp_path / "source", parallelism={"fsdp": "full"})
    manifest = manifest_of(config)
    [(whole, everything)] = run_ranks(1, begun, config, manifest)
    [(sharded, first), (_, second)] = run_ranks(2, begun, config, manifest)
    assert whole.keys() == sharded.keys()
    for name, weight in whole.items():
        assert (weight == sharded[name]).all(), name
    if source != "gpt2":  # whose matrices lie transposed
        assert max(first, second) < 0.6 * everything


@pytest.mark.parametrize("source", SOURCES)
def test_export_after_import_is_the_export_byte_for_byte(tmp_path: Path, source: str) -> None:
    write_source(tmp_path / "source", source)
    exports = []
    for turn, begin in ((1, "source"), (2, "run1/model/a1"), (3, "run2/model/a1")):
        config = of_run(tmp_path / f"run{turn}", tmp_path / begin)
        manifest = manifest_of(config)
        model = build_model(config, manifest)
        load_weights(model, config, manifest)
        exports.append(Path(export_model(config, manifest, model.state_dict(), Attempt(1, store_of(config)), 40)))
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for again in exports[1:]:
        assert names == {path.name for path in again.iterdir()} - {"README.md"}
        for name in names:
            assert (again / name).read_bytes() == (exports[0] / name).read_bytes(), name


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors")


UP = "model.layers.1.mlp.up_proj.weight"
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: edit_weights(path, lambda w: w.pop(UP)), f"it lacks {UP}"),
    "unexpected": (
        lambda path: edit_weights(path, lambda w: w.update(extra=torch.zeros(1))), "it has extra"
    ),
    "shape": (
        lambda path: edit_weights(path, lambda w: w.update({UP: torch.zeros(47, 32)})),
        f"{UP} has the shape [47, 32], not [48, 32]",
    ),
    "small vocabulary": (
        lambda path: edit_weights(path, lambda w: w.update({"lm_head.weight": torch.zeros(9, 32)})),
        "lm_head.weight has the shape [9, 32]",
    ),
    "other model": (
        lambda path: edit_json(path / "config.json", num_attention_heads=8, num_key_value_heads=8, head_dim=4),
        "headDim: 4 there, 8 here; heads: 8 there, 4 here; kvHeads: 8 there, 2 here",
    ),
    "other family": (
        lambda path: edit_json(path / "config.json", model_type="bert"),
        "model_type is bert; covered are gpt2, llama, qwen2, qwen3",
    ),
    "other rotary positions": (
        lambda path: edit_json(path / "config.json", rope_parameters={"rope_type": "linear", "factor": 8.0}),
        "rotary positions are of type linear with factor; covered are default and llama3",
    ),
    "other activation": (
        lambda path: edit_json(path / "config.json", hidden_act="relu"), "hidden_act is relu; covered is silu"
    ),
    "no tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "it has no tokenizer.json"),
    "other tokenizer": (
        lambda path: (path / "tokenizer.json").write_bytes(bpe.to_json(bpe.train_bpe([b"other"], 280))),
        "is not the one that the data was prepared with",
    ),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "it has no model.safetensors"),
    "cut off": (
        lambda path: (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-100]),
        "model.safetensors ends before its last tensor does",
    ),
    "not weights": (
        lambda path: (path / "model.safetensors").write_bytes(b"a page that says: access denied"),
        "model.safetensors is not in safetensors' format",
    ),
    "nothing": (lambda path: (path / "config.json").unlink(), "it has no config.json"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, wrong: str) -> None:
    write_source(tmp_path / "source", "llama, untied")
    config = of_run(tmp_path / "run", tmp_path / "source")
    manifest = manifest_of(config)
    change, said = WRONG[wrong]
    change(tmp_path / "source")
    with pytest.raises(UserError) as raised:
        load_weights(build_model(config, manifest), config, manifest)
    assert said in raised.value.cause
    assert str(tmp_path / "source") in raised.value.cause
    assert raised.value.next_step


def test_the_shape_that_is_told_can_be_pasted_and_still_begins_with_the_model(tmp_path: Path) -> None:
    write_source(tmp_path / "source", "llama, untied")
    begin = {"initFrom": {"uri": str(tmp_path / "source")}}
    shape = {"layers": 1, "dim": 16, "heads": 2, "dropout": 0.1}
    config = with_data(tmp_path, model={"transformer": shape, **begin, "export": "none"})
    with pytest.raises(UserError, match="its model is another one than") as raised:
        check(config, store_of(config))
    told = raised.value.next_step.removeprefix("Set spec.model to ").removesuffix(".")
    pasted = with_data(tmp_path, model=json.loads(told))
    assert (pasted.model.init_from, pasted.model.export) == (config.model.init_from, "none")
    assert pasted.model.size.dropout == 0.1
    assert check(pasted, store_of(pasted)).outcome == "PrepareData"


def with_data(directory: Path, **changes: Any) -> JobConfig:
    """A run over a hundred short texts, in `directory`/run."""
    directory.mkdir(exist_ok=True)
    texts = [f"{TEXT} number {i}. " * 3 for i in range(100)]
    (directory / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    fifth = {"fraction": 0.2}
    prepare = {"tokenizer": {"vocabSize": 280}}
    data = {"train": {"uri": f"{directory}/raw.jsonl"}, "validation": fifth, "test": fifth, "prepare": prepare}
    return job(directory / "run", data=data, deterministic=False, sequenceLength=32, **changes)


def test_where_nothing_is_no_tokenizer_is_asked_for_but_another_place(tmp_path: Path) -> None:
    config = with_data(tmp_path, model={"preset": "gpt-nano", "initFrom": {"uri": f"{tmp_path}/nowhere"}})
    with pytest.raises(UserError, match=r"nowhere/ cannot be begun with: it has no config\.json") as raised:
        check(config, store_of(config))
    assert raised.value.next_step == "Name a Hugging Face directory, or the outputUri of a finished run."


def finished(config: JobConfig) -> float:
    """Check, prepare and train; the loss on the test split."""
    store = store_of(config)
    check(config, store)
    prepare_data(config, store)
    assert check(config, store).outcome == "Train"
    result = train(config, Attempt.take(store, 0), Hooks())
    result.save(store)
    loss: float = result.evaluation.metrics["loss"]
    return loss


def test_a_run_begins_with_what_a_finished_one_exported(tmp_path: Path) -> None:
    """Weights and tokenizer only: the optimizer and the steps begin anew. A learning rate of nothing shows where."""
    shape = {"transformer": {"layers": 2, "dim": 32, "heads": 4}}
    optimizer, schedule = {"lr": 1e-2}, {"warmupSteps": 1}
    first = with_data(tmp_path / "first", model=shape, steps=30, optimizer=optimizer, schedule=schedule)
    loss = finished(first)
    begin = {**shape, "initFrom": {"uri": first.output_uri}}
    second = with_data(tmp_path / "second", model=begin, steps=1, optimizer={"lr": 1e-12})
    assert finished(second) == pytest.approx(loss, rel=1e-6)
    assert store_of(second).get(TOKENIZER_KEY) == store_of(first).get(TOKENIZER_KEY)
    assert read_progress(store_of(second), newest(second)).step == 1
    assert second.identity()["model.initFrom.uri"] == first.output_uri
    assert second.identity_hash() != first.identity_hash()


def test_a_source_that_is_gone_stops_the_beginning_not_the_resume(tmp_path: Path) -> None:
    write_source(tmp_path / "source", "llama, untied")
    shape = read_config(json.loads((tmp_path / "source" / "config.json").read_text())).wire()
    model = {"transformer": shape, "initFrom": {"uri": str(tmp_path / "source")}}
    config = with_data(tmp_path / "data", model=model, steps=1)
    finished(config)
    (tmp_path / "source" / "config.json").unlink()
    longer = with_data(tmp_path / "data", model=model, steps=2)
    assert check(longer, store_of(longer)).outcome == "Train"
    new = longer.model_copy(update={"output_uri": str(tmp_path / "new")})
    with pytest.raises(UserError, match=r"has no config.json"):
        check(new, store_of(new))


def drained(config: JobConfig, step: int) -> None:
    """Prepare data and train to a commit of this step, and no further."""
    store = store_of(config)
    check(config, store)
    prepare_data(config, store)
    with pytest.raises(Drained):
        train(config, Attempt.take(store, 0), Hooks(stop_after=step))


@pytest.mark.parametrize("ema", [0.0, 0.9], ids=["weights", "average"])
def test_a_run_begins_with_the_newest_checkpoint_of_one_that_is_not_finished(tmp_path: Path, ema: float) -> None:
    """It evaluates as a run does that ends at that step, with the average of the weights if there is one."""
    shape = {"transformer": {"layers": 2, "dim": 32, "heads": 4}}
    schedule = {"name": "constant", "warmupSteps": 0}
    changes: dict[str, Any] = {"model": shape, "optimizer": {"lr": 1e-2}, "schedule": schedule, "emaDecay": ema}
    first = with_data(tmp_path / "first", steps=9, **changes)
    drained(first, 5)
    assert newest(first).step == 5
    expected = finished(with_data(tmp_path / "ended", steps=5, **changes))
    begin = {**shape, "initFrom": {"uri": first.output_uri}}
    second = with_data(tmp_path / "second", model=begin, steps=1, optimizer={"lr": 1e-12})
    assert finished(second) == pytest.approx(expected, rel=1e-6)
    assert read_progress(store_of(second), newest(second)).step == 1
    assert store_of(second).get(TOKENIZER_KEY) == store_of(first).get(TOKENIZER_KEY)


def test_an_unfinished_run_of_another_model_or_tokenizer_is_refused(tmp_path: Path) -> None:
    shape = {"layers": 1, "dim": 32, "heads": 4, "positions": "learned"}
    first = with_data(tmp_path / "first", model={"transformer": shape, "export": "none"}, steps=9)
    drained(first, 2)
    begin = {"initFrom": {"uri": first.output_uri}, "export": "none"}
    for change, said in (
        ({"layers": 2}, "model.layers: 1 there, 2 here"),
        ({"dim": 64}, "model.dim: 32 there, 64 here"),
    ):
        other = with_data(tmp_path / "other", model={"transformer": {**shape, **change}, **begin})
        with pytest.raises(UserError, match=f"cannot be begun with: its model is another one than spec.model: {said}"):
            check(other, store_of(other))
    same = with_data(tmp_path / "same", model={"transformer": shape, **begin}, steps=1)
    longer = same.model_copy(update={"training": same.training.model_copy(update={"sequence_length": 64})})
    with pytest.raises(UserError, match=r"training\.sequenceLength: 32 there, 64 here"):
        check(longer, store_of(longer))
    prepare_data(same, store_of(same))
    manifest = load_manifest(same, store_of(same))
    assert manifest is not None
    source = CommittedRun(store_of(first), newest(first))
    source.check(same, manifest)
    with pytest.raises(UserError, match="tokenizer is not the one that the data was prepared with"):
        source.check(same, manifest.model_copy(update={"tokenizer_digest": "0" * 64}))


def test_a_run_begins_with_the_checkpoint_of_one_that_exported_nothing(tmp_path: Path) -> None:
    model = {"transformer": {"layers": 1, "dim": 32, "heads": 4}, "export": "none"}
    first = with_data(tmp_path / "first", model=model, steps=4, optimizer={"lr": 1e-2})
    loss = finished(first)
    begin = {**model, "initFrom": {"uri": first.output_uri}}
    second = with_data(tmp_path / "second", model=begin, steps=1, optimizer={"lr": 1e-12})
    assert finished(second) == pytest.approx(loss, rel=1e-6)


def test_a_run_that_exported_nothing_and_has_no_checkpoint_left_cannot_be_begun_with(tmp_path: Path) -> None:
    first = with_data(tmp_path / "first", model={"preset": "gpt-nano", "export": "none"}, steps=1)
    finished(first)
    store_of(first).delete([newest(first).key])
    second = with_data(tmp_path / "second", model={"preset": "gpt-nano", "initFrom": {"uri": first.output_uri}})
    with pytest.raises(UserError, match="exported no model"):
        check(second, store_of(second))
