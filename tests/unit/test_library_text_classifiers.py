"""Classifiers of texts of transformers: by their settings, and on the body of a model that is there already."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.rank_functions import train_run
from support.ranks import run_ranks
from support.resuming import resumed_like_its_twin
from support.training import job, store_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from trainingjob_trainer.beginning import begin
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.models.from_transformers import TextClassifier
from trainingjob_trainer.parallel import World
from trainingjob_trainer.prepare.check import check
from trainingjob_trainer.prepare.local import prepare_data

LENGTH = 16
BERT = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
ANIMALS = {"cat": "meows and purrs", "dog": "barks and growls"}


def classifier(directory: Path, model: dict[str, Any], **changes: Any) -> JobConfig:
    """Texts of unequal length, in `directory`; what they are about is in their words."""
    directory.mkdir(exist_ok=True)
    lines = [
        {"text": f"number {i} " * (i % 3) + says, "label": animal}
        for i in range(60)
        for animal, says in ANIMALS.items()
    ]
    (directory / "raw.jsonl").write_text("\n".join(map(json.dumps, lines)))
    part = {"fraction": 0.2}
    prepare = {"tokenizer": {"vocabSize": 280}}
    data = {"train": {"uri": f"{directory}/raw.jsonl"}, "validation": part, "test": part, "prepare": prepare}
    run = {"steps": 12, "globalBatchSize": 8, "checkpoint": {"everySteps": 6}, "evaluation": {"everySteps": 6}}
    task = {"kind": "text-classification"}
    return job(directory / "run", task=task, data=data, model=model, sequenceLength=LENGTH, **run | changes)


def by_settings(directory: Path, settings: dict[str, Any] = BERT, **changes: Any) -> JobConfig:
    return classifier(directory, {"huggingface": {"config": json.dumps(settings)}}, **changes)


def by_path(directory: Path, source: Path, **changes: Any) -> JobConfig:
    return classifier(directory, {"huggingface": {}, "initFrom": {"uri": str(source)}}, **changes)


def prepared(config: JobConfig) -> Manifest:
    assert check(config, store_of(config)).outcome == "PrepareData"
    manifest = prepare_data(config, store_of(config))
    assert check(config, store_of(config)).outcome == "Train"
    return manifest


def write_source(path: Path, settings: dict[str, Any], auto: str, marks: bool) -> Any:
    """Have transformers write a random model with the head of another task, and a tokenizer of words."""
    import transformers

    words = {word for says in ANIMALS.values() for word in says.split()} | {"number"}
    vocabulary = {token: n for n, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if marks:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"} if marks else {"eos_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **names).save_pretrained(path)
    torch.manual_seed(3)
    kind = {k: v for k, v in settings.items() if k != "model_type"}
    config = transformers.AutoConfig.for_model(settings["model_type"], vocab_size=len(vocabulary), **kind)
    model = getattr(transformers, auto).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    return model


def test_it_is_sharded_resumes_bit_for_bit_and_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    changes: dict[str, Any] = {"parallelism": {"fsdp": "full"}, "optimizer": {"lr": 1e-3}}
    baseline, disturbed = (by_settings(tmp_path / name, **changes) for name in ("baseline", "disturbed"))
    for config in (baseline, disturbed):
        manifest = prepared(config)
    (_, reports), (result, _) = resumed_like_its_twin(2, baseline, disturbed, killed_at=9, saved=6)
    assert "FSDP2: the model is sharded over 2 ranks" in reports[0]["message"]

    theirs = AutoModelForSequenceClassification.from_pretrained(result.model_uri).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.model_uri)
    ours = build_model(disturbed, manifest).to_empty(device="cpu").eval()
    assert isinstance(ours, TextClassifier)
    ours.inner.load_state_dict(theirs.state_dict())
    rows = Reader(store_of(disturbed), manifest, "test", LENGTH)
    batch = rows.read(range(len(rows)))
    lines = [json.loads(line) for line in (tmp_path / "disturbed" / "raw.jsonl").read_text().splitlines()]
    inputs = tokenizer([line["text"] for line in lines], truncation=True, padding=True, return_tensors="pt")
    assert len(set(inputs.attention_mask.sum(1).tolist())) > 2, "texts of one length would hide padding"
    logits = {tuple(row): row_logits for row, row_logits in zip(batch.inputs.tolist(), ours(batch.inputs), strict=True)}
    with torch.no_grad():
        expected = dict(zip(map(tuple, inputs.input_ids.tolist()), theirs(**inputs).logits, strict=True))
    for row, found in logits.items():
        torch.testing.assert_close(found, expected[row], rtol=1e-5, atol=1e-6)
    assert len(logits) > 10
    assert theirs.config.id2label == {0: "cat", 1: "dog"}
    assert theirs.config.problem_type == "single_label_classification"


@pytest.mark.parametrize(
    ("settings", "auto", "marks"),
    [(BERT, "AutoModelForMaskedLM", True), (GPT2, "AutoModelForCausalLM", False), (BERT, "AutoModel", True)],
    ids=["bert", "gpt2", "headless"],
)
def test_the_body_is_that_of_the_directory_and_the_head_is_fresh(
    tmp_path: Path, settings: dict[str, Any], auto: str, marks: bool
) -> None:
    theirs = write_source(tmp_path / "source", settings, auto, marks)
    config = by_path(tmp_path / "job", tmp_path / "source")
    manifest = prepared(config)
    fresh = build_model(config, manifest).to_empty(device="cpu")
    init_weights(fresh, config.training.seed)
    found = build_model(config, manifest).to_empty(device="cpu")
    begin(found, config, manifest, World.join())
    body = dict(theirs.base_model.named_parameters())
    loaded = set()
    for name, value in fresh.named_parameters():
        _, _, inside = name.removeprefix("inner.").partition(".")
        expected = body.get(inside)
        loaded.add(expected is not None)
        assert torch.equal(found.get_parameter(name), value if expected is None else expected), name
    assert loaded == {True, False}
    first = Reader(store_of(config), manifest, "train", LENGTH).read(range(1)).inputs[0, 0]
    assert (int(first), manifest.eos_id) == ((2, 3) if marks else (3, 3)), "as its tokenizer begins a text"


def test_it_computes_what_transformers_does_on_the_texts_alone(tmp_path: Path) -> None:
    """[CLS], the words, [SEP], and nothing of the padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    write_source(tmp_path / "source", BERT, "AutoModelForSequenceClassification", marks=True)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "source").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source")
    config = by_path(tmp_path / "job", tmp_path / "source")
    manifest = prepared(config)
    ours = build_model(config, manifest).to_empty(device="cpu").eval()
    ours.load_state_dict({f"inner.{name}": value for name, value in theirs.state_dict().items()})
    rows = Reader(store_of(config), manifest, "test", LENGTH)
    for row in rows.read(range(8)).inputs:
        text = tokenizer.decode([token for token in row.tolist() if token not in (2, 3)])
        with torch.no_grad():
            alone = theirs(**tokenizer(text, return_tensors="pt")).logits
            torch.testing.assert_close(ours(row[None]), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "cause", "next_step"),
    [
        (BERT | {"model_type": "brt"}, "model_type is brt, which is no classifier of texts", "bert"),
        ({"model_type": "vit"}, "model_type is vit, which is no classifier of texts", ""),
        ({"model_type": "bart"}, "a bart has an encoder and a decoder", "one of them"),
        (BERT | {"model_type": "roberta", "max_position_embeddings": 16}, "16, and 17 are used", "Raise the one"),
        (BERT | {"max_position_embeddings": 8}, "max_position_embeddings is 8", "Raise the one"),
        (BERT | {"hidden_sise": 8}, "bert has no hidden_sise", "hidden_size"),
    ],
)
def test_what_is_none_is_refused_before_its_data_is_prepared(
    tmp_path: Path, settings: dict[str, Any], cause: str, next_step: str
) -> None:
    config = by_settings(tmp_path, settings)
    with pytest.raises(UserError) as refused:
        check(config, store_of(config))
    assert cause in refused.value.cause
    assert next_step in str(refused.value.next_step)


@pytest.mark.parametrize("settings", [BERT, BERT | {"model_type": "roberta"}, GPT2], ids=["bert", "roberta", "gpt2"])
@pytest.mark.slow
def test_it_learns_what_texts_are_about(tmp_path: Path, settings: dict[str, Any]) -> None:
    steps = {"steps": 120, "evaluation": {"everySteps": 60}, "checkpoint": {"everySteps": 60}}
    config = by_settings(tmp_path, settings, optimizer={"lr": 3e-3}, microBatchSize=8, **steps)
    prepared(config)
    [(result, _)] = run_ranks(1, train_run, config, 1)
    assert result.evaluation.metrics["accuracy"] > 0.95
