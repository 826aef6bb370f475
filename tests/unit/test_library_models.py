"""Models of transformers and timm: trained, sharded, committed, resumed and handed out like our own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.begin import write_source
from support.corpus import digits
from support.rank_functions import averaged_statistics, initial_state, statistics_around_a_bad_step, train_run
from support.ranks import run_ranks
from support.resuming import resumed_like_its_twin
from support.training import VOCABULARY, job, newest, put_tokens, store_of
from trainingjob_trainer.checkpoint.checkpointer import read_progress
from trainingjob_trainer.config import HuggingFace, JobConfig
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.models import build_model
from trainingjob_trainer.models.adapted import Adapted
from trainingjob_trainer.prepare.check import check
from trainingjob_trainer.prepare.local import prepare_data

# Partial rotary positions, attention and feed-forward side by side: nothing that `model.transformer` can say.
NEOX = {
    "model_type": "gpt_neox",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "tie_word_embeddings": True,
    "hidden_dropout": 0.1,
}

EVERY_SIX = {"everySteps": 6}
RESNET = {"timm": {"name": "test_resnet", "dropout": 0.1}}
VIT = {"timm": {"name": "test_vit", "options": '{"img_size": 8, "patch_size": 4}'}}


def decoder(directory: Path, settings: dict[str, Any] = NEOX, **changes: Any) -> JobConfig:
    model = {"huggingface": {"config": json.dumps(settings)}}
    config = job(directory, **{"model": model, "parallelism": {"fsdp": "full"}, **changes})
    put_tokens(store_of(config))
    return config


def classifier(directory: Path, model: dict[str, Any] = RESNET, **changes: Any) -> JobConfig:
    directory.mkdir(exist_ok=True)
    (directory / "digits.parquet").write_bytes(digits())
    config = job(
        directory,
        task={"kind": "image-classification"},
        data={"train": {"uri": f"{directory}/digits.parquet", "format": "parquet"}},
        model=model,
        **{
            "steps": 12,
            "globalBatchSize": 8,
            "checkpoint": {"everySteps": 6},
            "evaluation": {"everySteps": 6},
            "parallelism": {},  # BatchNorm's layers are not sharded
            **changes,
        },
    )
    prepare_data(config, store_of(config))
    return config


def model_of(config: JobConfig) -> Adapted:
    model = build_model(config, Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY)))
    assert isinstance(model, Adapted)
    return model


def test_a_decoder_of_transformers_is_sharded_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer": {"lr": 1e-2}, "checkpoint": {"everySteps": 20, "keepBest": 0}}
    baseline, disturbed = decoder(tmp_path / "baseline", **changes), decoder(tmp_path / "disturbed", **changes)
    (_, reports), _ = resumed_like_its_twin(2, baseline, disturbed, killed_at=23, saved=20)
    assert "FSDP2: the model is sharded over 2 ranks" in reports[0]["message"]
    history = read_progress(store_of(baseline), newest(baseline)).history
    assert history[-1].loss < 0.8 * history[0].loss, "nothing was learnt"


def test_what_is_exported_loads_in_transformers_and_computes_the_same(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = decoder(tmp_path, steps=2, model={"huggingface": {"config": json.dumps(NEOX | {"vocab_size": 40})}})
    [(result, _)] = run_ranks(1, train_run, config, 1)
    theirs = AutoModelForCausalLM.from_pretrained(result.model_uri)
    ours = model_of(config).to_empty(device="cpu").eval()
    ours.inner.load_state_dict(theirs.state_dict())
    tokens = torch.randint(VOCABULARY, (2, 16))
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, ours(tokens))
    assert theirs.config.vocab_size == 40, "padded as configured"
    for settings in (theirs.config, theirs.generation_config, AutoTokenizer.from_pretrained(result.model_uri)):
        assert settings.eos_token_id == settings.bos_token_id == settings.pad_token_id == 0


def test_a_decoder_begins_with_what_transformers_wrote_if_its_settings_are_the_same(tmp_path: Path) -> None:
    """They are refused with those that are; without any it has the directory's (test_library_models_by_path)."""
    write_source(tmp_path / "source", settings=NEOX)
    begin = {"initFrom": {"uri": str(tmp_path / "source")}}
    wrong = job(tmp_path / "run", model={"huggingface": {"config": json.dumps(NEOX)}, **begin})
    with pytest.raises(UserError, match=r"another one than spec\.model: vocab_size: 288 there") as refused:
        check(wrong, store_of(wrong))
    found = refused.value.next_step.removeprefix("Leave spec.model.huggingface.config out, or set it to ")
    model = {"huggingface": {"config": found.removesuffix(".")}, **begin}
    (tmp_path / "raw.txt").write_text("some text\n" * 9)
    data = {"train": {"uri": f"{tmp_path}/raw.txt", "format": "text"}}
    right = job(tmp_path / "run", model=model, data=data)
    assert check(right, store_of(right)).outcome == "PrepareData"


