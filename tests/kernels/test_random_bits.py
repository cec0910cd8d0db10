"""The unrolled threefry against jax.random, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.kernels import random_bits, random_bits_at, uniform

KEYS = (
    jax.random.key(0),
    jax.random.key(2**31 - 1),
    jax.random.fold_in(jax.random.key(7), 12345),
)


@pytest.mark.parametrize("n", [0, 1, 2, 33, 100_003])
def test_words_and_fractions_are_those_of_jax_random(n: int) -> None:
    for key in KEYS:
        for bits in (
            random_bits(key, n),
            jax.jit(random_bits, static_argnums=1)(key, n),
        ):
            assert bits.dtype == np.uint32
            np.testing.assert_array_equal(
                np.asarray(bits), np.asarray(jax.random.bits(key, (n,)))
            )
        np.testing.assert_array_equal(
            np.asarray(uniform(key, n)), np.asarray(jax.random.uniform(key, (n,)))
        )


def test_vmap_is_the_loop() -> None:
    keys = jax.random.split(jax.random.key(3), 6).reshape(2, 3)
    bits = jax.jit(jax.vmap(jax.vmap(lambda key: random_bits(key, 17))))(keys)
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(
                np.asarray(bits[i, j]), np.asarray(jax.random.bits(keys[i, j], (17,)))
            )


def test_a_word_depends_on_its_index_alone() -> None:
    places = jnp.array([[5, 0], [999, 5]])
    wanted = np.asarray(random_bits(KEYS[0], 1000))[np.asarray(places)]
    np.testing.assert_array_equal(np.asarray(random_bits_at(KEYS[0], places)), wanted)


def test_a_raw_key_is_the_typed_one() -> None:
    raw = jax.random.key_data(KEYS[1])
    np.testing.assert_array_equal(
        np.asarray(random_bits(raw, 9)), np.asarray(random_bits(KEYS[1], 9))
    )


def test_other_keys_are_errors() -> None:
    for impl in ("rbg", "unsafe_rbg"):
        with pytest.raises(
            ValueError, match=f"expected a threefry2x32 key, got one of {impl}"
        ):
            random_bits(jax.random.key(0, impl=impl), 3)
    with pytest.raises(
        ValueError,
        match=r"expected one threefry2x32 key, got uint32\[4, 2\] of key words",
    ):
        random_bits(jax.random.split(jax.random.key(0), 4), 3)
    with pytest.raises(
        ValueError, match=r"expected one threefry2x32 key, got int32\[2\]"
    ):
        random_bits(jnp.zeros(2, jnp.int32), 3)
    with pytest.raises(
        ValueError, match=r"expected 0 <= n <= 4294967296, got n=4294967297"
    ):
        random_bits(KEYS[0], 2**32 + 1)
