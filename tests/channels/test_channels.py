"""What single channels promise: contraction, no bias, feedback that telescopes, and
errors that name the value.
"""

import functools
from collections.abc import Callable
from fractions import Fraction
from math import ceil, log2, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.channels import (
    anchored,
    cast,
    chain,
    eden,
    error_feedback,
    identity,
    int_blocks,
    natural,
    nf4,
    nnadq,
    per_leaf,
    quantize,
    random_k,
    sign,
    ternary,
    threshold,
    top_k,
)
from fedjax_fm.types import Channel

KEY = jax.random.key(0)
N_DRAWS = 8_000


def normal(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n).astype(np.float32)


def flat(tree: Any) -> np.ndarray:
    """All leaves as one vector, f64."""
    return np.concatenate(
        [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    )


@functools.cache
def compiled(channel: Channel) -> Callable[[Any, jax.Array], Any]:
    """tree, key -> what the server decodes of a first message."""
    return jax.jit(
        lambda tree, key: channel.decode(
            channel.encode(channel.init(tree), tree, key)[0]
        )
    )


def send(channel: Channel, tree: Any) -> Any:
    return compiled(channel)(tree, KEY)


@functools.cache
def batch(channel: Channel) -> Callable[[Any, jax.Array], Any]:
    return jax.jit(jax.vmap(compiled(channel), in_axes=(None, 0)))


def draws(channel: Channel, x: np.ndarray) -> np.ndarray:
    """What the server decodes of one vector under N_DRAWS keys: f64[N_DRAWS, n]."""
    return np.asarray(batch(channel)(x, jax.random.split(KEY, N_DRAWS)), np.float64)


# ---- top_k

VECTORS = {
    "normal": normal(60),
    "constant": np.full(60, -0.5, np.float32),
    "one": 3.0 * np.eye(1, 60, 7, dtype=np.float32)[0],
    "heavy": normal(60) ** 7,
    "zero": np.zeros(60, np.float32),
}


@pytest.mark.parametrize("fraction", [0.1, 0.7])
def test_top_k_contracts(fraction: float) -> None:
    k = ceil(fraction * 60)
    channel = top_k(fraction)
    for x in VECTORS.values():
        sent = np.asarray(send(channel, x), np.float64)
        error, square = np.sum((sent - x) ** 2), np.sum(x.astype(np.float64) ** 2)
        assert error <= (1 - k / 60) * square + 1e-12
        largest = np.sort(np.abs(x.astype(np.float64)))[::-1]
        assert error == pytest.approx(
            np.sum(largest[k:] ** 2), rel=1e-12
        )  # no k entries are better
        assert np.all((sent == x) | (sent == 0))
    x = VECTORS["constant"]  # equality: delta = k / n is sharp
    assert np.sum((np.asarray(send(channel, x)) - x) ** 2) == pytest.approx(
        (1 - k / 60) * np.sum(x**2)
    )


def test_top_k_ranks_all_leaves_together() -> None:
    tree = {
        "large": jnp.array([[5.0, -6.0], [7.0, 0.5]]),
        "scalar": jnp.array(-8.0),
        "small": jnp.full(5, 0.1),
    }
    sent = send(top_k(0.4), tree)
    assert sent["large"].tolist() == [[5.0, -6.0], [7.0, 0.0]]
    assert float(sent["scalar"]) == -8.0
    assert not sent["small"].any()


@pytest.mark.parametrize(("n", "fraction"), [(8, 0.25), (8, 0.375), (100, 0.14)])
def test_top_k_takes_the_shorter_of_bitmap_and_indices(n: int, fraction: float) -> None:
    payload, _ = jax.jit(top_k(fraction).encode)((), normal(n), KEY)
    positions, k = payload.side[0].packed, round(fraction * n)
    width = max(1, ceil(log2(n)))
    assert positions.nbytes == ceil(min(width * k, n) / 8)
    places = np.sort(np.argsort(-np.abs(normal(n)))[:k])
    stream = np.unpackbits(np.asarray(positions), bitorder="little")
    if width * k < n:
        found = stream[: k * width].reshape(k, width) @ (1 << np.arange(width))
    else:
        found = np.flatnonzero(stream[:n])
    np.testing.assert_array_equal(found, places)
    np.testing.assert_array_equal(np.asarray(payload.values), normal(n)[places])


@pytest.mark.parametrize("fraction", [0.07, 0.1, 0.29, 1 / 3, 1e-9, 1])
def test_top_k_keeps_the_fraction_as_it_is_written(fraction: float) -> None:
    """0.07 * 100 is 7.000000000000001 in floats; seven entries travel, not eight."""
    for n in (1, 10, 99, 100, 300, 1000):
        shape = jax.ShapeDtypeStruct((n,), jnp.float32)
        payload, _ = jax.eval_shape(top_k(fraction).encode, (), shape, KEY)
        assert payload.values.size == ceil(Fraction(repr(fraction)) * n)


# ---- quantize

QUANTIZERS = {
    "4 bits, max": (4, "max", 16),
    "4 bits, l2": (4, "l2", 16),
    "8 bits, buckets of seven": (8, "max", 7),
}


@functools.cache
def quantizer(name: str) -> Channel:
    return quantize(*QUANTIZERS[name])


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantize_is_unbiased_with_the_closed_variance(name: str) -> None:
    bits, norm, bucket = QUANTIZERS[name]
    n, levels = 40, 2 ** (bits - 1) - 1
    x = normal(n) * np.repeat(
        np.float32([1, 100, 0.01]), [16, 16, 8]
    )  # buckets of three sizes
    step, p = np.zeros(n), np.zeros(n)
    for start in range(0, n, bucket or n):
        part = slice(start, start + (bucket or n))
        entries = np.abs(x[part].astype(np.float64))
        step[part] = (
            np.linalg.norm(entries) if norm == "l2" else entries.max()
        ) / levels
        p[part] = np.modf(entries / step[part])[0]
    variance = step**2 * p * (1 - p)
    error = draws(quantizer(name), x) - x
    random = p * (1 - p) > 1e-3
    z = error.mean(axis=0)[random] / np.sqrt(variance[random] / N_DRAWS)
    assert np.all(np.abs(z) < 5)
    squares = np.sum(error**2, axis=1)
    spread = max(squares.std() / sqrt(N_DRAWS), 1e-9)
    assert abs(squares.mean() - variance.sum()) < 4 * spread
    assert np.all(np.abs(error) <= step * (1 + 1e-5))


def test_quantize_rounds_buckets_independently() -> None:
    x = np.tile(normal(16), 3)[:40]
    sent = draws(quantizer("4 bits, l2"), x)
    first, second = (sent - x)[:, :16], (sent - x)[:, 16:32]  # of equal buckets
    assert np.any(first != second)
    correlation = np.mean(first * second, axis=0) / np.mean(first**2, axis=0)
    assert np.all(np.abs(correlation) < 5 / sqrt(N_DRAWS))


def test_the_scale_of_a_bucket_is_its_own() -> None:
    x = np.concatenate(
        [np.full(10, 1e-3), np.full(10, 1e3), np.zeros(10), np.full(3, -5.0)]
    ).astype(np.float32)
    np.testing.assert_allclose(
        send(quantize(4, "max", 10), x), x, rtol=1e-6
    )  # every entry is its bucket's norm


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("n", [8, 1000])
def test_quantize_takes_the_bits_of_the_table(bits: int, n: int) -> None:
    """Alistarh et al. 2017: 32 + d (1 + ceil(log2(s + 1))) with one scale."""
    levels, channel = 2 ** (bits - 1) - 1, quantize(bits, "l2", None)
    payload, _ = jax.eval_shape(
        channel.encode, (), jax.ShapeDtypeStruct((n,), jnp.float32), KEY
    )
    assert channel.bits(payload) == 32 + n * (1 + ceil(log2(levels + 1)))


# ---- chain


def test_a_chain_sends_the_positions_of_its_first_and_the_values_of_its_last() -> None:
    x = normal(100)
    kept = np.where(np.abs(x) >= np.sort(np.abs(x))[80], x, 0).astype(np.float64)
    error = draws(chain(top_k(0.2), quantize(4, "max", None)), x) - kept
    step = np.abs(kept).max() / 7
    p = np.modf(np.abs(kept) / step)[0]
    assert np.all(error[:, kept == 0] == 0)
    random = p * (1 - p) > 1e-3
    assert np.all(
        np.abs(error.mean(axis=0)[random])
        < 5 * step * np.sqrt((p * (1 - p))[random] / N_DRAWS)
    )
    assert np.mean(np.sum(error**2, axis=1)) == pytest.approx(
        step**2 * np.sum(p * (1 - p)), rel=0.05
    )


SHORTER = {
    "identity first": (
        lambda: chain(identity(), top_k(0.6), top_k(0.5)),
        lambda: top_k(0.3),
    ),
    "identity last": (
        lambda: chain(top_k(0.3), error_feedback(identity())),
        lambda: top_k(0.3),
    ),
    "chain of chains": (
        lambda: chain(chain(top_k(0.6), top_k(0.5)), cast("bfloat16")),
        lambda: chain(top_k(0.3), cast()),
    ),
}


@pytest.mark.parametrize("name", SHORTER)
def test_chains_that_are_a_shorter_one(name: str) -> None:
    tree = {"a": normal(19).reshape(1, 19), "b": jnp.float32(0.7)}
    long, short = (send(make(), tree) for make in SHORTER[name])
    assert jax.tree.structure(long) == jax.tree.structure(short)
    np.testing.assert_array_equal(flat(long), flat(short))


def test_a_chain_of_one_is_that_channel() -> None:
    channel = top_k(0.1)
    assert chain(channel) is channel


# ---- error feedback

INNER = {
    "top_k": lambda: top_k(0.1),
    "chain": lambda: chain(top_k(0.1), quantize(4)),
    "identity": identity,
}


@pytest.mark.parametrize("name", INNER)
def test_all_that_was_sent_and_the_residual_are_all_messages(name: str) -> None:
    channel = error_feedback(INNER[name]())
    xs = [{"w": normal(60, r).reshape(6, 10), "b": jnp.float32(r)} for r in range(12)]
    state = channel.init(jax.eval_shape(lambda: xs[0]))
    encode, decode = jax.jit(channel.encode), jax.jit(channel.decode)
    sent, sizes = np.zeros(61), []
    for r, x in enumerate(xs):
        payload, state = encode(state, x, jax.random.fold_in(KEY, r))
        sent += flat(decode(payload))
        sizes.append(np.linalg.norm(flat(state[0])))
        np.testing.assert_allclose(
            sent + flat(state[0]), sum(flat(y) for y in xs[: r + 1]), atol=2e-5
        )
    assert (max(sizes) == 0) == (name == "identity")
    if (
        name == "top_k"
    ):  # Karimireddy et al. 2019, Lemma 3: ||e||^2 <= 4 (1 - delta) / delta^2 max ||x||^2
        delta = 7 / 61
        assert max(sizes) <= 2 * sqrt(1 - delta) / delta * max(
            np.linalg.norm(flat(x)) for x in xs
        )


def test_feedback_sends_in_the_end_what_top_k_never_would() -> None:
    x = jnp.array([1.0, 0.4, 0.3, 0.2])
    plain, channel = top_k(0.25), error_feedback(top_k(0.25))
    state, sent = channel.init(x), np.zeros(4)
    for _ in range(40):
        payload, state = jax.jit(channel.encode)(state, x, KEY)
        sent += np.asarray(channel.decode(payload))
    np.testing.assert_allclose(sent / 40, x, atol=0.06)
    assert send(plain, x).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_each_sender_has_its_own_residual() -> None:
    channel = error_feedback(top_k(0.5))
    xs = jnp.array([[4.0, 1.0], [0.0, 0.0], [2.0, 3.0]])
    states = jax.tree.map(lambda s: jnp.stack([s] * 3), channel.init(xs[0]))
    _, (residuals, _) = jax.jit(jax.vmap(channel.encode, in_axes=(0, 0, None)))(
        states, xs, KEY
    )
    assert residuals.tolist() == [[0.0, 1.0], [0.0, 0.0], [2.0, 0.0]]


def test_a_residual_has_the_dtype_of_its_leaf() -> None:
    x = {"a": jnp.asarray(normal(6), jnp.bfloat16), "b": jnp.asarray(normal(4))}
    channel = error_feedback(top_k(0.3))
    payload, (residual, _) = jax.jit(channel.encode)(channel.init(x), x, KEY)
    assert (residual["a"].dtype, residual["b"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(
        flat(jax.jit(channel.decode)(payload)) + flat(residual), flat(x)
    )


# ---- values that are not finite. The engine looks at the raw upload as well: a channel
# may drop what is bad.


def test_nan_spoils_its_bucket_of_quantize_and_no_other() -> None:
    for norm in ("max", "l2"):
        channel = quantize(4, norm, 10)
        for bad in (np.nan, np.inf, -np.inf):
            x = normal(30)
            x[12] = bad
            sent = np.asarray(send(channel, x))
            assert not np.isfinite(sent[10:20]).any()
            assert np.isfinite(sent[:10]).all()
            assert np.isfinite(sent[20:]).all()


SELECTED = chain(top_k(0.5), quantize(4))


@pytest.mark.parametrize("name", ["top_k", "random_k", "threshold", "chain"])
def test_selections_make_all_they_send_nan_for_one_nan_anywhere(name: str) -> None:
    channel = {
        "top_k": top_k(0.5),
        "random_k": random_k(0.5),
        "threshold": threshold(0.5),
        "chain": SELECTED,
    }[name]
    x = normal(10)
    x[3] = np.nan
    sent = np.asarray(send(channel, x))
    assert np.isnan(sent).any()
    assert np.all(np.isnan(sent) | (sent == 0))


def test_top_k_sends_infinity_first() -> None:
    x = normal(10)
    x[3] = -np.inf
    assert np.flatnonzero(send(top_k(0.1), x)).tolist() == [3]
    assert not np.isfinite(send(SELECTED, x)).all()


def test_feedback_keeps_a_nan_in_its_residual() -> None:
    x = normal(10)
    x[3] = np.nan
    channel = error_feedback(top_k(0.5))
    _, (residual, _) = jax.jit(channel.encode)(channel.init(x), x, KEY)
    assert np.isnan(residual)[3]


# ---- errors


@pytest.mark.parametrize(
    "fraction", [0, 0.0, -0.1, 1.0001, 10, float("nan"), float("inf")]
)
def test_a_fraction_outside_0_to_1(fraction: float) -> None:
    with pytest.raises(
        ValueError, match=rf"expected 0 < fraction <= 1, got fraction={fraction}"
    ):
        top_k(fraction)


@pytest.mark.parametrize("bits", [-4, 0, 1, 9, 32])
def test_bits_outside_2_to_8(bits: int) -> None:
    with pytest.raises(
        ValueError, match=rf"expected a whole number 2 <= bits <= 8, got bits={bits}"
    ):
        quantize(bits)


def test_other_arguments_of_quantize() -> None:
    with pytest.raises(
        ValueError, match=r"expected norm to be one of 'l2', 'max', got norm='l1'"
    ):
        quantize(4, "l1")
    for size in (0, -512):
        with pytest.raises(
            ValueError, match=rf"bucket_size >= 1, got bucket_size={size}; or None"
        ):
            quantize(4, bucket_size=size)


LOSSY = {
    "top_k": lambda: top_k(0.5),
    "quantize": lambda: quantize(4),
    "chain": lambda: chain(top_k(0.5), quantize(4)),
    "feedback": lambda: error_feedback(quantize(4)),
    "random_k": lambda: random_k(0.5),
    "eden": lambda: eden(2),
    "nnadq": nnadq,
}


def encode(channel: Channel, tree: Any) -> Any:
    return channel.encode(channel.init(tree), tree, KEY)[0]


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_channels_refuse_what_they_cannot_carry(name: str) -> None:
    channel = LOSSY[name]()
    with pytest.raises(
        TypeError,
        match=r"floating leaves only \(and packs bool ones\), but blocks\.1\.ids is int32",
    ):
        encode(channel, {"blocks": [{"w": jnp.ones(2)}, {"ids": jnp.arange(3)}]})
    with pytest.raises(
        ValueError, match=r"the message has bool leaves only; `identity` packs them"
    ):
        encode(channel, {"blocks": {"mask": jnp.ones(3, bool)}})
    with pytest.raises(
        ValueError, match=r"the leaf blocks\.0\.w of shape \(0, 3\) is empty"
    ):
        encode(channel, {"blocks": [{"w": jnp.ones((0, 3))}], "head": jnp.ones(2)})
    for tree in ({}, (), {"blocks": []}):
        with pytest.raises(
            ValueError, match=r"the message has no leaves, there is nothing to send"
        ):
            encode(channel, tree)


def test_identity_carries_everything() -> None:
    tree = {
        "ids": jnp.arange(3),
        "empty": jnp.ones((0, 3)),
        "mask": jnp.arange(9).reshape(3, 3) % 2 == 0,
        "none": [],
    }
    payload = encode(identity(), tree)
    received = identity().decode(payload)
    assert jax.tree.structure(received) == jax.tree.structure(tree)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(received), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    assert payload["ids"] is tree["ids"]
    assert identity().bits(payload) == 8 * (3 * 4 + 0 + 2)
    assert identity().bits(tree) == 8 * (
        3 * 4 + 0 + 2
    )  # of a message that is not encoded yet
    assert identity().bits(encode(identity(), {})) == 0


def test_chains_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"chain needs at least one channel, got none"):
        chain()
    x = jnp.asarray(normal(8))
    for channel in (
        chain(quantize(4), top_k(0.1)),
        chain(top_k(0.5), quantize(4), identity()),
        chain(error_feedback(quantize(4)), top_k(0.1)),
        chain(chain(top_k(0.5), quantize(4)), quantize(4)),
    ):
        with pytest.raises(ValueError, match=r"quantize, must come last"):
            channel.init(x)
    with pytest.raises(ValueError, match=r"quantize, must come last"):
        jax.eval_shape(chain(quantize(4), top_k(0.1)).encode, ((), ()), x, KEY)


SETTINGS = {
    "quantize": lambda: quantize(4),
    "top_k": lambda: top_k(0.1),
    "bitmap": lambda: top_k(0.9),
    "ternary": ternary,
    "sign": sign,
    "natural": natural,
    "eden": lambda: eden(2),
    "int_blocks": int_blocks,
    "nf4": nf4,
    "nnadq": nnadq,
    "threshold": lambda: threshold(1.0),
    "chain": lambda: chain(top_k(0.1), quantize(4)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_truncated_payload_is_an_error_with_the_numbers(name: str) -> None:
    channel = SETTINGS[name]()
    shapes, _ = jax.eval_shape(
        channel.encode, channel.init(normal(100)), normal(100), KEY
    )
    payload = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    channel.decode(payload)  # whole, it is none
    cut = jax.tree.map(lambda x: x[..., :-1] if x.dtype == jnp.uint8 else x, payload)
    with pytest.raises(ValueError, match=r"take .*bytes, got a buffer of shape"):
        channel.decode(cut)


def test_a_payload_of_another_channel_or_setting_is_an_error() -> None:
    x = normal(100)
    with pytest.raises(
        ValueError,
        match=r"quantize with \(8, 'max', 512\) cannot read a payload of quantize with \(4,",
    ):
        quantize(8).decode(encode(quantize(4), x))
    with pytest.raises(
        ValueError, match=r"sign with None cannot read a payload of nf4 with 64"
    ):
        sign().decode(encode(nf4(), x))
    with pytest.raises(
        ValueError, match=r"chain cannot read a payload of another channel"
    ):
        chain(top_k(0.1), quantize(4)).decode(encode(sign(), x))
    with pytest.raises(
        ValueError, match=r"top_k with 0\.1 cannot read a payload of ArrayImpl"
    ):
        top_k(0.1).decode(jnp.zeros(3))


ARGUMENTS = [
    (lambda: random_k(0), r"expected 0 < fraction <= 1, got fraction=0"),
    (lambda: threshold(0.0), r"expected least > 0, got least=0\.0"),
    (lambda: threshold(float("nan")), r"expected least > 0, got least=nan"),
    (
        lambda: threshold(1.0, "mean"),
        r"expected relative_to to be one of None, 'max', 'rms', got relative_to='mean'",
    ),
    (lambda: sign(0), r"block_size >= 1, got block_size=0; or None"),
    (lambda: ternary(-1), r"block_size >= 1, got block_size=-1; or None"),
    (
        lambda: ternary(64, "l1"),
        r"expected norm to be one of 'l2', 'max', got norm='l1'",
    ),
    (lambda: eden(0), r"expected a whole number 1 <= bits <= 6, got bits=0"),
    (lambda: eden(7), r"expected a whole number 1 <= bits <= 6, got bits=7"),
    (
        lambda: eden(2, "best"),
        r"expected scale to be one of 'unbiased', 'mse', got scale='best'",
    ),
    (
        lambda: eden(2, block_size=1000),
        r"expected a power of two >= 128, got block_size=1000",
    ),
    (lambda: eden(2, block_size=64), r"block_size >= 128, got block_size=64"),
    (lambda: eden(2, turns=0), r"turns >= 1, got turns=0"),
    (lambda: int_blocks(1), r"expected a whole number 2 <= bits <= 8, got bits=1"),
    (lambda: int_blocks(9), r"expected a whole number 2 <= bits <= 8, got bits=9"),
    (lambda: nf4(0), r"block_size >= 1, got block_size=0; or None"),
    (
        lambda: cast("float32"),
        r"expected dtype to be one of 'bfloat16', .*, got dtype='float32'",
    ),
    (lambda: nnadq(0), r"expected weight > 0, got weight=0"),
    (lambda: anchored(identity(), identity(), 0), r"every >= 1, got every=0"),
    (lambda: per_leaf(), r"per_leaf needs at least one rule or `otherwise`, got none"),
]


@pytest.mark.parametrize(("make", "error"), ARGUMENTS)
def test_arguments_that_make_no_sense(make: Callable[[], Channel], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        make()
