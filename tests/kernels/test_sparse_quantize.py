"""The uplink in one piece against its steps taken one by one in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.kernels import (
    rounding_noise,
    sparse_codes,
    sparse_quantize,
    stochastic_quantize,
)

uplink = jax.jit(sparse_quantize, static_argnames=("k", "bits", "norm", "bucket_size"))


def by_hand(
    x: np.ndarray, k: int, bits: int, key: jax.Array, norm: str, width: int
) -> np.ndarray:
    """Sort, gather, round bucket by bucket with the stretch of noise that is its own, scatter."""
    levels = 2 ** (bits - 1) - 1
    places = np.sort(np.argsort(-np.abs(x), kind="stable")[:k])
    noise = np.asarray(rounding_noise(key, len(places)))
    decoded = np.zeros_like(x)
    for start in range(0, len(places), width):
        here = places[start : start + width]
        values = x[here]
        size = (
            np.abs(values).max()
            if norm == "max"
            else np.float32(np.linalg.norm(values.astype(np.float64)))
        )
        scale = np.float32(size / np.float32(levels))
        steps = np.abs(values) / scale
        up = noise[start : start + width] >= 1 - (steps - np.floor(steps))
        decoded[here] = (
            np.sign(values)
            * np.minimum(np.floor(steps) + up, levels).astype(np.float32)
            * scale
        )
    return decoded


@pytest.mark.parametrize(
    ("bits", "k", "width"),
    [
        (4, 1, 512),
        (4, 1000, 512),
        (4, 100, 30),
        (2, 600, 512),
        (8, 1500, 1),
        (8, 3000, 4000),
    ],
)
def test_the_message_is_that_of_the_steps_and_the_residual_is_the_rest(
    k: int, width: int, bits: int
) -> None:
    rng = np.random.default_rng(bits)
    x, residual = rng.normal(size=(2, 3000)).astype(np.float32)
    key = jax.random.key(k)
    decoded, rest = (
        np.asarray(y) for y in uplink(x, residual, k, bits, key, bucket_size=width)
    )
    corrected = x + residual
    np.testing.assert_array_equal(
        decoded, by_hand(corrected, k, bits, key, "max", width)
    )
    np.testing.assert_array_equal(rest, corrected - decoded)


def test_the_l2_norm_of_a_bucket() -> None:
    x = np.random.default_rng(0).normal(size=500).astype(np.float32)
    key = jax.random.key(1)
    decoded, _ = uplink(x, np.zeros(500, np.float32), 120, 6, key, "l2", 50)
    np.testing.assert_allclose(
        np.asarray(decoded), by_hand(x, 120, 6, key, "l2", 50), rtol=1e-6
    )


def test_one_bucket_of_everything_is_stochastic_quantize() -> None:
    x = jax.random.normal(jax.random.key(0), (300,))
    sent = jax.jit(sparse_codes, static_argnums=(1, 2))(x, 400, 4, jax.random.key(1))
    codes, scale = stochastic_quantize(x, jax.random.key(1), 7, "max")
    assert sent.places.tolist() == list(range(300))
    assert sent.codes.tolist() == codes.tolist()
    assert sent.scales.tolist() == [float(scale)]


def test_vmap_is_the_loop() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 3, 700))
    keys = jax.random.split(jax.random.key(1), 3)
    both = jax.jit(jax.vmap(lambda x, e, key: sparse_quantize(x, e, 60, 4, key)))(
        x[0], x[1], keys
    )
    for i in range(3):
        for one, rows in zip(
            uplink(x[0, i], x[1, i], 60, 4, keys[i]), both, strict=True
        ):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(rows[i]))


def test_nan_and_infinity_do_not_pass_in_silence() -> None:
    x = jnp.arange(1.0, 11.0).at[3].set(jnp.inf)
    decoded, rest = uplink(x, jnp.zeros(10), 4, 4, jax.random.key(0))
    assert not np.isfinite(np.asarray(decoded)[[3, 7, 8, 9]]).any()
    # A NaN is kept last: it stays in the residual of the sender, who meets it in every later round.
    decoded, rest = uplink(x.at[3].set(jnp.nan), jnp.zeros(10), 4, 4, jax.random.key(0))
    assert np.isfinite(np.asarray(decoded)).all()
    assert np.isnan(np.asarray(rest)[3])


def test_errors_name_the_value() -> None:
    for bits in (1, 9):
        with pytest.raises(
            ValueError, match=f"expected 2 <= bits <= 8, got bits={bits}"
        ):
            sparse_quantize(jnp.ones(3), jnp.zeros(3), 1, bits, jax.random.key(0))
