"""The Pallas forms in interpret mode, bit for bit against the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.kernels import stochastic_quantize, threshold_search, top_k_mask
from fedjax_fm.kernels.bisection import bisect_cut
from fedjax_fm.kernels.counting import magnitude_keys
from fedjax_fm.kernels.pallas import cut_of_rows, stochastic_quantize_blocks

ROWS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "ties": lambda rng, n: rng.integers(-3, 4, n),
    "zero": lambda rng, n: np.zeros(n),
    "odd": lambda rng, n: rng.choice(
        [np.nan, np.inf, -np.inf, 1e-40, -0.0, 1.0, 3e38], n
    ),
}


def masks_of(keys: jax.Array, key: jax.Array, last: jax.Array) -> np.ndarray:
    keys, key, last = (np.asarray(a) for a in (keys, key, last))
    return (keys > key[:, None]) | (
        (keys == key[:, None]) & (np.arange(keys.shape[1]) <= last[:, None])
    )


@pytest.mark.parametrize("n", [1, 1500])
def test_rows_are_cut_as_top_k_mask_does(n: int) -> None:
    rng = np.random.default_rng(n)
    rows = np.stack([draw(rng, n) for draw in ROWS.values() for _ in range(6)]).astype(
        np.float32
    )
    ks = np.tile([0, 1, 15, 700, n, n + 5], len(ROWS)).astype(np.int32)
    keys = magnitude_keys(jnp.asarray(rows))
    cut = jax.jit(lambda keys, k: cut_of_rows(keys, k, interpret=True))(
        keys, jnp.minimum(ks, n)
    )
    wanted = np.asarray(jax.jit(jax.vmap(top_k_mask))(rows, ks))
    np.testing.assert_array_equal(masks_of(keys, *cut), wanted)
    math = jax.jit(
        jax.vmap(lambda row, k: bisect_cut(row.astype(jnp.int32), jnp.arange(n), k))
    )
    for ours, theirs in zip(cut, math(keys, jnp.minimum(ks, n)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours, np.int32), np.asarray(theirs))


def test_dispatch_to_the_kernel_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (3, 300)).astype(np.float32)
    plain = np.asarray(jax.jit(jax.vmap(lambda row: top_k_mask(row, 40)))(x))
    used = []
    monkeypatch.setattr(
        threshold_search, "row_stays_in_kernel", lambda n: used.append(n) or True
    )
    np.testing.assert_array_equal(
        np.asarray(jax.jit(jax.vmap(lambda row: top_k_mask(row, 40)))(x)), plain
    )
    np.testing.assert_array_equal(
        np.asarray(jax.jit(lambda row: top_k_mask(row, 40))(x[0])), plain[0]
    )
    assert set(used) == {300}


@pytest.mark.parametrize("n", [0, 1, 9000])
@pytest.mark.parametrize(("levels", "norm"), [(7, "l2"), (127, "max")])
def test_codes_do_not_depend_on_the_blocks(n: int, levels: int, norm: str) -> None:
    x = jnp.asarray(np.random.default_rng(n).normal(size=n), jnp.float32)
    key = jax.random.key(n)
    codes, scale = jax.jit(lambda x, key: stochastic_quantize(x, key, levels, norm))(
        x, key
    )
    for rows in (32, 64):
        quantize = jax.jit(
            lambda x, key: stochastic_quantize_blocks(
                x,
                key,
                levels,
                norm,
                rows,  # noqa: B023
                interpret=True,
            )
        )
        in_blocks, same_scale = quantize(x, key)
        assert in_blocks.dtype == np.int8
        np.testing.assert_array_equal(np.asarray(in_blocks), np.asarray(codes))
        assert float(same_scale) == float(scale)


def test_vmap_of_the_kernels_is_the_loop() -> None:
    x = jax.random.normal(jax.random.key(0), (3, 500))
    keys = jax.random.split(jax.random.key(1), 3)

    def one(x, key):
        return stochastic_quantize_blocks(x, key, 7, "l2", 32, interpret=True)

    together = jax.jit(jax.vmap(one))(x, keys)
    alone = jax.jit(one)
    for i in range(3):
        for a, b in zip(alone(x[i], keys[i]), together, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b[i]))


def test_errors_name_the_value() -> None:
    with pytest.raises(
        ValueError, match="expected rows of 1 to 1048576 entries, got 0"
    ):
        cut_of_rows(jnp.zeros((2, 0), jnp.uint32), jnp.zeros(2, jnp.int32))
    with pytest.raises(
        ValueError, match="expected a positive multiple of 32, got block_rows=48"
    ):
        stochastic_quantize_blocks(jnp.zeros(3), jax.random.key(0), block_rows=48)
    with pytest.raises(ValueError, match="expected 1 <= levels <= 127, got levels=128"):
        stochastic_quantize_blocks(jnp.zeros(3), jax.random.key(0), levels=128)
