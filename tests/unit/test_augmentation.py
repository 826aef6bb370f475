"""Augmentation: what is done to images, that (seed, epoch, sample) alone decide it, and that only training sees it."""

import hashlib
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import memory
from support.corpus import digits, images
from support.rank_functions import train_run
from support.ranks import run_ranks
from support.resuming import resumed_like_its_twin
from support.training import newest, store_of
from trainingjob_trainer.checkpoint.checkpointer import read_progress
from trainingjob_trainer.config import Augmentation, JobConfig
from trainingjob_trainer.data.augmentation import GREY, Augmenter, augmenter, erase, flip, relight, shift
from trainingjob_trainer.data.batches import training_rows
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest
from trainingjob_trainer.data.prefetch import prefetch
from trainingjob_trainer.data.reader import Batch, Reader
from trainingjob_trainer.data.rows import decode
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.evaluation.model_card import model_card
from trainingjob_trainer.prepare.check import check
from trainingjob_trainer.stop import Stop

Bytes = npt.NDArray[np.uint8]

ALL: dict[str, Any] = {"horizontalFlip": 0.5, "shift": 2, "brightness": 0.3, "contrast": 0.3, "erase": 0.5}
SHAPE, LABEL_BYTES = (3, 6, 8), 4
seeds = st.integers(0, 2**31 - 1)
draws_of_a_batch = st.lists(st.integers(0, 2**40), min_size=1, max_size=20)


def noise(count: int, shape: tuple[int, ...] = SHAPE) -> Bytes:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def rows_of(count: int) -> Bytes:
    """Images as they are stored, each with a label."""
    return noise(count, (int(np.prod(SHAPE)) + LABEL_BYTES,))


def augmented(rows: Bytes, draws: Any, seed: int = 1, options: dict[str, Any] = ALL) -> Bytes:
    changed = rows.copy()
    Augmenter(Augmentation.model_validate(options), seed, SHAPE)(changed, draws)
    return changed


@given(seeds, draws_of_a_batch, st.data())
def test_a_draw_means_the_same_pixels_whatever_batch_it_is_in(seed: int, draws: list[int], data: Any) -> None:
    rows = rows_of(len(draws))
    whole = augmented(rows, draws, seed)
    places = data.draw(st.lists(st.integers(0, len(draws) - 1), min_size=1, max_size=20))
    assert np.array_equal(augmented(rows[places], [draws[place] for place in places], seed), whole[places])


@given(seeds, st.lists(st.integers(0, 2**40), min_size=64, max_size=64, unique=True), st.integers(1, 1000))
def test_another_epoch_and_another_seed_mean_other_pixels(seed: int, draws: list[int], epochs: int) -> None:
    rows, samples = rows_of(64), 10**6
    now = augmented(rows, draws, seed)
    for other in (augmented(rows, [draw + epochs * samples for draw in draws], seed), augmented(rows, draws, seed + 1)):
        assert np.mean((now != other).any(axis=1)) > 0.9


@given(draws_of_a_batch)
def test_labels_are_what_they_were_and_nothing_is_done_that_nobody_asked_for(draws: list[int]) -> None:
    rows = rows_of(len(draws))
    assert np.array_equal(augmented(rows, draws)[:, -LABEL_BYTES:], rows[:, -LABEL_BYTES:])
    assert np.array_equal(augmented(rows, draws, options={}), rows)


def test_the_numbers_stay_what_they_are() -> None:
    """A run that goes on under a later version sees what it would have seen."""
    found = augmented(rows_of(100), range(100))
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == "dd9822e556c89241"


def test_all_options_do_what_each_does_alone() -> None:
    """Each has numbers of its own: another one beside it changes none of them."""
    rows, draws = rows_of(100), range(100)
    found = rows
    for names in (["horizontalFlip"], ["shift"], ["brightness", "contrast"], ["erase"]):
        found = augmented(found, draws, options={name: ALL[name] for name in names})
    assert np.array_equal(found, augmented(rows, draws))


@given(st.integers(1, 5), st.integers(0, 10**6))
def test_to_flip_twice_is_to_do_nothing(count: int, number: int) -> None:
    images, chosen = noise(count), np.array([number >> bit & 1 == 1 for bit in range(count)])
    once = images.copy()
    flip(once, chosen)
    for image, before, mirrored in zip(once, images, chosen, strict=True):
        assert np.array_equal(image, before[:, :, ::-1] if mirrored else before)
    flip(once, chosen)
    assert np.array_equal(once, images)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=5))
