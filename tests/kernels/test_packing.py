"""Dense packing of codes, against numpy's own bits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedjax_fm.kernels import pack_bits, packed_length, packing, unpack_bits

pack = jax.jit(pack_bits, static_argnums=1)
unpack = jax.jit(unpack_bits, static_argnums=(1, 2))


def reference(codes: np.ndarray, bits: int) -> np.ndarray:
    """The little-endian bits of every code, the first `bits` of each, in one string."""
    octets = np.ascontiguousarray(codes, np.dtype("<u4")).view(np.uint8).reshape(-1, 4)
    each = np.unpackbits(octets, axis=1, bitorder="little")[:, :bits]
    return np.packbits(each.reshape(-1), bitorder="little")


def random_codes(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, n, dtype=np.uint32)


def cut(codes: np.ndarray, bits: int) -> np.ndarray:
    return (codes.astype(np.uint64) % 2**bits).astype(np.uint32)


def check(codes: np.ndarray, bits: int, pack: Callable, unpack: Callable) -> None:
    """Length, bits and round trip; codes may be above 2**bits."""
    n = len(codes)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (packed_length(n, bits),) == (int(np.ceil(n * bits / 8)),)
    np.testing.assert_array_equal(np.asarray(packed), reference(codes, bits))
    codes_again = unpack(packed, bits, n)
    assert codes_again.dtype == np.uint32
    np.testing.assert_array_equal(np.asarray(codes_again), cut(codes, bits))


@pytest.mark.parametrize("bits", [1, 2, 4, 5, 8, 11, 32])
def test_widths_in_use(bits: int) -> None:
    codes = random_codes(17, bits)
    codes[-1] = 2**bits - 1  # all ones at the very end of the buffer
    check(codes, bits, pack, unpack)
    check(cut(codes, bits), bits, pack, unpack)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9])
def test_every_filling_of_the_last_group(n: int) -> None:
    check(random_codes(n, 3), 3, pack, unpack)


@pytest.fixture
def on_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same source with numpy's functions: a length and a width cost microseconds,
    not a compilation.
    """
    monkeypatch.setattr(packing, "jnp", np)


@pytest.mark.usefixtures("on_numpy")
@pytest.mark.parametrize("bits", range(1, 33))
def test_every_width_and_length(bits: int) -> None:
    for n in range(50):
        check(random_codes(n, n), bits, pack_bits, unpack_bits)


@pytest.mark.usefixtures("on_numpy")
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(bits=st.integers(1, 32), codes=st.lists(st.integers(0, 2**32 - 1), max_size=100))
def test_any_codes(bits: int, codes: list[int]) -> None:
    check(np.array(codes, np.uint32), bits, pack_bits, unpack_bits)


def test_eager_is_jit() -> None:
    codes = random_codes(17, 5)
    packed = pack_bits(jnp.asarray(codes), 5)
    np.testing.assert_array_equal(np.asarray(packed), reference(codes, 5))
    np.testing.assert_array_equal(np.asarray(unpack_bits(packed, 5, 17)), cut(codes, 5))


def test_one_bit_is_packbits() -> None:
    flags = np.random.default_rng(0).random(4099) < 0.3
    np.testing.assert_array_equal(
        np.asarray(pack(flags, 1)), np.packbits(flags, bitorder="little")
    )


def test_whole_bytes_are_the_memory_of_the_codes() -> None:
    codes = random_codes(17, 0)
    for bits, dtype in ((8, "u1"), (16, "<u2"), (32, "<u4")):
        np.testing.assert_array_equal(
            np.asarray(pack(codes, bits)), codes.astype(dtype).view("u1")
        )


def test_negative_codes_are_cut_as_two_complement() -> None:
    codes = jnp.array([-1, -2, 127, -128], jnp.int8)
    assert unpack(pack(codes, 8), 8, 4).tolist() == [255, 254, 127, 128]


@pytest.mark.parametrize("bits", [3])
def test_vmap_is_the_loop(bits: int) -> None:
    codes = jnp.asarray(random_codes(4 * 21, bits).reshape(4, 21))
    packed = jax.jit(jax.vmap(lambda row: pack_bits(row, bits)))(codes)
    again = jax.jit(jax.vmap(lambda row: unpack_bits(row, bits, 21)))(packed)
    for row, packed_row, row_again in zip(
        np.asarray(codes), np.asarray(packed), np.asarray(again), strict=True
    ):
        np.testing.assert_array_equal(packed_row, reference(row, bits))
        np.testing.assert_array_equal(row_again, cut(row, bits))


@pytest.mark.parametrize("shape", [(4,), (6,), (0,), (5, 1)])
def test_a_buffer_of_another_length_is_an_error_with_the_numbers(
    shape: tuple[int, ...],
) -> None:
    with pytest.raises(
        ValueError,
        match=r"13 codes of 3 bits take 5 bytes, got a buffer of shape \("
        + str(shape[0]),
    ):
        unpack_bits(jnp.zeros(shape, jnp.uint8), 3, 13)


@pytest.mark.parametrize("bits", [-1, 0, 33])
def test_widths_outside_1_to_32_are_errors(bits: int) -> None:
    with pytest.raises(ValueError, match=rf"expected 1 <= bits <= 32, got bits={bits}"):
        pack_bits(jnp.zeros(3, jnp.uint32), bits)
    with pytest.raises(ValueError, match=rf"expected 1 <= bits <= 32, got bits={bits}"):
        unpack_bits(jnp.zeros(3, jnp.uint8), bits, 3)
