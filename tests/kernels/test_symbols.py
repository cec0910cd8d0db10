"""Codes of any base in bytes, against arithmetic of Python integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.kernels import pack_symbols, symbols_per_byte, unpack_symbols


@pytest.mark.parametrize("base", [2, 3, 5, 6, 7, 15, 16, 17, 255, 256])
def test_bytes_and_round_trip(base: int) -> None:
    m = symbols_per_byte(base)
    assert base**m <= 256 < base ** (m + 1)
    for n in (0, 1, m, 5 * m + 1, 300):
        codes = np.random.default_rng(n).integers(0, base, n)
        codes[-m:] = base - 1  # the largest byte there is
        packed = jax.jit(pack_symbols, static_argnums=1)(codes, base)
        wanted = [
            sum(int(c) * base**i for i, c in enumerate(codes[j : j + m]))
            for j in range(0, n, m)
        ]
        assert packed.dtype == np.uint8
        assert packed.tolist() == wanted
        again = jax.jit(unpack_symbols, static_argnums=(1, 2))(packed, base, n)
        assert again.dtype == np.uint32
        assert again.tolist() == codes.tolist()


def test_trits_take_eight_fifths_of_a_bit() -> None:
    assert pack_symbols(jnp.zeros(1000, jnp.uint8), 3).shape == (200,)


def test_errors_name_the_value() -> None:
    for base in (1, 257):
        with pytest.raises(
            ValueError, match=f"expected 2 <= base <= 256, got base={base}"
        ):
            pack_symbols(jnp.zeros(3, jnp.uint32), base)
    with pytest.raises(
        ValueError,
        match=r"13 codes of base 3 take 3 bytes, got a buffer of shape \(4,\)",
    ):
        unpack_symbols(jnp.zeros(4, jnp.uint8), 3, 13)
