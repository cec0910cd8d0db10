"""What no argument of a sampler or of a trace may be."""

import math

import numpy as np
import pytest
from bad_values import Row, cases, is_refused, unlisted

from fedjax_fm.population import samplers, traces

SIZES = {"n_clients": "whole", "cohort_size": "whole"}


def weighted(cohort_size: int):
    return samplers.weighted([1.0, 2.0, 3.0], cohort_size)


def available(n_clients: int, cohort_size: int):
    return samplers.available(n_clients, cohort_size, np.ones((2, 5), bool))


def markov(n_clients: int, n_rounds: int, seed: int):
    return traces.markov(n_clients, n_rounds, mean_on=2.0, mean_off=2.0, seed=seed)


ROWS = [
    Row(samplers.uniform, {"n_clients": 5, "cohort_size": 2}, SIZES),
    Row(
        samplers.poisson,
        {"n_clients": 5, "rate": 0.5},
        {"n_clients": "whole", "rate": "real", "capacity": "whole?"},
    ),
    Row(
        samplers.cyclic, {"n_clients": 5, "cohort_size": 2}, SIZES | {"shuffle": "flag"}
    ),
    Row(
        samplers.spaced,
        {"n_clients": 5, "cohort_size": 2, "min_separation": 2},
        SIZES | {"min_separation": "whole", "max_participations": "whole?"},
    ),
    Row(weighted, {"cohort_size": 2}, {"cohort_size": "whole"}),
    Row(available, {"n_clients": 5, "cohort_size": 2}, SIZES),
    Row(
        traces.diurnal,
        {"n_clients": 5, "n_rounds": 4},
        {
            "n_clients": "whole",
            "n_rounds": "whole",
            "period": "real",
            "spread": "real",
            "seed": "whole",
        },
    ),
    Row(
        markov,
        {"n_clients": 5, "n_rounds": 4, "seed": 0},
        {"n_clients": "whole", "n_rounds": "whole", "seed": "whole"},
    ),
]


@pytest.mark.parametrize(("row", "parameter", "value"), cases(ROWS))
def test_no_hyper_parameter_is_a_value_of_another_kind(row, parameter, value):
    is_refused(row, parameter, value)


def test_every_hyper_parameter_is_in_the_table():
    factories = [getattr(samplers, name) for name in samplers.__all__] + [
        traces.diurnal,
        traces.markov,
    ]
    missing = {entry.split(":")[0] for entry in unlisted(factories, ROWS)}
    of_wrapped = {f"markov({name}" for name in ("n_clients", "n_rounds", "seed")}
    of_wrapped |= {
        "weighted(cohort_size",
        "available(n_clients",
        "available(cohort_size",
    }
    assert missing == of_wrapped


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, True, "0.1", None, 0.1j]
)
@pytest.mark.parametrize("parameter", ["mean", "amplitude", "mean_on", "mean_off"])
def test_a_number_or_one_a_client(parameter, value):
    others = {
        "mean": {"amplitude": 0.1},
        "amplitude": {},
        "mean_on": {"mean_off": 2.0},
        "mean_off": {"mean_on": 2.0},
    }
    make = traces.markov if parameter.startswith("mean_") else traces.diurnal
    with pytest.raises((TypeError, ValueError)) as raised:
        make(3, 4, **others[parameter], **{parameter: value})
    assert f"{parameter}={value!r}" in str(raised.value)
    with pytest.raises(
        (TypeError, ValueError), match=rf"{parameter}(\[0\]=| as one number or \[3\])"
    ):
        make(3, 4, **others[parameter], **{parameter: [value] * 3})


@pytest.mark.parametrize(
    "weights",
    [["1", "2"], [b"1", b"2"], [1j, 2], [None, 1.0], [math.nan, 1], "12", None, 3.0],
)
def test_weights_that_are_no_numbers(weights):
    with pytest.raises(ValueError, match="weights"):
        samplers.weighted(weights, 1)


@pytest.mark.parametrize(
    "ids", [[True, False], ["1"], [1.0, 2.0], [math.nan], [None], "12", 3, [[1, 2]]]
)
def test_ids_that_are_no_integers(ids):
    with pytest.raises(ValueError, match="ids"):
        samplers.fixed(ids)


def test_the_rate_that_is_accounted_for_is_the_one_that_is_drawn():
    law = samplers.poisson(5, np.float32(0.1)).law
    assert type(law.rate) is float
    assert law.rate == float(np.float32(0.1))
