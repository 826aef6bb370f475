"""Image classifiers of timm that begin with weights that are there already, and images of whatever size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.corpus import digits, images
from support.rank_functions import train_run
from support.ranks import run_ranks
from support.training import newest, store_of
from trainingjob_trainer.accounting import host_memory
from trainingjob_trainer.beginning import begin, source_of
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.commits import Commit, publish
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.models.from_timm import ImageClassifier
from trainingjob_trainer.parallel import World
from trainingjob_trainer.prepare.check import check
from trainingjob_trainer.prepare.limits import model_size
from trainingjob_trainer.prepare.local import prepare_data
from trainingjob_trainer.prepare.supposed import supposed_manifest

MEAN, DEVIATION = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


def write_source(path: Path, name: str, **arguments: Any) -> dict[str, Any]:
    """Weights as timm's directories hold them, of color images; gives what it needs to read them."""
    import timm

    torch.manual_seed(4)
    model = timm.create_model(name, num_classes=10, **arguments)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.2)
    path.mkdir()
    save_file(model.state_dict(), path / "model.safetensors")
    size = (3, *(arguments.get("img_size", 160),) * 2)
    traits = {"mean": MEAN, "std": DEVIATION, "num_classes": 10, "input_size": size}
    (path / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": traits}))
    return {"file": str(path / "model.safetensors"), "num_classes": 10, "input_size": size}


def run_of(directory: Path, name: str, source: Path | str | None, options: str = "{}", **changes: Any) -> JobConfig:
    """Digits: 8 x 8 pixels, one channel, ten classes."""
    directory.mkdir()
    model: dict[str, Any] = {"timm": {"name": name, "options": options}}
    if source is not None:
        model["initFrom"] = {"uri": str(source)}
    steps = {"parallelism": {}, "steps": 2, "globalBatchSize": 8, "checkpoint": {"everySteps": 2, "keepBest": 0}}
    config = images(directory, digits(), model=model, **steps | changes)
    return config.model_copy(update={"output_uri": str(directory / "run")})


def prepared(config: JobConfig) -> Manifest:
    assert check(config, store_of(config)).outcome == "PrepareData"
    manifest = prepare_data(config, store_of(config))
    assert check(config, store_of(config)).outcome == "Train"
    return manifest


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [("test_resnet", {}, {}), ("test_vit", {"img_size": 16, "patch_size": 4}, {"patch_size": 4})],
)
def test_the_body_is_what_timm_makes_of_the_directory_and_the_head_is_fresh(
    tmp_path: Path, name: str, arguments: dict[str, Any], options: dict[str, Any]
) -> None:
    """One channel of three, and a table of positions for other sizes, as timm itself brings them there."""
    import timm

    overlay = write_source(tmp_path / "source", name, **arguments)
    config = run_of(tmp_path / "job", name, tmp_path / "source", json.dumps(options))
    manifest = prepared(config)
    model, fresh = (build_model(config, manifest).to_empty(device="cpu") for _ in range(2))
    assert isinstance(model, ImageClassifier)
    init_weights(fresh, config.training.seed)
    begin(model, config, manifest, World.join())
    more = options | ({"img_size": 8} if name == "test_vit" else {})
    theirs = timm.create_model(
        name, num_classes=10, in_chans=1, pretrained=True, pretrained_cfg_overlay=overlay, **more
    )
    head = theirs.pretrained_cfg["classifier"]
    for key, expected in theirs.state_dict().items():
        if "num_batches" not in key:
            expected = fresh.state_dict()[f"inner.{key}"] if key.startswith(head) else expected
            assert torch.equal(model.state_dict()[f"inner.{key}"], expected), key
    pixels = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        expected = model.inner.eval()((pixels - 0.5) / 0.3)  # the mean of the channels' means and deviations
        found, bare = model.eval()(2 * pixels - 1), model.inner(2 * pixels - 1)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < 1e-4 * scale
    assert float((found - bare).abs().max()) > 1e-3 * scale, "pixels make no difference"


