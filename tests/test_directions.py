"""Directions drawn piece by piece against jax.random.normal, and what zero-order
methods need of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.directions import Perturbed, normal_at, perturb, shift

KEY = jax.random.key(11)
TREE = {
    "kernel": jnp.zeros((5, 6, 4)),
    "bias": jnp.zeros((5, 4)),
    "scalar": jnp.float32(0.0),
    "table": jnp.zeros((37, 8)),
}


def plain(tree, key):
    """z by jax.random alone, one leaf after the other."""
    leaves, structure = jax.tree.flatten(tree)
    keys = [jax.random.fold_in(key, number) for number in range(len(leaves))]
    return jax.tree.unflatten(
        structure,
        [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)],
    )


def whole(tree):
    return jax.tree.map(
        lambda leaf: leaf[...], tree, is_leaf=lambda node: isinstance(node, Perturbed)
    )


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_entries_are_those_of_jax_random():
    places = jnp.array([[7, 0], [99_999, 12_345]], jnp.uint32)
    wanted = jax.random.normal(KEY, (100_000,))
    np.testing.assert_array_equal(
        normal_at(KEY, jnp.arange(100_000, dtype=jnp.uint32)), wanted
    )
    np.testing.assert_array_equal(
        jax.jit(normal_at)(KEY, places), np.asarray(wanted)[np.asarray(places)]
    )


def test_a_tree_shifted_or_read_is_the_plain_direction():
    z = plain(TREE, KEY)
    equal(jax.jit(shift)(TREE, KEY, 1.0), z)
    equal(jax.jit(lambda tree, key: whole(perturb(tree, key, 1.0)))(TREE, KEY), z)


def test_layers_rows_and_blocks_are_parts_of_the_whole():
    z, ids = plain(TREE, KEY), jnp.array([[3, 36, 0], [3, 3, 21]])

    @jax.jit
    def parts(tree, key):
        leaves = perturb(tree, key, 1.0)
        kernel, table = leaves["kernel"], leaves["table"]

        def one_by_one(leaf):
            return jax.lax.scan(lambda _, layer: (None, layer[...]), None, leaf)[1]

        layers = {name: one_by_one(leaves[name]) for name in ("kernel", "bias")}
        block = table.rows(30, 7)
        return (
            layers,
            (table[ids], kernel[ids % 5], block[...], block.rows(2, 3)[jnp.array([1])]),
            table[ids + 1],
        )

    layers, found, beyond = parts(TREE, KEY)
    equal(layers, {"kernel": z["kernel"], "bias": z["bias"]})
    equal(
        found,
        (z["table"][ids], z["kernel"][ids % 5], z["table"][30:], z["table"][33:34]),
    )
    np.testing.assert_array_equal(
        np.isnan(beyond).all(axis=-1), ids == 36
    )  # row 37 is past the end


def test_one_entry_or_a_million_clients_keys_agree_under_vmap():
    keys = jax.random.split(KEY, 3)
    scales = jnp.array([1.0, -2.0, 0.5])
    together = jax.vmap(lambda key, scale: whole(perturb(TREE, key, scale)))(
        keys, scales
    )
    for i in range(3):
        expected = jax.tree.map(lambda z, i=i: scales[i] * z, plain(TREE, keys[i]))
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6),
            together,
            expected,
        )


def test_there_and_back_returns_within_rounding():
    start = jax.tree.map(lambda x: 0.3 + x, TREE)
    back = shift(
        shift(shift(start, KEY, 1e-3), KEY, -2e-3), KEY, 1e-3
    )  # the order of MeZO
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-7), back, start)


def test_the_covariance_is_the_identity():
    """10,000 directions of 12 entries in two leaves: every moment within 5 standard errors."""
    n, tree = 10_000, {"a": jnp.zeros((2, 4)), "b": jnp.zeros(4)}
    drawn = jax.vmap(lambda i: shift(tree, jax.random.fold_in(KEY, i), 1.0))(
        jnp.arange(n)
    )
    z = np.concatenate(
        [np.asarray(leaf).reshape(n, -1) for leaf in jax.tree.leaves(drawn)], axis=1
    )
    assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(n)
    moments = z.T @ z / n
    assert np.abs(np.diag(moments) - 1).max() < 5 * np.sqrt(2 / n)
    assert np.abs(moments - np.diag(np.diag(moments))).max() < 5 / np.sqrt(n)


def test_half_precision_is_summed_in_f32_and_rounded_once():
    value = jnp.full((3, 5), 0.1, jnp.bfloat16)
    moved = shift(value, KEY, 0.01)
    z = jax.random.normal(jax.random.fold_in(KEY, 0), (3, 5))
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        moved, (value.astype(jnp.float32) + 0.01 * z).astype(jnp.bfloat16)
    )


def test_what_has_no_direction_is_refused():
    with pytest.raises(TypeError, match=r"expected floating leaves, got int32\[3\]"):
        perturb({"ids": jnp.zeros(3, jnp.int32)}, KEY, 1.0)
    with pytest.raises(
        TypeError, match=r"expected `\.\.\.` or integer rows, got float32"
    ):
        perturb(jnp.zeros((3, 2)), KEY, 1.0)[jnp.zeros(2)]
    huge = jax.ShapeDtypeStruct((2**17, 2**17), jnp.float32)
    with pytest.raises(
        ValueError,
        match=r"expected leaves of at most 2\*\*32 entries, got \[131072, 131072\]",
    ):
        jax.eval_shape(lambda tree: perturb(tree, KEY, 1.0), huge)
