"""Host coders: what is written is read, as long as the closed forms and the in-graph
lengths say.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm import kernels
from fedjax_fm.channels import (
    bernoulli_mask,
    code_lengths,
    eden,
    identity,
    nnadq,
    quantize,
    sign,
    ternary,
    threshold,
    top_k,
)
from fedjax_fm.channels.prefix_codes import (
    Bits,
    elias_decode,
    elias_encode,
    rice_decode,
    rice_encode,
    run_level_decode,
    run_level_encode,
)
from fedjax_fm.channels.range_coder import RangeCoded, range_decode, range_encode

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def entropy(counts: np.ndarray) -> float:
    counts = counts[counts > 0]
    return float(np.sum(counts * np.log2(counts.sum() / counts)))


def written(bits: Bits) -> str:
    return "".join(f"{byte:08b}" for byte in bits.data)[: bits.n_bits]


# ---- the arithmetic coder


@pytest.mark.parametrize("share", [0.5, 0.1, 1e-3, 0.0, 1.0])
def test_a_mask_takes_its_entropy_and_two_bits(share: float) -> None:
    mask = (RNG.random(200_000) < share).astype(int)
    counts = np.bincount(mask, minlength=2)
    coded = range_encode(mask, counts)
    assert entropy(counts) <= coded.n_bits <= math.ceil(entropy(counts)) + 2
    assert len(coded.data) == -(-coded.n_bits // 8)
    np.testing.assert_array_equal(range_decode(coded, counts, mask.size), mask)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 20), max_size=300),
    st.lists(st.integers(1, 10**6), min_size=21, max_size=21),
)
def test_any_symbols_under_any_law(symbols: list[int], counts: list[int]) -> None:
    law = np.array(counts)
    coded = range_encode(np.array(symbols, int), law)
    ideal = float(np.sum(np.log2(law.sum() / law[symbols]))) if symbols else 0.0
    assert ideal - 1e-6 <= coded.n_bits <= ideal + 2.001
    assert range_decode(coded, law, len(symbols)).tolist() == symbols


def test_carries_run_through_many_words() -> None:
    """The most probable symbol at the top of the interval makes long runs of ones,
    which a late symbol overturns.
    """
    for last in range(3):
        symbols = np.array([1] * 3000 + [2] * 3000 + [last] * 5)
        counts = np.array([1, 2**20, 2**31])
        assert (
            range_decode(range_encode(symbols, counts), counts, symbols.size).tolist()
            == symbols.tolist()
        )


def test_the_range_coder_is_as_short_as_constriction_s() -> None:
    constriction = pytest.importorskip("constriction")
    symbols = np.minimum(RNG.geometric(0.3, 100_000) - 1, 15).astype(np.int32)
    counts = np.bincount(symbols, minlength=16)
    model = constriction.stream.model.Categorical(
        counts.astype(np.float32) / counts.sum(), perfect=False
    )
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols, model)
    assert range_encode(symbols, counts).n_bits <= encoder.num_bits() + 2
    assert range_encode(symbols, counts).n_bits == pytest.approx(
        encoder.num_bits(), rel=1e-3
    )


def test_errors_of_the_range_coder() -> None:
    with pytest.raises(ValueError, match="a symbol occurs whose count is zero"):
        range_encode(np.array([0, 1]), np.array([1, 0]))
    with pytest.raises(ValueError, match="expected symbols from 0 to 1, got 0 to 2"):
        range_encode(np.array([0, 2]), np.array([1, 1]))
    for counts in ([], [-1, 2], [0, 0], [2**32, 1]):
        with pytest.raises(ValueError, match="expected counts >= 0 that sum to 1 to 2"):
            range_encode(np.array([], int), np.array(counts, np.int64))
    coded = range_encode(np.arange(100) % 7, np.ones(7, int))
    with pytest.raises(ValueError, match="truncated"):
        range_decode(RangeCoded(coded.data[:-1], coded.n_bits), np.ones(7, int), 100)


# ---- prefix codes

ELIAS = {  # Elias 1975; Wikipedia's tables of the three codes
    "gamma": {1: "1", 2: "010", 3: "011", 4: "00100", 8: "0001000", 17: "000010001"},
    "delta": {1: "1", 2: "0100", 3: "0101", 4: "01100", 8: "00100000", 17: "001010001"},
    "omega": {
        1: "0",
        2: "100",
        3: "110",
        4: "101000",
        8: "1110000",
        16: "10100100000",
        100: "1011011001000",
    },
}


@pytest.mark.parametrize("code", ELIAS)
def test_elias_codes_of_the_tables(code: str) -> None:
    for k, text in ELIAS[code].items():
        assert written(elias_encode(np.array([k]), code)) == text


@pytest.mark.parametrize("code", ELIAS)
def test_elias_lengths_in_graph_are_the_encoder_s(code: str) -> None:
    numbers = np.concatenate(
        [np.arange(1, 10_001), 2 ** np.arange(32), 2 ** np.arange(1, 33) - 1]
    )
    lengths = np.asarray(
        jax.jit(kernels.code_lengths.LENGTHS[code])(jnp.asarray(numbers, jnp.uint32))
    )
    assert elias_encode(numbers, code).n_bits == lengths.sum()
    for k in (1, 2, 3, 15, 16, 9_999, 2**32 - 1):
        assert (
            elias_encode(np.array([k]), code).n_bits
            == lengths[np.flatnonzero(numbers == k)[0]]
        )
    if code == "gamma":
        np.testing.assert_array_equal(
            lengths[:10_000], [2 * (k.bit_length() - 1) + 1 for k in range(1, 10_001)]
        )


@pytest.mark.parametrize("code", ELIAS)
@settings(max_examples=100, deadline=None)
@given(
    numbers=st.lists(
        st.one_of(st.integers(1, 9), st.integers(1, 2**32 - 1)), max_size=50
    )
)
def test_elias_codes_are_read_back(code: str, numbers: list[int]) -> None:
    assert (
        elias_decode(
            elias_encode(np.array(numbers, np.int64), code), len(numbers), code
        ).tolist()
        == numbers
    )


@settings(max_examples=100, deadline=None)
@given(
    mask=st.lists(st.booleans(), min_size=1, max_size=200),
    low_bits=st.one_of(st.none(), st.integers(0, 9)),
)
def test_rice_codes_are_read_back(mask: list[bool], low_bits: int | None) -> None:
    flags = np.array(mask)
    if flags.any():
        decoded = rice_decode(
            rice_encode(flags, low_bits), flags.size, int(flags.sum()), low_bits
        )
        np.testing.assert_array_equal(decoded, flags)


RICE = {
    1e-3: (11.49, 9),
    1e-2: (8.11, 6),
    0.1: (4.76, 3),
    0.25: (3.29, 1),
}  # KERNELS, section 7: bits an entry, b


@pytest.mark.parametrize("share", RICE)
def test_rice_codes_of_random_masks(share: float) -> None:
    n = 1_000_000
    mask = np.zeros(n, bool)
    mask[RNG.choice(n, int(share * n), replace=False)] = True
    per_entry, low_bits = RICE[share]
    assert int(kernels.rice_parameter(n, mask.sum())) == low_bits
    bits = rice_encode(mask)
    assert bits.n_bits == int(jax.jit(kernels.rice_length)(mask, low_bits))
    assert bits.n_bits / mask.sum() == pytest.approx(per_entry, rel=0.01)
    np.testing.assert_array_equal(rice_decode(bits, n, int(mask.sum())), mask)


@pytest.mark.parametrize("code", ELIAS)
def test_the_sparse_code_of_qsgd(code: str) -> None:
    x = RNG.normal(size=20_000).astype(np.float32)
    codes, _ = jax.jit(kernels.stochastic_quantize_buckets, static_argnums=(2, 3, 4))(
        x, KEY, 16, "l2", 512
    )
    codes = np.asarray(codes)
    bits = run_level_encode(codes, code)
    assert bits.n_bits == int(kernels.run_level_length(codes, code))
    np.testing.assert_array_equal(
        run_level_decode(bits, codes.size, np.count_nonzero(codes), code), codes
    )
    if code == "gamma":  # KERNELS, section 7: 2.33 bits an entry with the norms
        assert (bits.n_bits + 32 * 40) / codes.size == pytest.approx(2.33, rel=0.02)


@pytest.mark.parametrize(
    "decode", [lambda b: rice_decode(b, 90, 30), lambda b: elias_decode(b, 40, "delta")]
)
def test_codes_that_end_too_early_or_too_late(decode) -> None:
    bits = rice_encode(np.arange(90) % 3 == 0)
    short = Bits(bits.data[:2], 16)
    with pytest.raises(ValueError, match="ends too early"):
        decode(short)
    with pytest.raises(ValueError, match="truncated"):
        decode(Bits(bits.data[:-1], bits.n_bits))
    with pytest.raises(ValueError, match="left over"):
        rice_decode(Bits(bits.data + b"\0", bits.n_bits + 8), 90, 30)


def test_numbers_that_elias_has_no_code_for() -> None:
    for numbers in ([0], [1, 2**32]):
        with pytest.raises(ValueError, match="Elias codes take 1 to 2"):
            elias_encode(np.array(numbers))
    with pytest.raises(
        ValueError, match="expected code 'gamma', 'delta' or 'omega', got 'beta'"
    ):
        elias_encode(np.array([1]), "beta")


# ---- three lengths of a payload

N = 100_000


def lengths_of(channel, tree):
    payload, _ = jax.jit(channel.encode)(channel.init(tree), tree, KEY)
    lengths = code_lengths(payload)
    assert lengths.fixed == int(channel.bits(payload))
    return lengths, payload


def test_lengths_of_a_mask() -> None:
    mask = RNG.random(N) < 0.05
    lengths, _ = lengths_of(
        bernoulli_mask(), {"a": mask[:300].reshape(3, 100), "b": mask[300:]}
    )
    p = mask.mean()
    entropy_bits = N * (-p * np.log2(p) - (1 - p) * np.log2(1 - p))
    assert lengths.fixed == N
    assert lengths.entropy == pytest.approx(entropy_bits, rel=1e-9)
    assert lengths.coded <= math.ceil(entropy_bits) + 2 + 32
    assert float(kernels.mask_entropy_bits(jnp.asarray(mask))) == pytest.approx(
        entropy_bits, rel=1e-5
    )


@pytest.mark.parametrize(
    "make", [lambda: quantize(4), ternary, lambda: eden(3), lambda: nnadq(0.01)]
)
def test_lengths_of_codes(make) -> None:
    x = RNG.normal(size=N).astype(np.float32)
    lengths, payload = lengths_of(make(), x)
    assert lengths.entropy < lengths.coded < lengths.entropy * 1.01
    assert lengths.coded < lengths.fixed
    if make is ternary:  # symbols counted by other means; the scales travel as they are
        codes = np.asarray(payload.side[0].unpack())
        assert lengths.entropy == pytest.approx(
            entropy(np.bincount(codes)) + 8 * payload.side[1].nbytes, rel=1e-9
        )
        counts = kernels.symbol_counts(jnp.asarray(codes), 3)
        assert float(kernels.entropy_bits(counts)) == pytest.approx(
            entropy(np.bincount(codes)), rel=1e-5
        )


def test_lengths_of_positions() -> None:
    x = RNG.normal(size=N).astype(np.float32)
    lengths, _ = lengths_of(top_k(0.01), x)
    assert lengths.fixed == 1000 * (32 + 17)
    assert lengths.entropy == pytest.approx(1000 * (32 + 8.08), rel=1e-3)
    assert lengths.coded == pytest.approx(1000 * (32 + 8.11), rel=0.01)
    counted, payload = lengths_of(threshold(2.5758), x)
    k = int(payload.side[0].count)
    assert counted.fixed == 32 + 32 * k + 8 * -(-17 * k // 8)
    choices = sum(math.log2((N - i) / (i + 1)) for i in range(k))
    assert counted.entropy == pytest.approx(32 + 32 * k + choices, rel=1e-6)
    assert counted.entropy < counted.coded < counted.entropy + 0.02 * choices


def test_lengths_of_what_has_no_codes() -> None:
    x = {"w": np.ones((3, 5), np.float32), "ids": np.arange(4, dtype=np.int32)}
    assert lengths_of(identity(), x)[0] == (19 * 32, 19 * 32.0, 19 * 32)
    few, _ = lengths_of(
        sign(), np.ones(3, np.float32)
    )  # the model costs more than the codes
    assert few.fixed == 40
    assert 64 <= few.coded <= 66