def test_a_pod_needs_memory_for_weights_as_they_are_stored(tmp_path: Path) -> None:
    """In half precision, each rank holds half of what it would in float32: they are read whole, and copied."""
    source = tmp_path / "source"
    write_source(source, "test_vit", img_size=16, patch_size=4)
    halves = {name: tensor.half() for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(halves, source / "model.safetensors")
    config = run_of(tmp_path / "job", "test_vit", source, json.dumps({"patch_size": 4}))
    config = config.model_copy(update={"ranks_per_pod": 8, "gpus": True})
    known = supposed_manifest(config, source_of(config))
    held = sum(2 * tensor.numel() for tensor in halves.values())
    needed = host_memory(config, model_size(config, known), 0, held).total
    with pytest.raises(UserError, match=f"memory is {needed - 1} "):
        check(config.model_copy(update={"pod_memory": str(needed - 1)}), store_of(config))
    roomy = config.model_copy(update={"pod_memory": str(needed)})
    assert check(roomy, store_of(config)).outcome == "PrepareData"


def test_a_run_that_goes_on_needs_no_memory_for_what_it_began_with(tmp_path: Path) -> None:
    """A checkpoint fills each rank's shard by itself."""
    write_source(tmp_path / "source", "test_vit", img_size=16, patch_size=4)
    config = run_of(tmp_path / "job", "test_vit", tmp_path / "source", json.dumps({"patch_size": 4}))
    config, store = config.model_copy(update={"ranks_per_pod": 8, "gpus": True}), store_of(config)
    manifest = prepared(config)
    data = sum(shard.size for shard in manifest.splits["train"].shards)
    enough = host_memory(config, model_size(config, manifest), data, None).total
    config = config.model_copy(update={"pod_memory": str(enough)})
    with pytest.raises(UserError, match="more for the whole model on each rank at first"):
        check(config, store)
    identity = config.identity_hash()
    publish(Commit(step=1, attempt=1, world_size=8, identity_hash=identity, objects=[]), Attempt.take(store, 0))
    assert check(config, store).outcome == "Train"


def test_a_run_begins_with_what_another_exported_and_timm_reads_it_too(tmp_path: Path) -> None:
    """In bfloat16, with the statistics of BatchNorm."""
    import timm

    write_source(tmp_path / "source", "test_resnet")
    first = run_of(tmp_path / "first", "test_resnet", tmp_path / "source", precision="bfloat16")
    prepared(first)
    [(result, _)] = run_ranks(1, train_run, first, 1)
    result.save(store_of(first))
    second = run_of(tmp_path / "second", "test_resnet", first.output_uri, optimizer={"lr": 1e-12})
    prepared(second)
    [(again, _)] = run_ranks(1, train_run, second, 1)
    assert newest(second).step == 2
    one, other = (load_file(f"{uri}model.safetensors") for uri in (result.model_uri, again.model_uri))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[key], other[key]) for key in one if key.startswith("layer") and "weight" in key)
    settings = json.loads((Path(again.model_uri) / "config.json").read_text())
    assert settings["pretrained_cfg"]["mean"] == pytest.approx([0.5])
    theirs = timm.create_model(f"local-dir:{again.model_uri}", pretrained=True, in_chans=1)
    assert all(torch.equal(value, other[key]) for key, value in theirs.state_dict().items())


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors")


WEIGHT = "layer2.0.conv1.weight"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda path: edit_weights(path, lambda w: w.pop(WEIGHT)), f"it lacks {WEIGHT}"),
        (lambda path: edit_weights(path, lambda w: w.update(extra=torch.zeros(1))), "it has extra"),
        (lambda path: edit_weights(path, lambda w: w.update({WEIGHT: torch.zeros(1, 2, 3, 3)})), "shape [1, 2, 3, 3]"),
        (lambda path: (path / "model.safetensors").unlink(), "it has no model.safetensors"),
        (
            lambda path: (path / "config.json").write_text('{"architecture": "resnet18"}'),
            "its model is a resnet18, and spec.model.timm.name test_resnet",
        ),
    ],
)
def test_what_is_wrong_with_a_directory_is_named(tmp_path: Path, change: Callable[[Path], object], cause: str) -> None:
    write_source(tmp_path / "source", "test_resnet")
    change(tmp_path / "source")
    config = run_of(tmp_path / "job", "test_resnet", tmp_path / "source")
    with pytest.raises(UserError) as refused:
        check(config, store_of(config))
    assert cause in refused.value.cause
    assert str(tmp_path / "source") in refused.value.cause


def test_a_vit_is_made_for_the_size_of_the_images(tmp_path: Path) -> None:
    config = run_of(tmp_path / "job", "test_vit", None, '{"patch_size": 2}')
    manifest = prepared(config)
    assert build_model(config, manifest).get_parameter("inner.pos_embed").shape[1] == 4 * 4 + 1


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vit_tiny_patch16_224", '{"img_size": 224}', "Input height (8) doesn't match model (224)"),
        ("test_vit", "{}", "for images of 1 x 8 x 8"),  # patches of 16
        ("inception_resnet_v2", "{}", "for images of 1 x 8 x 8"),
    ],
)
def test_a_model_that_does_not_take_the_images_is_refused_at_the_first_check(
    tmp_path: Path, name: str, options: str, said: str
) -> None:
    config = run_of(tmp_path / "job", name, None, options)
    with pytest.raises(UserError) as refused:
        check(config, store_of(config))
    assert said in refused.value.cause
    assert "a size that it takes" in str(refused.value.next_step)