@pytest.mark.parametrize("kind", ["decoder", "classifier"])
def test_initial_weights_are_the_librarys_and_the_same_on_any_number_of_ranks(tmp_path: Path, kind: str) -> None:
    config = decoder(tmp_path) if kind == "decoder" else classifier(tmp_path, VIT, parallelism={"fsdp": "full"})
    [alone] = run_ranks(1, initial_state, config)
    first, second = run_ranks(2, initial_state, config)
    assert first == second == alone
    assert {name for name, _ in alone} == {f"model.{name}" for name, _ in model_of(config).named_parameters()}
    spreads = {name: spread for name, spread in alone if name.endswith("weight")}
    assert all(spread == 0 for name, spread in spreads.items() if "norm" in name)
    assert all(spread > 0 for name, spread in spreads.items() if "norm" not in name)


def test_statistics_of_batch_norm_are_committed_and_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Committed at a step without an evaluation, which shares them among the ranks, too. And so are their averages."""
    changes = {"checkpoint": {"everySteps": 5, "keepBest": 0}, "emaDecay": 0.9}
    baseline, disturbed = (classifier(tmp_path / name, **changes) for name in ("baseline", "disturbed"))
    (_, reports), (result, _) = resumed_like_its_twin(2, baseline, disturbed, killed_at=8, saved=5)
    assert "DDP: 2 copies of the model (its BatchNorm layers are not sharded)" in reports[0]["message"]
    program = torch.export.load(f"{result.model_uri}model.pt2").state_dict
    counts = {int(value) for name, value in program.items() if name.endswith("num_batches_tracked")}
    assert counts == {24}, "12 steps of 2 passes"


def test_averaged_weights_are_evaluated_with_averaged_statistics(tmp_path: Path) -> None:
    """Those of the last weights are not theirs."""
    assert run_ranks(1, averaged_statistics, classifier(tmp_path, emaDecay=0.5)) == [(True, True)]


def test_in_bfloat16_the_statistics_stay_float32(tmp_path: Path) -> None:
    config = classifier(tmp_path, precision="bfloat16", steps=2)
    (result, _), _ = run_ranks(2, train_run, config, 1)
    weights = torch.export.load(f"{result.model_uri}model.pt2").state_dict
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


def test_a_step_that_is_not_finite_leaves_the_statistics_alone(tmp_path: Path) -> None:
    config = classifier(tmp_path)
    [(before, after)] = run_ranks(1, statistics_around_a_bad_step, config)
    assert len(before) > 10
    assert after == before


@pytest.mark.parametrize(
    ("model", "training", "cause", "next_step"),
    [
        (RESNET, {"parallelism": {"fsdp": "full"}}, "fsdp is full, and the model has BatchNorm layers", "none or auto"),
        (
            RESNET,
            {"parallelism": {"activationCheckpointing": "full"}},
            "activationCheckpointing is full, and the model has BatchNorm layers",
            "Set it to none",
        ),
        ({"timm": {"name": "resnet81"}}, {}, "timm has no model resnet81", "resnet18"),
        ({"timm": {"name": "resnet18", "options": '{"foo": 1}'}}, {}, "unexpected keyword argument 'foo'", "Correct"),
        (NEOX | {"model_type": "gptneox"}, {}, "model_type is gptneox, which is no causal", "gpt_neox"),
        (NEOX | {"num_layers": 2}, {}, "gpt_neox has no num_layers", "num_hidden_layers"),
        (NEOX | {"num_attention_heads": 5}, {}, "transformers cannot make this model: ", "Correct its fields"),
        (NEOX | {"hidden_size": "wide"}, {}, "transformers cannot make this model: ", "Correct its fields"),
        (NEOX | {"vocab_size": 300}, {}, "vocab_size is 300, and the tokenizer has 32000 entries", "Leave it out"),
        (NEOX | {"max_position_embeddings": 8}, {}, "is 8, and spec.training.sequenceLength 16", "Raise the one"),
    ],
)
def test_a_wrong_model_is_refused_before_its_data_is_prepared(
    tmp_path: Path, model: dict[str, Any], training: dict[str, Any], cause: str, next_step: str
) -> None:
    images: dict[str, Any] = {
        "task": {"kind": "image-classification"},
        "data": {"train": {"uri": f"{tmp_path}/digits.parquet", "format": "parquet"}},
    }
    if "timm" in model:
        (tmp_path / "digits.parquet").write_bytes(digits())
        config = job(tmp_path / "run", model=model, **images, **training)
    else:
        config = job(tmp_path / "run", model={"huggingface": {"config": json.dumps(model)}}, **training)
    with pytest.raises(UserError) as refused:
        check(config, store_of(config))
    assert cause in refused.value.cause
    assert next_step in refused.value.next_step
    assert not (tmp_path / "run").exists()


def test_a_configuration_that_is_no_json_object_is_refused_and_its_spelling_does_not_matter() -> None:
    for text in ("{]", "[1]", "3.5"):
        with pytest.raises(ValueError, match="JSON"):
            HuggingFace(config=text)
    assert HuggingFace(config='{ "b": 1,"a":2}') == HuggingFace(config='{"a": 2, "b": 1}')
