"""Checks of values: a table of values by kind of check."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm import checks

NOT_NUMBERS = [True, np.True_, "0.1", None, [0.1], np.ones(2), 1j, jnp.array(True), len]


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match=r"expected 0 < fraction <= 1, got fraction="):
        checks.real("fraction", value, above=0, most=1)
    with pytest.raises(
        TypeError, match=r"expected a whole number rounds >= 1, got rounds="
    ):
        checks.whole("rounds", value, least=1)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, 0.0, -1, 1.5, np.float32("nan"), jnp.float32(2)],
)
def test_a_number_out_of_bounds_is_refused(value):
    with pytest.raises(ValueError, match=r"expected 0 < fraction <= 1, got fraction="):
        checks.real("fraction", value, above=0, most=1)


@pytest.mark.parametrize(
    "value",
    [1, 0.5, np.float32(0.5), np.int64(1), np.array(0.5), jnp.float32(0.5)],
    ids=repr,
)
def test_a_number_comes_back_as_it_was(value):
    assert checks.real("fraction", value, above=0, most=1) is value


def test_infinity_where_it_makes_sense_and_nan_never():
    assert checks.real("clip_norm", math.inf, above=0, infinite=True) == math.inf
    with pytest.raises(ValueError, match="clip_norm > 0, got clip_norm=nan"):
        checks.real("clip_norm", math.nan, above=0, infinite=True)
    with pytest.raises(ValueError, match="clip_norm > 0, got clip_norm=-inf"):
        checks.real("clip_norm", -math.inf, above=0, infinite=True)


@pytest.mark.parametrize("value", [1.0, np.float32(2), jnp.float32(2)])
def test_a_float_is_no_whole_number(value):
    with pytest.raises(TypeError, match="expected a whole number rounds >= 1"):
        checks.whole("rounds", value, least=1)


def test_whole_numbers():
    assert checks.whole("rounds", np.int32(3), least=1, most=3) == 3
    with pytest.raises(
        ValueError, match="expected a whole number 1 <= rounds <= 3, got rounds=4"
    ):
        checks.whole("rounds", 4, least=1, most=3)
    with pytest.raises(TypeError, match=r"expected a whole number seed, got seed=0\.5"):
        checks.whole("seed", 0.5)


def test_a_traced_value_has_its_dtype_checked():
    jax.make_jaxpr(lambda x: checks.real("rate", x, above=0))(jnp.float32(1))
    with pytest.raises(TypeError, match="expected rate > 0"):
        jax.make_jaxpr(lambda x: checks.real("rate", x, above=0))(jnp.array(True))


@pytest.mark.parametrize("value", [1, 0, "true", None], ids=repr)
def test_flags_are_true_or_false(value):
    with pytest.raises(
        TypeError,
        match="expected double_quantized True or False, got double_quantized=",
    ):
        checks.flag("double_quantized", value)
    assert checks.flag("double_quantized", np.True_) is True


def test_choices_are_listed():
    assert checks.choice("norm", "l2", ("l2", "max")) == "l2"
    assert checks.choice("turns", None, (None, 2)) is None
    for value in ("L2", None, 2):
        with pytest.raises(
            ValueError, match=r"expected norm to be one of 'l2', 'max', got norm="
        ):
            checks.choice("norm", value, ("l2", "max"))
    with pytest.raises(ValueError, match="got bits=True"):
        checks.choice("bits", True, (1, 2))
