"""Tiny, huge and lonely entries in every floating type: what is finite arrives finite
and near, or as infinity, loudly.

Never zeros for huge entries, and never NaN for a message whose estimate is a number of
the leaf's type."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  numpy learns the names
import numpy as np
import pytest

from fedjax_fm.channels import (
    anchored,
    cast,
    chain,
    drive,
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
N = 300
DTYPES = ("float32", "bfloat16", "float16")


class Row(NamedTuple):
    """A channel, and what its estimate of a message may be.

    Attributes:
      error: bound of ||C(x) - x|| / ||x|| of an ordinary message.
      gain: bound of the largest |C(x)_i| / max |x| of any message; times the largest
        entry it must be a number of the leaf's type, else infinity is what the
        docstring promises.
      floor: largest magnitude that may arrive as zero, or be zero and arrive as that.
      range: largest entry of the channel's own number format.
    """

    make: Callable[[], Channel]
    error: float
    gain: float = 1.0
    floor: float = 2.0**-126
    range: float = np.inf


ROWS = {
    "identity": Row(make=identity, error=0.0),
    "top_k": Row(make=lambda: top_k(0.3), error=1.0),
    "random_k": Row(make=lambda: random_k(0.3), error=4.0, gain=4),
    "random_k, unscaled": Row(make=lambda: random_k(0.3, False), error=1.0),
    "threshold": Row(make=lambda: threshold(0.5), error=1.0, floor=0.5),
    "threshold, max": Row(make=lambda: threshold(0.5, "max"), error=0.95),
    "threshold, rms": Row(make=lambda: threshold(0.5, "rms"), error=0.5),
    "quantize(4)": Row(make=lambda: quantize(4), error=0.3, floor=7 * 2.0**-126),
    "quantize(8), one bucket": Row(make=lambda: quantize(8, bucket_size=None), error=0.02, floor=127 * 2.0**-126),
    "quantize(6), l2": Row(make=lambda: quantize(6, "l2", 32), error=0.2, gain=6, floor=32 * 2.0**-126),
    "quantize(2), l2": Row(make=lambda: quantize(2, "l2", None), error=6.0, gain=17.4),
    "ternary": Row(make=lambda: ternary(64), error=1.6),
    "ternary, l2": Row(make=lambda: ternary(None, "l2"), error=6.0, gain=17.4),
    "sign": Row(make=sign, error=1.0, floor=N * 2.0**-126),
    "sign(64)": Row(make=lambda: sign(64), error=1.0, floor=64 * 2.0**-126),
    "natural": Row(make=natural, error=0.5, gain=2),
    "drive": Row(make=drive, error=1.0, gain=6, floor=2.0**-124),
    "eden(2)": Row(make=lambda: eden(2), error=0.5, gain=4, floor=2.0**-124),
    "eden(2), one turn": Row(make=lambda: eden(2, turns=1), error=0.6, gain=4, floor=2.0**-124),
    "eden(4), mse": Row(make=lambda: eden(4, "mse", 128), error=0.15, gain=2, floor=2.0**-122),
    "int_blocks(4)": Row(make=lambda: int_blocks(4), error=0.2, floor=7 * 2.0**-126),
    "int_blocks(6)": Row(make=lambda: int_blocks(6), error=0.04, floor=31 * 2.0**-126),
    "int_blocks(8)": Row(make=int_blocks, error=0.01, floor=127 * 2.0**-126),
    "nf4": Row(make=nf4, error=0.15),
    "cast(bf16)": Row(make=cast, error=2**-8, range=3.3895e38),
    "cast(f16)": Row(make=lambda: cast("float16"), error=2**-11, floor=2.0**-25, range=65504),
    "cast(f16, 32)": Row(make=lambda: cast("float16", 32), error=2**-11),
    "cast(e4m3, 32)": Row(make=lambda: cast("float8_e4m3fn", 32), error=2**-4),
    "cast(e5m2)": Row(make=lambda: cast("float8_e5m2"), error=2**-3, floor=2.0**-14, range=57344),
    "cast(e5m2, 32)": Row(make=lambda: cast("float8_e5m2", 32), error=2**-3),
    "nnadq": Row(make=nnadq, error=0.05, floor=1e-2),  # one level for ranges that are not worth a bit
    "chain": Row(make=lambda: chain(top_k(0.3), quantize(4)), error=1.0, floor=7 * 2.0**-126),
    "error_feedback": Row(make=lambda: error_feedback(chain(top_k(0.3), quantize(4))), error=1.0, floor=7 * 2.0**-126),
    "per_leaf": Row(make=lambda: per_leaf(otherwise=quantize(4)), error=0.3, floor=7 * 2.0**-126),
    "anchored": Row(
        make=lambda: anchored(int_blocks(8), int_blocks(8), 2), error=0.01, gain=1.001, floor=127 * 2.0**-126
    ),
}  # fmt: skip


def messages(dtype: str) -> dict[str, np.ndarray]:
    """By name; magnitudes from denormal numbers to the largest of the type."""
    info = jnp.finfo(dtype)
    tiny, most = float(info.smallest_normal), float(info.max)
    huge = 6e4 if dtype == "float16" else 1e38
    normal = np.random.default_rng(0).normal(size=N)
    normal /= np.abs(normal).max()
    lonely = np.zeros(N)
    lonely[7] = huge
    found = {
        "zeros": np.zeros(N),
        "denormal": normal * tiny / 8,
        "smallest": normal * tiny,
        "1e-30": normal * 1e-30,
        "1": normal,
        "1e10": normal * (1e3 if dtype == "float16" else 1e10),
        "1e30": normal * (1e4 if dtype == "float16" else 1e30),
        "huge": normal * huge,
        "largest": normal * most,
        "all huge": np.full(N, huge),
        "all the largest": np.full(N, most),
        "one huge": lonely,
        "one huge among small": lonely + normal * 1e-3,
    }
    return {name: x.astype(np.float32).astype(dtype) for name, x in found.items()}


@functools.cache
def arrived(name: str) -> dict[tuple[str, str], np.ndarray]:
    """What arrives of every message, f64[N] by (dtype, message)."""
    channel = ROWS[name].make()

    def send(x):
        tree = {"w": x}
        return channel.decode(channel.encode(channel.init(tree), tree, KEY)[0])["w"]

    stacks = {
        dtype: jnp.stack([jnp.asarray(x) for x in messages(dtype).values()])
        for dtype in DTYPES
    }
    sent = jax.jit(lambda stacks: jax.tree.map(lambda x: jax.lax.map(send, x), stacks))(
        stacks
    )
    assert all(str(sent[dtype].dtype) == dtype for dtype in DTYPES)
    return {
        (dtype, message): np.asarray(row).astype(np.float64)
        for dtype in DTYPES
        for message, row in zip(messages(dtype), sent[dtype], strict=True)
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROWS)
def test_finite_messages_arrive_near_or_as_infinity(name, dtype):
    row = ROWS[name]
    most, resolution = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).eps)
    wrong = []
    for message, x in messages(dtype).items():
        x, sent = x.astype(np.float64), arrived(name)[dtype, message]
        largest = np.abs(x).max()
        if row.gain * largest > most or largest > row.range:
            # Beyond the type: loud, or right all the same.
            if not np.isfinite(sent).all():
                continue
        elif not np.isfinite(sent).all():
            wrong.append(f"{message}: not finite")
            continue
        error = np.linalg.norm(sent - x)
        spread = (
            1.0 if message.startswith("one") else 0.0
        )  # a lonely entry that is not drawn, or shared by its block
        bound = max(row.error, spread if row.error else 0) + resolution
        bound = bound * np.linalg.norm(x) + np.sqrt(N) * (
            row.floor + float(jnp.finfo(dtype).smallest_normal)
        )
        if error > bound:
            wrong.append(f"{message}: error {error:.3g} above {bound:.3g}")
    assert not wrong


@pytest.mark.parametrize(
    "name", ["random_k", "natural", "quantize(2), l2", "cast(f16)", "cast(e5m2)"]
)
def test_an_estimate_beyond_the_type_is_infinity_and_no_number(name):
    """Of an unbiased channel a number in its place would be a bias that nobody sees; of
    `cast` it is the format's.
    """
    for dtype in DTYPES:
        sent = arrived(name)[dtype, "all the largest"]
        assert not np.isfinite(sent).all() or (
            name.startswith("cast") and dtype == "float16"
        )


@pytest.mark.parametrize("factor", [1e-30, 1e-15, 1e15, 1e30])
def test_a_relative_threshold_keeps_the_same_entries_at_every_scale(factor):
    x = np.random.default_rng(1).normal(size=200)
    for relative_to, of in (("rms", np.sqrt(np.mean(x**2))), ("max", np.abs(x).max())):
        channel = threshold(0.7, relative_to)
        payload, _ = channel.encode((), jnp.asarray(x * factor, jnp.float32), KEY)
        sent = np.asarray(channel.decode(payload), np.float64)
        np.testing.assert_array_equal(sent != 0, np.abs(x) >= 0.7 * of)
        k = int((np.abs(x) >= 0.7 * of).sum())
        assert int(channel.bits(payload)) == 32 + 32 * k + 8 * -(-min(8 * k, 200) // 8)
