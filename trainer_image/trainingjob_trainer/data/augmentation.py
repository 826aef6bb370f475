"""Training images, changed at random: as 8-bit pixels, before they are decoded.

What becomes of an image is a pure function of seed and draw, so of (seed, epoch, sample): the batch that it comes in,
the number of ranks and the step that a run was resumed at have no part in it. No generator has a state: a number is the
one at the draw's place in a sequence of its own, of SplitMix64 (Steele, Lea & Flood 2014).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from trainingjob_trainer.config import Augmentation, TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.data.order import Ints, Words, mix
from trainingjob_trainer.data.prefetch import Change, unchanged
from trainingjob_trainer.data.reader import Bools, Bytes, Indices, Rows

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # by how much two neighbours of SplitMix64 differ, before they are mixed
GREY = 128
AT_ONCE = 2**18  # pixels whose brightness is reckoned together: as many as a CPU's cache holds

Reals = npt.NDArray[np.float64]


def augmenter(config: TrainerSpec, manifest: Manifest) -> Change:
    """What is done with the samples that a run trains on."""
    options = config.data.augmentation
    return unchanged if options is None else Augmenter(options, config.training.seed, manifest.shape or ())


class Augmenter:
    """Makes of stored images `[channels, height, width]`, each with a label behind it, those of their draws."""

    def __init__(self, options: Augmentation, seed: int, shape: Sequence[int]) -> None:
        self._options, self._seed, self._shape = options, seed, tuple(shape)

    def __call__(self, rows: Rows, draws: Indices) -> None:
        """Change the image that each row begins with, in place."""
        options, numbers = self._options, _Numbers(self._seed, np.asarray(draws))
        images = rows[:, : math.prod(self._shape)].reshape(len(rows), *self._shape)
        if options.horizontal_flip:
            flip(images, numbers.real("flip") < options.horizontal_flip)
        if most := options.shift:
            shift(images, numbers.between(-most, most, "down"), numbers.between(-most, most, "right"), most)
        if options.brightness or options.contrast:
            light = 1 + options.brightness * (2 * numbers.real("brightness") - 1)
            contrast = 1 + options.contrast * (2 * numbers.real("contrast") - 1)
            relight(images, light, contrast)
        if options.erase:
            _, height, width = self._shape
            sides = *numbers.part(height, "erased rows"), *numbers.part(width, "erased columns")
            erase(images, numbers.real("erase") < options.erase, *sides)


def flip(images: Bytes, chosen: Bools) -> None:
    """Mirror the chosen ones, left to right."""
    images[chosen] = images[chosen][..., ::-1]


def shift(images: Bytes, down: Ints, right: Ints, most: int) -> None:
    """Move each by so many pixels, `most` at most; what is moved in is black."""
    count, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (most, most), (most, most)))
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))
    images[:] = windows[np.arange(count), :, most - down, most - right]


def relight(images: Bytes, light: Reals, contrast: Reals) -> None:
    """Multiply each image's pixels by its light, then what they differ by from their mean by its contrast."""
    pixels = images[0].size
    means = images.sum(axis=(1, 2, 3), dtype=np.int64) / pixels
    factors = (light * contrast).astype(np.float32)[:, None, None, None]
    terms = (means * light * (1 - contrast) + 0.5).astype(np.float32)[:, None, None, None]  # 0.5: they are cut off
    size = max(1, AT_ONCE // pixels)
    for part in (slice(first, first + size) for first in range(0, len(images), size)):
        changed = images[part].astype(np.float32)
        changed *= factors[part]
        changed += terms[part]
        images[part] = np.clip(changed, 0, 255, out=changed)


def erase(images: Bytes, chosen: Bools, top: Ints, bottom: Ints, left: Ints, right: Ints) -> None:
    """Make a rectangle of each chosen one grey; `bottom` and `right` are the first pixels outside."""
    rectangles = np.stack([np.arange(len(images)), top, bottom, left, right], axis=1)
    for image, *rows, begin, end in rectangles[chosen].tolist():
        images[image, :, slice(*rows), begin:end] = GREY


class _Numbers:
    """Random numbers of draws, `what` for what."""

    def __init__(self, seed: int, draws: Ints) -> None:
        self._seed, self._steps = seed, draws.astype(np.uint64) * GAMMA

    def words(self, what: str) -> Words:
        """Of each draw 64 bits."""
        start = hashlib.blake2b(f"augmentation/{what}/{self._seed}".encode(), digest_size=8).digest()
        return mix(self._steps + np.frombuffer(start, dtype="<u8").astype(np.uint64))

    def real(self, what: str) -> Reals:
        """Of each draw one in [0, 1)."""
        return (self.words(what) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def between(self, least: Ints | int, most: Ints | int, what: str) -> Ints:
        """Of each draw a whole one, `most` included."""
        return least + np.floor(self.real(what) * (most - least + 1)).astype(np.int64)

    def part(self, side: int, what: str) -> tuple[Ints, Ints]:
        """Of each draw a part of a side, an eighth to a half of it: where it begins, and ends."""
        length = self.between(max(1, side // 8), max(1, side // 2), f"{what}, how many")
        first = self.between(0, side - length, f"{what}, from")
        return first, first + length