def test_to_shift_keeps_all_that_stays_in_the_picture(moves: list[tuple[int, int]]) -> None:
    images = noise(len(moves))
    moved = images.copy()
    shift(moved, *np.array(moves).T, 5)
    _, height, width = SHAPE
    for image, before, (down, right) in zip(moved, images, moves, strict=True):
        for y in range(height):
            for x in range(width):
                inside = 0 <= y - down < height and 0 <= x - right < width
                assert image[:, y, x].tolist() == (before[:, y - down, x - right].tolist() if inside else [0, 0, 0])


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=5))
def test_light_and_contrast_are_as_their_formulas_say(numbers: list[tuple[float, float]]) -> None:
    images = noise(len(numbers))
    found = images.copy()
    relight(found, *np.array(numbers).T)
    for image, before, (light, contrast) in zip(found, images, numbers, strict=True):
        lit = before * light
        expected = (lit - lit.mean()) * contrast + lit.mean()
        assert np.abs(image - expected.clip(0, 255)).max() <= 0.501
    relight(images, np.ones(len(images)), np.ones(len(images)))
    assert np.array_equal(images, noise(len(images)))


@pytest.mark.parametrize("shape", [(3, 224, 224), (1, 600, 500)])
def test_light_is_the_same_in_large_batches_as_alone(shape: tuple[int, ...]) -> None:
    images, numbers = noise(5, shape), np.linspace(0.5, 1.5, 5)
    together = images.copy()
    relight(together, numbers, numbers)
    for number, image in enumerate(images):
        alone = image[None].copy()
        relight(alone, numbers[number : number + 1], numbers[number : number + 1])
        assert np.array_equal(alone[0], together[number])


def test_to_erase_makes_a_rectangle_grey_and_leaves_the_rest() -> None:
    images = noise(2)
    found = images.copy()
    erase(found, np.array([False, True]), *np.array([[0, 1], [4, 4], [2, 2], [3, 5]]))
    assert np.array_equal(found[0], images[0])
    assert (found[1, :, 1:4, 2:5] == GREY).all()
    found[1, :, 1:4, 2:5] = images[1, :, 1:4, 2:5]
    assert np.array_equal(found, images)


def test_chances_and_ranges_are_those_that_were_asked_for() -> None:
    """Of 20,000 draws; they are hashes, so these are the same ones each time."""
    count, shape = 20_000, (1, 16, 24)
    white = np.full((count, 16 * 24), 255, np.uint8)

    def one(**options: Any) -> Bytes:
        rows = white.copy()
        Augmenter(Augmentation.model_validate(options), 7, shape)(rows, range(count))
        return rows.reshape(count, 16, 24)

    black = one(shift=3) == 0
    down = np.where(black[:, 0, 12], 1, -1) * black[:, :, 12].sum(axis=1)
    right = np.where(black[:, 8, 0], 1, -1) * black[:, 8].sum(axis=1)
    places = np.histogram2d(down, right, bins=np.arange(-3.5, 4))[0]
    assert places.shape == (7, 7)
    assert np.abs(places / count - 1 / 49).max() < 0.004
    grey = one(erase=0.25) == GREY
    erased = grey.any(axis=(1, 2))
    assert erased.mean() == pytest.approx(0.25, abs=0.01)
    height, width = grey.any(axis=2).sum(axis=1)[erased], grey.any(axis=1).sum(axis=1)[erased]
    assert (height.min(), height.max(), width.min(), width.max()) == (2, 8, 3, 12)
    light = one(brightness=0.4)[:, 0, 0] / 255
    assert light.min() == pytest.approx(0.6, abs=0.005)
    assert (light == 1).mean() == pytest.approx(0.5, abs=0.01), "brighter than white is white"
    assert light[1:] @ light[:-1] / count == pytest.approx(light.mean() ** 2, abs=0.002), (
        "neighbours have nothing in common"
    )


def run_of(directory: Path, options: dict[str, Any] | None, **training: Any) -> JobConfig:
    """300 images of noise, of three classes: of 64 a step, the fifth one ends the first epoch."""
    data: dict[str, Any] = {"train": {"uri": "/raw", "format": "parquet"}}
    if options is not None:
        data["augmentation"] = options
    changes = {"microBatchSize": 7, "deterministic": True, "parallelism": {"fsdp": "full"}, "globalBatchSize": 64}
    model = {"transformer": {"layers": 1, "dim": 16, "heads": 2, "patchSize": 4}, "export": "none"}
    return memory.images(directory, model, (1, 8, 8), data=data, **changes | training)


def batches(config: JobConfig, ranks: int, rank: int, first: int = 0, memory: int = 2**20) -> list[Batch]:
    """What a rank reads of 12 steps, which are more than two epochs, from one of them on."""
    manifest = Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY))
    reader = Reader(store_of(config), manifest, "train", 1, block_bytes=1000)
    rows = training_rows(range(first, 12), 64, reader.order(config.training.seed), ranks, rank)
    with prefetch(reader, rows, memory=memory, change=augmenter(config, manifest)) as read:
        return list(read)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("memory", [1, 3000, 2**20])
