"""An MLP, a CNN and a transformer whose layers get narrower, ragged clients for them,
and slices by lists of indices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm.algorithms.nested import Groups, Prefixes, nest
from fedjax_fm.algorithms.parts import Stream
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.experiments.bench.conv import conv_as_matmul
from fedjax_fm.experiments.bench.widths import prefixes_of, start, transformer

LABELS = 5
SIZES = (6, 1, 4, 2, 6, 3, 5)


class Model(NamedTuple):
    """`logits(delta, batch, width)`: the width is 1 on slices, and that of the mask on
    masked full trees.
    """

    delta: Any
    prefixes: Prefixes
    logits: Callable[..., jax.Array]
    example: Callable[[np.random.Generator, int], dict[str, np.ndarray]]

    def loss(self, delta, backbone, batch, key):
        labels = batch["y"]
        losses = optax.softmax_cross_entropy_with_integer_labels(
            self.logits(delta, batch, 1.0), labels
        )
        return losses if losses.ndim == 1 else losses.mean(axis=1), {}

    def clients(self, sizes=SIZES):
        rng = np.random.default_rng(2)
        return [self.example(rng, n) for n in sizes]


def _floats(*shape):
    return lambda rng, n: {
        "x": rng.normal(size=(n, *shape)).astype(np.float32),
        "y": rng.integers(0, LABELS, n).astype(np.int32),
    }


def mlp(hidden=(7, 10)) -> Model:
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(0, 0.5, shape).astype(np.float32)

    one, two = hidden
    delta = {
        "w1": draw(3, one),
        "b1": draw(one),
        "w2": draw(one, two),
        "out": draw(two, LABELS),
        "bias": draw(LABELS),
    }
    rules = {
        "w1": (None, "width"),
        "b1": ("width",),
        "w2": ("width", "width"),
        "out": ("width", "labels"),
        "bias": ("labels",),
    }

    def logits(p, batch, width):
        x = jax.nn.relu(batch["x"] @ p["w1"] + p["b1"][None])
        return jax.nn.relu(x @ p["w2"]) @ p["out"] + p["bias"][None]

    return Model(
        delta=delta, prefixes=nest(delta, rules), logits=logits, example=_floats(3)
    )


def cnn() -> Model:
    """8 x 8 pictures of two colours -> 6 x 6 -> 4 x 4, flattened pixel by pixel."""
    rng = np.random.default_rng(1)

    def draw(*shape):
        return rng.normal(0, 0.3, shape).astype(np.float32)

    delta = {
        "c1": draw(3, 3, 2, 5),
        "c2": draw(3, 3, 5, 6),
        "b2": draw(6),
        "w": draw(16 * 6, 7),
        "out": draw(7, LABELS),
    }
    rules = {
        "c1": (None, None, None, "width"),
        "c2": (None, None, "width", "width"),
        "b2": ("width",),
        "^w": (Groups(16), "width"),
        "out": ("width", "labels"),
    }

    def logits(p, batch, width):
        x = jax.nn.relu(conv_as_matmul(batch["x"], p["c1"]))
        x = jax.nn.relu(conv_as_matmul(x, p["c2"]) + p["b2"][None, None, None])
        return jax.nn.relu(x.reshape(len(x), -1) @ p["w"]) @ p["out"]

    return Model(
        delta=delta,
        prefixes=nest(delta, rules),
        logits=logits,
        example=_floats(8, 8, 2),
    )


def gpt() -> Model:
    """Two layers of two heads of five, over nine words."""
    heads, words, length = 2, 9, 4
    delta = start(10, 2, words, length)

    def example(rng, n):
        ids = rng.integers(0, words, (n, length + 1)).astype(np.int32)
        return {"x": ids[:, :-1], "y": ids[:, 1:]}

    def logits(p, batch, width):
        return transformer(p, batch["x"], heads, width)

    return Model(
        delta=delta, prefixes=prefixes_of(delta, heads), logits=logits, example=example
    )


MODELS = {"mlp": mlp, "cnn": cnn, "transformer": gpt}


def indices(size: int, axis, width: float) -> np.ndarray:
    """The entries of an axis that a width holds, by counting them."""
    groups = axis.n if isinstance(axis, Groups) else 1
    if axis is None or axis == "labels":
        return np.arange(size)
    inside = size // groups
    count = next(k for k in range(1, inside + 1) if k >= round(width * inside, 6))
    return np.array([g * inside + i for g in range(groups) for i in range(count)])


def where(prefixes: Prefixes, width: float) -> Any:
    """Like the tree: index arrays that pick the slice out of a numpy array."""

    def one(leaf, axes):
        return np.ix_(
            *(indices(n, axis, width) for n, axis in zip(leaf.shape, axes, strict=True))
        )

    return jax.tree.map(one, prefixes.full, prefixes.axes)


def descent(loss, rate: float, steps: int, rows: int = 8):
    """`f(delta, client) -> delta`: full-batch gradient descent, by a loop. Clients are
    filled up to `rows` examples that count nothing, so that all of one width share one
    compilation."""

    def mean(delta, batch, mask):
        return jnp.sum(jnp.where(mask, loss(delta, (), batch, None)[0], 0)) / jnp.sum(
            mask
        )

    gradient = jax.jit(jax.grad(mean))

    def f(delta, client):
        n = len(next(iter(client.values())))
        batch = {
            name: jnp.asarray(np.concatenate([x, np.repeat(x[:1], rows - n, 0)]))
            for name, x in client.items()
        }
        for _ in range(steps):
            delta = jax.tree.map(
                lambda w, g: w - np.float32(rate) * g,
                delta,
                gradient(delta, batch, np.arange(rows) < n),
            )
        return jax.tree.map(np.asarray, delta)

    return f


def ordered_descent(model: Model, widths, rate: float, steps: int):
    """`f(slice, client, cap, key) -> slice`: each step one of `descent` on the prefix
    that FjORD draws from `key`. For models without groups, whose prefixes lie in a
    slice where they lie in the whole."""
    one = descent(model.loss, rate, 1)

    def f(part, client, cap, key):
        part, inside = (
            jax.tree.map(np.array, part),
            [width for width in sorted(widths) if width <= cap],
        )
        for i in range(steps):
            drawn = jax.random.randint(
                jax.random.fold_in(jax.random.fold_in(key, i), Stream.DRAWN_WIDTH),
                (),
                0,
                len(inside),
            )
            at = where(model.prefixes, inside[int(drawn)])
            new = one(jax.tree.map(lambda x, at: x[at], part, at), client)
            jax.tree.map(lambda x, at, values: x.__setitem__(at, values), part, at, new)
        return part

    return f


def first_width(shares: dict[float, float], seed: int) -> float:
    """Of a population of one client, the width that is drawn when the run begins."""
    widths = sorted(shares, reverse=True)
    logits = jnp.log(jnp.array([shares[width] for width in widths]))
    return widths[
        int(
            jax.random.categorical(
                derive(jax.random.key(seed), Purpose.INIT), logits, shape=(1,)
            )[0]
        )
    ]
