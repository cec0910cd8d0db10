"""Seconds and joules: closed forms, searches over a grid, what must not change."""

import math

import numpy as np
import pytest

from fedjax_fm import systems
from fedjax_fm.systems import (
    Frequencies,
    best_frequency,
    compute_seconds,
    compute_share,
    find,
    granularity,
    memory_needed,
    tokens_per_joule,
    training_flop,
    transfer_seconds,
)

JETSON = find("device", "jetson-agx-orin")
HOME = find("link", "home")


def test_the_rule_of_operations():
    # Kaplan et al.: 6 P a token; without gradients of weights 4 P
    assert training_flop(0, 3e9, 100) == 6 * 3e9 * 100
    assert training_flop(3e9, 0, 100) == 4 * 3e9 * 100
    assert training_flop(3e9, 1e6, 100) == pytest.approx((12e9 + 6e6) * 100)


def test_the_rule_is_what_a_stack_of_layers_does():
    """Without attention and without the first input's gradient, the rule is exact."""
    import jax
    import jax.numpy as jnp

    tokens, d, layers = 5, 7, 40
    frozen = jax.ShapeDtypeStruct((layers, d, d), jnp.float32)
    x = jax.ShapeDtypeStruct((tokens, d), jnp.float32)

    def gradients(kernels, x):
        def loss(kernels):
            def layer(x, kernel):
                return jnp.tanh(x @ kernel), None

            return jax.lax.scan(layer, x, kernels)[0].sum()

        return jax.grad(loss)(kernels)

    counted = systems.flop_of(gradients, frozen, x)
    rule = training_flop(0, layers * d * d, tokens)
    assert counted == pytest.approx(rule, rel=1e-12)


def test_arithmetic_or_memory_bounds_a_step():
    # 43 TFLOP/s of which 30 %, 204.8 GB/s
    assert compute_seconds(JETSON, 12.9e12) == pytest.approx(1.0)
    bound = compute_seconds(JETSON, 1.0, steps=10, model_bytes=2.048e9)
    assert bound == pytest.approx(10 * 2 * 0.01)
    both = compute_seconds(JETSON, 12.9e12, steps=10, model_bytes=2.048e9)
    assert both == pytest.approx(1.0)


def test_granularity_scales_as_it_must():
    compute, sent = 12.0, (4e6, 1e6)
    transfer = transfer_seconds(HOME, *sent, messages=0)
    assert transfer == pytest.approx(4e6 / 12.5e6 + 1e6 / 3.75e6)
    g = granularity(compute, transfer)
    # linear in local steps and in bandwidth, inverse in bytes
    assert granularity(3 * compute, transfer) == pytest.approx(3 * g)
    faster = HOME._replace(down=5 * HOME.down, up=5 * HOME.up)
    assert granularity(
        compute, transfer_seconds(faster, *sent, messages=0)
    ) == pytest.approx(5 * g)
    more = transfer_seconds(HOME, 2 * sent[0], 2 * sent[1], messages=0)
    assert granularity(compute, more) == pytest.approx(g / 2)
    # LoRA against all: the ratio of bytes times the ratio of times
    lora = granularity(0.6 * compute, transfer_seconds(HOME, 4e4, 1e4, messages=0))
    assert lora / g == pytest.approx(0.6 * 100)
    assert compute_share(g) == pytest.approx(compute / (compute + transfer))
    assert granularity(1.0, 0.0) == math.inf
    assert compute_share(math.inf) == 1.0
    waits = transfer_seconds(HOME, 0, 0, messages=3)
    assert waits == pytest.approx(6 * HOME.latency)


def test_tokens_for_a_joule_do_not_depend_on_how_long_one_looks():
    one = tokens_per_joule(1000, 4.0, 50.0)
    assert one == pytest.approx(1000 / 4 / 50)  # tokens a second for each watt
    assert tokens_per_joule(7000, 28.0, 50.0) == pytest.approx(one)


def test_memory_of_full_training_is_sixteen_bytes_a_parameter():
    assert memory_needed(0, 3e9) == 48e9
    # NF4 of 7e9 and LoRA of 4e6
    assert memory_needed(0.5 * 7e9, 4e6) == pytest.approx(3.5e9 + 6.4e7)


CHIPS = [
    Frequencies(compute=1.0, memory=0.0, static=2.0, dynamic=8.0),
    Frequencies(compute=2.0, memory=1.0, static=3.0, dynamic=10.0),
    Frequencies(compute=0.1, memory=5.0, static=1.0, dynamic=4.0, least=0.2),
    Frequencies(compute=3.0, memory=0.2, static=20.0, dynamic=1.0),
    Frequencies(compute=0.0, memory=2.0, static=1.0, dynamic=4.0),
    Frequencies(compute=1.0, memory=1.0, static=0.0, dynamic=4.0),
]


@pytest.mark.parametrize("chip", CHIPS)
def test_the_best_frequency_is_that_of_a_grid(chip):
    grid = np.linspace(chip.least, 1, 2001)
    joules = np.array([chip.joules(phi) for phi in grid])
    best = best_frequency(chip)
    assert best == pytest.approx(grid[joules.argmin()], abs=1e-3)
    assert (np.diff(joules, 2) > -1e-9).all()  # convex
    assert chip.seconds(1.0) == chip.compute + chip.memory
    assert chip.joules(1.0) == pytest.approx(
        (chip.static + chip.dynamic) * (chip.compute + chip.memory)
    )


@pytest.mark.parametrize("chip", CHIPS)
def test_a_shorter_deadline_never_takes_less(chip):
    seconds = np.linspace(chip.seconds(1.0), 3 * chip.seconds(chip.least), 8)
    found = [best_frequency(chip, deadline) for deadline in seconds]
    spent = [chip.joules(phi) for phi in found]
    assert (np.diff(spent) <= 1e-9).all()
    for deadline, phi in zip(seconds, found, strict=True):
        assert chip.seconds(phi) <= deadline + 1e-9
        slower = np.linspace(chip.least, 1, 801)
        able = [p for p in slower if chip.seconds(p) <= deadline]
        least = min(chip.joules(p) for p in able)
        assert chip.joules(phi) <= least + 1e-9
    with pytest.raises(ValueError, match="expected a deadline of at least"):
        best_frequency(chip, chip.seconds(1.0) * 0.99)


def test_the_closed_form_without_memory():
    chip = CHIPS[0]
    assert best_frequency(chip) == pytest.approx((2 / 16) ** (1 / 3))


def test_only_waiting_for_memory_takes_the_lowest_frequency():
    assert best_frequency(CHIPS[4]) == CHIPS[4].least
