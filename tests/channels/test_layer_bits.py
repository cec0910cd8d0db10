"""Adaptive quantisation: the allocation by its conditions, the quantiser by its law."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm import channels
from fedjax_fm.channels import (
    bit_widths,
    layer_bits,
    noise_energies,
    noise_that_costs,
    rounded,
)

SIZES = {"a": 100, "b": 400, "c": 50}
ENERGIES = {"a": 3.0, "b": 8.0, "c": 0.5}
ROBUST = {"a": 2.0, "b": 1.0, "c": 4.0}
RNG = np.random.default_rng(0)


def allocated(sizes=SIZES, energies=ENERGIES, robust=ROBUST, **how):
    return bit_widths(sizes, energies, robust, **(how or {"mean_bits": 4.0}))


def test_the_quotient_is_the_same_for_all_layers():
    found = allocated()
    quotients = [ENERGIES[k] * 4 ** -found[k] / (ROBUST[k] * SIZES[k]) for k in SIZES]
    np.testing.assert_allclose(quotients, quotients[0])
    mean = sum(SIZES[k] * found[k] for k in SIZES) / sum(SIZES.values())
    assert mean == pytest.approx(4.0)


def test_the_constraint_is_active_and_no_other_allocation_does_better():
    found = allocated(most_noise=0.01)

    def noise(bits):
        return sum(ENERGIES[k] / ROBUST[k] * 4 ** -bits[k] for k in SIZES)

    assert noise(found) == pytest.approx(0.01)
    paid = sum(SIZES[k] * found[k] for k in SIZES)
    for _ in range(200):  # random allocations that obey it pay more
        other = {k: found[k] + RNG.normal() for k in SIZES}
        more = math.log(noise(other) / 0.01) / math.log(4)
        assert sum(SIZES[k] * (other[k] + more) for k in SIZES) >= paid - 1e-9


def test_what_doubles_and_what_quadruples():
    """With the constraint fixed by a constant that does not move: differences of two."""
    base = allocated()

    def difference(found):
        return found["b"] - found["a"]

    twice = allocated(sizes=SIZES | {"b": 800})
    assert difference(twice) == pytest.approx(difference(base) - 0.5)
    four = allocated(energies=ENERGIES | {"b": 32.0})
    assert difference(four) == pytest.approx(difference(base) + 1)
    alike = allocated(
        dict.fromkeys(SIZES, 10), dict.fromkeys(SIZES, 2.0), dict.fromkeys(SIZES, 3.0)
    )
    np.testing.assert_allclose(list(alike.values()), 4.0)
    assert rounded({"x": -3.0, "y": 2.6, "z": 11.0}) == {"x": 1, "y": 3, "z": 8}


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_the_error_on_entries_spread_evenly(bits):
    x = RNG.uniform(-1, 3, size=20_000).astype(np.float32)
    channel = layer_bits(bits)
    payload, _ = jax.jit(channel.encode)((), x, jax.random.key(0))
    error = np.asarray(channel.decode(payload), np.float64) - x
    step = (x.max() - x.min()) / 2**bits
    assert np.abs(error).max() <= step / 2 * (1 + 1e-4)
    assert np.mean(error**2) == pytest.approx(step**2 / 12, rel=0.03)
    assert channel.bits(payload) == bits * 20_000 + 64
    assert channel.bits(payload) == 8 * sum(y.nbytes for y in jax.tree.leaves(payload))


def test_constants_arrive_exactly_and_what_is_not_finite_is_seen():
    channel = layer_bits({"a": 2, "b": 3})
    tree = {"a": jnp.full(5, 0.3), "b": jnp.arange(4.0)}
    payload, _ = channel.encode((), tree, jax.random.key(0))
    np.testing.assert_array_equal(channel.decode(payload)["a"], tree["a"])
    for bad in (jnp.nan, jnp.inf):
        broken = tree | {"b": tree["b"].at[2].set(bad)}
        payload, _ = channel.encode((), broken, jax.random.key(0))
        assert not np.isfinite(channel.decode(payload)["b"]).all()


def linear(delta):
    x = np.random.default_rng(1).normal(size=(64, 6)).astype(np.float32)
    return jnp.tanh(x @ delta["w"]) @ delta["v"]


def test_measured_energies_follow_the_law_of_four():
    rng = np.random.default_rng(2)
    delta = {
        "v": jnp.float32(rng.normal(size=(30, 3))),
        "w": jnp.float32(rng.normal(size=(6, 30))),
    }
    fine, coarse = noise_energies(linear, delta, 7), noise_energies(linear, delta, 5)
    for path in delta:
        assert fine[path] == pytest.approx(coarse[path], rel=0.5)

    labels = jnp.argmax(linear(delta), axis=-1)

    def accuracy(changed):
        return float(jnp.mean(jnp.argmax(linear(changed), axis=-1) == labels))

    costs = noise_that_costs(0.2, linear, accuracy, delta, jax.random.key(0))
    assert all(value > 0 for value in costs.values())
    sizes = {path: x.size for path, x in delta.items()}
    widths = rounded(bit_widths(sizes, fine, costs, mean_bits=4.0))
    channel = layer_bits(widths)
    payload, _ = channel.encode((), delta, jax.random.key(0))
    assert accuracy(channel.decode(payload)) > 0.7
    with pytest.raises(ValueError, match="no noise on 'v' costs drop=2"):
        noise_that_costs(2.0, linear, accuracy, delta, jax.random.key(0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: layer_bits({"a": 9}), "widths"),
        (lambda: layer_bits(0), "widths=0"),
        (
            lambda: layer_bits({"a": 2}).encode((), {"b": jnp.ones(2)}, None),
            "none for 'b'",
        ),
        (lambda: allocated(mean_bits=4.0, most_noise=1.0), "give either"),
        (lambda: allocated(mean_bits=-1.0), "mean_bits=-1"),
        (lambda: allocated(energies={"a": 1.0}), "expected energies"),
        (lambda: allocated(robust=ROBUST | {"a": 0.0}), "robustness"),
        (lambda: allocated(sizes=SIZES | {"a": 0}), "sizes"),
    ],
)
def test_bad_values_are_refused(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()
    assert channels.layer_bits(3).law is None
