"""Models of libraries by their path alone: settings, weights and tokenizer are those of a directory."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.begin import begun, manifest_of, write_source
from support.ranks import run_ranks
from support.training import Hooks, job, newest, store_of
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.errors import Drained, UserError
from trainingjob_trainer.loop import train
from trainingjob_trainer.prepare.check import check
from trainingjob_trainer.prepare.local import prepare_data
from trainingjob_trainer.storage import LocalStore

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


def edit(path: Path, **changes: Any) -> None:
    settings = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(settings))


def by_path(directory: Path, source: Path | str, **changes: Any) -> JobConfig:
    directory.mkdir(exist_ok=True)
    texts = [json.dumps({"text": f"some text with the number {i}. " * 3}) for i in range(100)]
    (directory / "raw.jsonl").write_text("\n".join(texts))
    fifth = {"fraction": 0.2}
    data = {"train": {"uri": f"{directory}/raw.jsonl"}, "validation": fifth, "test": fifth}
    model = {"huggingface": {}, "initFrom": {"uri": str(source)}}
    return job(directory / "run", model=model, data=data, deterministic=False, **changes)


def test_its_weights_are_those_of_the_directory_on_any_number_of_ranks(tmp_path: Path) -> None:
    theirs = write_source(tmp_path / "source")
    edit(tmp_path / "source", n_ctx=1024)  # as old files have it: no field of the library's any more
    config = by_path(tmp_path / "job", tmp_path / "source", parallelism={"fsdp": "full"})
    manifest = manifest_of(config)
    [(whole, everything)] = run_ranks(1, begun, config, manifest)
    [(sharded, first), (_, second)] = run_ranks(2, begun, config, manifest)
    for name, weight in theirs.named_parameters():
        assert (whole[f"inner.{name}"] == weight.detach().numpy()).all()
        assert (sharded[f"inner.{name}"] == weight.detach().numpy()).all()
    assert max(first, second) < 0.6 * everything


def test_a_run_has_the_settings_that_its_data_was_prepared_with(tmp_path: Path) -> None:
    """The file changes: a run that has begun goes on as it was, one that has not is refused, another is another."""
    write_source(tmp_path / "source")
    config = by_path(tmp_path / "job", tmp_path / "source", steps=4)
    store = store_of(config)
    assert check(config, store).outcome == "PrepareData"
    prepare_data(config, store)
    edit(tmp_path / "source", hidden_act="relu")
    with pytest.raises(UserError, match="the one that the data was prepared for: hidden_act: relu there") as refused:
        check(config, store)
    assert "Restore its config.json" in str(refused.value.next_step)
    edit(tmp_path / "source", hidden_act="gelu")
    assert check(config, store).outcome == "Train"
    with pytest.raises(Drained):
        train(config, Attempt.take(store, 0), Hooks(stop_after=2))
    (tmp_path / "source" / "config.json").unlink()
    assert check(config, store).outcome == "Train"
    result = train(config, Attempt.take(store, 2), Hooks())
    exported = json.loads((Path(str(result.model_uri)) / "config.json").read_text())
    assert (exported["model_type"], exported["vocab_size"]) == ("gpt_neox", 288)


def test_the_check_opens_the_directory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    write_source(source)
    config = by_path(tmp_path / "job", source)
    original, reads = LocalStore._read, Counter[tuple[str, int]]()

    def counted(store: LocalStore, key: str, start: int, end: int | None) -> tuple[bytes, str]:
        reads[store.uri(key), start] += 1
        return original(store, key, start, end)

    monkeypatch.setattr(LocalStore, "_read", counted)
    assert check(config, store_of(config)).outcome == "PrepareData"
    of_model = {place: times for place, times in reads.items() if Path(place[0]) in set(source.iterdir())}
    assert {Path(uri).name for uri, _ in of_model} >= {"config.json", "tokenizer.json", "model.safetensors"}
    assert set(of_model.values()) == {1}, of_model


def test_a_run_begins_with_another_of_a_library_finished_or_not(tmp_path: Path) -> None:
    """Of the one that is not finished the settings are those of its manifest: it has no config.json."""
    write_source(tmp_path / "source")
    first = by_path(tmp_path / "first", tmp_path / "source", steps=4)
    store = store_of(first)
    check(first, store)
    prepare_data(first, store)
    with pytest.raises(Drained):
        train(first, Attempt.take(store, 0), Hooks(stop_after=2))
    unfinished = by_path(tmp_path / "second", first.output_uri, steps=1)
    assert check(unfinished, store_of(unfinished)).outcome == "PrepareData"
    prepare_data(unfinished, store_of(unfinished))
    train(unfinished, Attempt.take(store_of(unfinished), 0), Hooks())
    assert newest(unfinished).step == 1
    train(first, Attempt.take(store, 2), Hooks()).save(store)
    finished = by_path(tmp_path / "third", first.output_uri)
    assert check(finished, store_of(finished)).outcome == "PrepareData"


@pytest.mark.parametrize(
    ("change", "cause", "next_step"),
    [
        (lambda path: (path / "config.json").unlink(), "it has no config.json", "Name a Hugging Face directory"),
        (lambda path: (path / "model.safetensors").unlink(), "it has no model.safetensors", "Save the model"),
        (lambda path: (path / "tokenizer.json").unlink(), "it has no tokenizer.json", "Write one"),
        (lambda path: edit(path, model_type="gptneox"), "model_type is gptneox, which is no causal", "mean gpt_neox"),
        (lambda path: edit(path, model_type="t5"), "model_type is t5, which is no causal language model", ""),
        (lambda path: edit(path, num_attention_heads=5), "transformers cannot make this model: ", "Correct its fields"),
        (lambda path: edit(path, vocab_size=9), "vocab_size is 9, and the tokenizer has 26", "Leave it out"),
        (lambda path: edit(path, max_position_embeddings=8), "is 8, and spec.training.sequenceLength 16", "Raise"),
    ],
)
def test_what_is_wrong_with_a_directory_is_named(
    tmp_path: Path, change: Callable[[Path], object], cause: str, next_step: str
) -> None:
    write_source(tmp_path / "source")
    change(tmp_path / "source")
    config = by_path(tmp_path / "job", tmp_path / "source")
    with pytest.raises(UserError) as refused:
        check(config, store_of(config))
    assert cause in refused.value.cause
    assert "spec.model.initFrom.uri" in refused.value.cause
    assert next_step in str(refused.value.next_step)


@pytest.mark.parametrize("given", ["text", "path"])
def test_a_model_that_sees_what_it_is_to_predict_is_refused(tmp_path: Path, given: str) -> None:
    write_source(tmp_path / "source", "bert", SMALL | {"is_decoder": True})
    decoder = by_path(tmp_path / "decoder", tmp_path / "source")
    assert check(decoder, store_of(decoder)).outcome == "PrepareData"
    edit(tmp_path / "source", is_decoder=False)
    config = by_path(tmp_path / "job", tmp_path / "source")
    if given == "text":
        config = job(tmp_path / "job", model={"huggingface": {"config": json.dumps(SMALL | {"model_type": "bert"})}})
    with pytest.raises(UserError, match="a bert sees the tokens that it is to predict, unless is_decoder is true"):
        check(config, store_of(config))


def test_settings_are_required_where_there_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"huggingface\.config is required without initFrom"):
        job(tmp_path, model={"huggingface": {}})


def test_tensors_that_the_library_puts_together_are_refused(tmp_path: Path) -> None:
    write_source(tmp_path / "source", "mixtral", SMALL | {"num_key_value_heads": 2})
    config = by_path(tmp_path / "job", tmp_path / "source")
    with pytest.raises(UserError, match="is put together with others when transformers reads it"):
        check(config, store_of(config))
