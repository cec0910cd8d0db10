"""`Channel.law`: the bound holds for messages of several kinds, and where it is the
exact supremum a message attains it.
"""

import math

import jax
import numpy as np
import pytest

from fedjax_fm import channels
from fedjax_fm.channels.laws import Contractive, Unbiased, delta_of

N, DRAWS = 24, 3000
RNG = np.random.default_rng(0)
MESSAGES = {
    "normal": RNG.normal(size=N),
    "heavy": RNG.normal(size=N) ** 7,
    "alike": np.full(N, -3.0),
    "one large": np.eye(1, N, 5)[0] + 0.2,
    "one": np.eye(1, N, 5)[0],
}
RANDOM = {
    "random_k": channels.random_k(0.25),
    "random_k, unscaled": channels.random_k(0.25, scaled=False),
    "quantize, max": channels.quantize(2, bucket_size=8),
    "quantize, l2": channels.quantize(3, "l2", None),
    "ternary": channels.ternary(None, "l2"),
    "natural": channels.natural(),
    "random_k, quantize": channels.chain(channels.random_k(0.5), channels.quantize(3)),
    "top_k, quantize": channels.chain(channels.top_k(0.25), channels.quantize(3)),
    "by leaf": channels.per_leaf(("", channels.natural())),
}
FIXED = {
    "identity": channels.identity(),
    "top_k": channels.top_k(0.25),
    "threshold, max": channels.threshold(0.7, "max"),
    "threshold, rms": channels.threshold(0.7, "rms"),
    "sign": channels.sign(8),
    "int_blocks": channels.int_blocks(3, 8),
    "nf4": channels.nf4(8),
    "cast": channels.cast("float8_e4m3fn", 8),
    "top_k, int_blocks": channels.chain(channels.top_k(0.5), channels.int_blocks(2)),
}


def errors(channel, x, draws):
    """Squared relative errors, f64[draws]."""
    x = np.float32(x)

    def send(key):
        payload, _ = channel.encode(channel.init(x), x, key)
        return channel.decode(payload)

    found = jax.jit(jax.vmap(send))(jax.random.split(jax.random.key(1), draws))
    squares = np.sum((np.asarray(found, np.float64) - x) ** 2, axis=1)
    return squares / np.sum(np.square(x, dtype=np.float64))


def bound_of(law):
    return law.omega(N) if isinstance(law, Unbiased) else 1 - law.delta(N)


@pytest.mark.parametrize("name", RANDOM)
def test_the_mean_error_is_within_the_bound(name):
    channel = RANDOM[name]
    for x in MESSAGES.values():
        found = errors(channel, x, DRAWS)
        noise = found.std() / math.sqrt(DRAWS)
        assert found.mean() <= bound_of(channel.law) + 4 * noise + 1e-6


@pytest.mark.parametrize("name", FIXED)
def test_every_error_is_within_the_bound(name):
    channel = FIXED[name]
    for x in MESSAGES.values():
        assert errors(channel, x, 1)[0] <= bound_of(channel.law) + 1e-6


@pytest.mark.parametrize("bits", [2, 3])
def test_the_bound_of_the_max_norm_is_attained(bits):
    channel, s = channels.quantize(bits, "max", None), 2 ** (bits - 1) - 1
    small = 1 / (math.sqrt(s**2 + N - 1) + s)
    x = np.full(N, small)
    x[3] = 1.0
    found = errors(channel, x, 20_000).mean()
    assert found == pytest.approx(channel.law.omega(N), rel=0.02)


def test_what_promises_nothing_has_no_law():
    inner = channels.top_k(0.25)
    anchored = channels.anchored(inner, channels.natural(), 2)
    for channel in (
        channels.error_feedback(inner),
        anchored,
        channels.nnadq(),
        channels.block_dropout(),
        channels.threshold(0.5),
        channels.threshold(1.5, "rms"),
        channels.bernoulli_mask(),
        channels.chain(channels.random_k(0.5), inner),
        channels.per_leaf(("a", channels.nnadq()), otherwise=inner),
    ):
        assert channel.law is None
        assert delta_of(channel.law, N) == 0


def test_parts_and_rows_of_channels():
    mixed = channels.per_leaf(("a", channels.natural()), otherwise=channels.top_k(0.5))
    assert isinstance(mixed.law, Contractive)
    assert mixed.law.delta(N) == 0.5
    chained = channels.chain(channels.random_k(0.5), channels.natural())
    assert chained.law.omega(N) == pytest.approx(2 * 9 / 8 - 1)
    assert delta_of(chained.law, N) == pytest.approx(-0.25)
    assert channels.eden(1).law.omega(N) == pytest.approx(math.pi / 2 - 1, rel=1e-3)
