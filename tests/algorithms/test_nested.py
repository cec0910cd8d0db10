"""Prefixes of trees: against lists of indices, nested in each other, and the same
function as masks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from width_models import MODELS, where

from fedjax_fm.algorithms.nested import Groups, kept, nest
from fedjax_fm.experiments.bench.widths import next_token_loss, prefixes_of, start

WIDTHS = (1.0, 0.7, 0.5, 0.25, 0.1)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("size", "width", "expected"),
    [
        (10, 1.0, 10), (10, 0.25, 3), (7, 0.5, 4), (3, 0.01, 1),
        (10, 0.7, 7),  # 0.7 * 10 is 7.000000000000001
        (1000, float(np.float32(0.2)), 200),  # 0.2 in f32 is a little more
        (512, 0.25, 128), (3, 1 / 3, 1), (1000, 0.2001, 201),
    ],
)  # fmt: skip
def test_sizes(size, width, expected):
    assert kept(size, width) == expected


def test_slices_are_those_of_index_lists_and_nest(model):
    prefixes = model.prefixes

    @jax.jit
    def all_widths(delta):
        slices = {width: prefixes.take(delta, width) for width in WIDTHS}
        again = {
            (p, q): prefixes.take(slices[p], q)
            for p in WIDTHS
            for q in WIDTHS
            if q <= p
        }
        padded = {width: prefixes.pad(part) for width, part in slices.items()}
        return (
            slices,
            again,
            padded,
            {width: prefixes.mask(delta, width) for width in WIDTHS},
        )

    slices, again, padded, masked = all_widths(model.delta)
    for width in WIDTHS:
        places = where(prefixes, width)
        equal(slices[width], jax.tree.map(lambda x, at: x[at], model.delta, places))
        assert jax.tree.map(jnp.shape, slices[width]) == jax.tree.map(
            lambda s: s.shape, prefixes.shapes(width)
        )
        zeros = jax.tree.map(np.zeros_like, model.delta)
        jax.tree.map(
            lambda x, at, values: x.__setitem__(at, values),
            zeros,
            places,
            slices[width],
        )
        equal(padded[width], zeros)
        equal(masked[width], zeros)
    for (_, q), part in again.items():  # a prefix of a prefix is the prefix
        equal(part, slices[q])


def test_the_slice_computes_what_the_masked_model_does(model):
    """Values and gradients; the masked model's gradient is zero outside of the prefix,
    or its rows would learn.
    """
    batch = model.example(np.random.default_rng(5), 6)
    prefixes, logits = model.prefixes, model.logits
    whole = jax.jit(lambda delta: logits(delta, batch, 1.0))(model.delta)
    weights = np.random.default_rng(6).normal(size=whole.shape).astype(np.float32)

    def value_and_gradient(f, delta):
        values, back = jax.vjp(f, delta)
        return values, back(weights)[0]

    @jax.jit
    def both(delta):
        found = {}
        for width in (0.7, 0.25):
            of_slice = value_and_gradient(
                lambda part: logits(part, batch, 1.0), prefixes.take(delta, width)
            )

            def mask(delta, width=width):
                return logits(prefixes.mask(delta, width), batch, width)

            found[width] = (
                (of_slice[0], prefixes.pad(of_slice[1])),
                value_and_gradient(mask, delta),
            )
        return found

    for (sliced, gradient), (masked, by_mask) in both(model.delta).values():
        np.testing.assert_allclose(sliced, masked, rtol=2e-5, atol=2e-5)
        for a, b in zip(
            jax.tree.leaves(by_mask), jax.tree.leaves(gradient), strict=True
        ):
            # Those of the transformer's small embeddings, behind a norm, reach 38:
            # float sums of such entries.
            np.testing.assert_allclose(
                a, b, rtol=1e-4, atol=2e-4 + 3e-5 * np.abs(b).max()
            )
            np.testing.assert_allclose(np.where(b == 0, a, 0), 0, atol=2e-4)
        assert not np.allclose(
            sliced, whole, atol=1e-2
        )  # the whole model gives something else


def test_a_quarter_of_the_width_is_a_sixteenth_of_the_arithmetic():
    """Counted by XLA, on the transformer with d = 512; its head and embedding fall by four only."""
    delta = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, start(512, 1, 64, 32)))
    prefixes = prefixes_of(delta, 8)
    batch = {"ids": jax.ShapeDtypeStruct((4, 33), np.int32)}
    loss = next_token_loss(8)
    gradient = jax.grad(lambda delta, batch: jnp.mean(loss(delta, (), batch, None)[0]))

    def flop(width):
        return (
            jax.jit(gradient)
            .lower(prefixes.shapes(width), batch)
            .cost_analysis()["flops"]
        )

    assert 1 / 16 < flop(0.25) / flop(1.0) < 1 / 13

    def nbytes(width):
        return sum(
            4 * np.prod(s.shape[1:])
            for s in jax.tree.leaves(prefixes.shapes(width)["layers"])
        )

    assert 1 / 16 < nbytes(0.25) / nbytes(1.0) < 1 / 15


DELTA = {"a": {"w": np.zeros((4, 6), np.float32)}, "b": np.zeros(3, np.float32)}
RIGHT = {"w": (None, Groups(2)), "b": (None,)}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"w": (None, "width")}, r"no rule matches b of shape \[3\]"),
        (
            {**RIGHT, "c": (None,)},
            r"\['c'\] are the first to match no leaf; the leaves are \['a.w', 'b'\]",
        ),
        (
            {"w": (None,), "b": (None,)},
            r"expected a tuple of 2 entries.*for a.w of shape \[4, 6\], got \(None,\)",
        ),
        ({"w": ("labels", "labels"), "b": (None,)}, "at most one of them 'labels'"),
        (
            {"w": (None, "widht"), "b": (None,)},
            "expected None, 'width', 'labels' or Groups.*got 'widht'",
        ),
        (
            {"w": (None, Groups(4)), "b": (None,)},
            r"6 entries of a.w \[4, 6\] do not divide into Groups\(n=4\)",
        ),
        (
            {"w": (None, "labels"), "b": ("labels",)},
            r"expected one number of labels, got axes of \[3, 6\]",
        ),
    ],
)
def test_rules_that_do_not_fit_are_errors(rules, message):
    with pytest.raises(ValueError, match=message):
        nest(DELTA, rules)


def test_trees_that_do_not_fit_are_errors():
    prefixes = nest(DELTA, RIGHT)
    for width in (0, 1.5, -1, float("nan")):
        with pytest.raises(ValueError, match="expected 0 < width <= 1, got width"):
            prefixes.take(DELTA, width)
    with pytest.raises(ValueError, match=r"missing leaves \['a.w'\]"):
        prefixes.take({"b": DELTA["b"]}, 0.5)
    half = prefixes.take(DELTA, 0.5)
    with pytest.raises(
        ValueError,
        match=r"expected a slice of \[4, 6\], at least \[4, 6\], got \[4, 4\]",
    ):
        prefixes.take(half, 1.0)
    with pytest.raises(
        ValueError,
        match=r"expected a slice of \[4, 6\], at least \[4, 4\], got \[3, 6\]",
    ):
        prefixes.take({"a": {"w": np.zeros((3, 6), np.float32)}, "b": DELTA["b"]}, 0.5)
    with pytest.raises(
        ValueError, match=r"5 entries of \[4, 5\] do not divide into Groups"
    ):
        prefixes.pad({"a": {"w": np.zeros((4, 5), np.float32)}, "b": DELTA["b"]})
    with pytest.raises(
        ValueError,
        match="is not like the one the prefixes were made for: b: expected float32",
    ):
        prefixes.check({**DELTA, "b": np.zeros(3, np.int32)})