def test_a_step_has_the_same_pixels_at_any_world_size_from_any_start_and_within_any_memory(
    tmp_path: Path, ranks: int, memory: int
) -> None:
    """Sample by sample: what is stored of it, changed as its epoch says; of a little memory a batch is put together in
    parts, and one batch lies in two epochs."""
    config = run_of(tmp_path, ALL)
    manifest = Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY))
    stored = np.frombuffer(store_of(config).get("data/rows.bin"), np.uint8).reshape(300, -1)
    order = Reader(store_of(config), manifest, "train", 1, block_bytes=1000).order(config.training.seed)
    change = Augmenter(Augmentation.model_validate(ALL), config.training.seed, (1, 8, 8))
    first = 3
    parts = [batches(config, ranks, rank, first, memory) for rank in range(ranks)]
    seen = set()
    for step, one in enumerate(zip(*parts, strict=True), start=first):
        draws = order.draws(np.arange(step * 64, (step + 1) * 64))
        draws = np.asarray(sorted(draws.tolist(), key=lambda draw: (draw % 300, draw)))
        expected = stored[draws % 300]
        for number in range(64):
            change(expected[number : number + 1], draws[number : number + 1])
        inputs, targets = decode(expected, manifest)
        assert torch.equal(torch.cat([batch.inputs for batch in one]), inputs)
        assert torch.equal(torch.cat([batch.targets for batch in one]), targets)
        seen.update(draws // 300)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, world_size: int) -> None:
    """12 steps, two epochs and a half, against 8 + SIGKILL two steps later, with these committed, + 4."""
    once = {"steps": 12, "logEvery": 1, "checkpoint": {"everySteps": 8}, "evaluation": {"everySteps": 8}}
    twin, disturbed = (run_of(tmp_path / name, ALL, **once) for name in ("twin", "disturbed"))
    resumed_like_its_twin(world_size, twin, disturbed, killed_at=10, saved=8)


def losses(config: JobConfig) -> list[float]:
    return [logged.loss for logged in read_progress(store_of(config), newest(config)).history]


def test_the_losses_do_not_depend_on_when_the_world_changes_its_size(tmp_path: Path) -> None:
    """12 steps on one rank, against 4 ranks, then 2, then 3 to the end, with another size of passes."""
    often = {"steps": 12, "logEvery": 1, "checkpoint": {"everySteps": 4}, "evaluation": {"everySteps": 4}}
    alone = run_of(tmp_path / "alone", ALL, **often)
    resized = run_of(tmp_path / "resized", ALL, microBatchSize=5, **often)
    run_ranks(1, train_run, alone, 1)
    ends = [run_ranks(4, train_run, resized, 1, 5, None, Stop.TO_RESIZE), run_ranks(2, train_run, resized, 2, 4)]
    assert [error.step for error in chain.from_iterable(ends)] == [5] * 4 + [9] * 2
    run_ranks(3, train_run, resized, 3)
    assert losses(resized) == pytest.approx(losses(alone), rel=0, abs=1e-5)
    assert len(losses(alone)) == 12


def test_only_training_sees_changed_images(tmp_path: Path) -> None:
    """With weights that do not move what they are evaluated on shows, and what they should learn from."""
    changes = {"steps": 5, "logEvery": 1, "optimizer": {"lr": 1e-30}, "evaluation": {"everySteps": 5}}
    plain, changed = run_of(tmp_path / "plain", None, **changes), run_of(tmp_path / "changed", ALL, **changes)
    results = [run_ranks(1, train_run, config, 1)[0][0] for config in (plain, changed)]
    assert results[0].evaluation == results[1].evaluation
    evaluations = [read_progress(store_of(config), newest(config)).evaluations for config in (plain, changed)]
    assert evaluations[0] == evaluations[1]
    assert all(one != other for one, other in zip(losses(plain), losses(changed), strict=True))


def test_a_shift_that_leaves_nothing_of_an_image_is_refused_before_data_is_prepared(tmp_path: Path) -> None:
    def shifted(by: int) -> JobConfig:
        train = {"uri": f"{tmp_path}/images.parquet", "format": "parquet"}
        return images(tmp_path, digits(), data={"train": train, "augmentation": {"shift": by}}, model={"cnn": {}})

    with pytest.raises(UserError) as refused:
        check(shifted(8), store_of(shifted(8)))
    assert refused.value.cause == (
        "spec.data.augmentation.shift is 8, which moves images of 8 x 8 pixels out of the picture."
    )
    assert refused.value.next_step.startswith("Set it to 7 or less")
    assert check(shifted(7), store_of(shifted(7))).outcome == "PrepareData"


def test_the_models_card_says_how_training_images_were_changed(tmp_path: Path) -> None:
    config = run_of(tmp_path, {"horizontalFlip": 0.5, "shift": 1})
    manifest = Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY))
    assert "(augmentation: horizontalFlip 0.5, shift 1)" in model_card(config, manifest, 1, 1)
    assert "augmentation" not in model_card(run_of(tmp_path, None), manifest, 1, 1)


def test_a_run_is_another_one_with_other_augmentation_and_none_is_what_runs_had_before(tmp_path: Path) -> None:
    plain, empty, flipped = (run_of(tmp_path, options) for options in (None, {}, {"horizontalFlip": 0.5}))
    assert plain.identity() == empty.identity()
    assert not [name for name in plain.identity() if "augmentation" in name]
    assert flipped.identity() == plain.identity() | {"data.augmentation.horizontalFlip": 0.5}
    assert flipped.data.asked()["augmentation"] == {"horizontalFlip": 0.5}
