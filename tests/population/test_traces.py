"""Traces of availability have the shares and the memory that they were asked for."""

import numpy as np
import pytest

from fedjax_fm.population import traces


def test_diurnal_follows_its_wave():
    """One time zone: the share of all clients in round t is the probability itself."""
    n = 40_000
    trace = traces.diurnal(n, 24, mean=0.4, amplitude=0.3, spread=0.0)
    expected = 0.4 + 0.3 * np.sin(2 * np.pi * np.arange(24) / 24)
    assert trace.shape == (24, n)
    assert trace.dtype == np.bool_
    np.testing.assert_allclose(trace.mean(axis=1), expected, atol=5 * 0.5 / np.sqrt(n))


def test_diurnal_clients_over_the_globe_have_their_own_windows():
    trace = traces.diurnal(2000, 240, period=24)
    np.testing.assert_allclose(trace.mean(axis=1), 0.5, atol=5 * 0.5 / np.sqrt(2000))
    by_hour = trace.reshape(10, 24, 2000).mean(axis=0)
    shifted = np.roll(by_hour, 12, axis=0)
    for k in range(5):
        assert (
            np.corrcoef(by_hour[:, k], shifted[:, k])[0, 1] < -0.5
        )  # half a day later it is the other way round


def test_diurnal_shares_can_differ_by_client():
    means = np.linspace(0.1, 0.9, 9)
    trace = traces.diurnal(9, 24 * 400, mean=means, amplitude=0.1)
    np.testing.assert_allclose(
        trace.mean(axis=0), means, atol=5 * 0.5 / np.sqrt(24 * 400)
    )


def test_amplitude_zero_is_a_coin_and_the_extremes_are_certain():
    assert traces.diurnal(5, 7, mean=1.0, amplitude=0.0).all()
    assert not traces.diurnal(5, 7, mean=0.0, amplitude=0.0).any()


def stays(column, value):
    """Lengths of the runs of `value`, without those cut by an end of the trace."""
    edges = np.flatnonzero(np.diff(column.astype(int))) + 1
    runs = np.split(column, edges)[1:-1]
    return [len(run) for run in runs if run[0] == value]


def test_markov_stays_as_long_as_asked():
    on, off = 3.0, 8.0
    trace = traces.markov(400, 2000, mean_on=on, mean_off=off)
    for value, mean in ((True, on), (False, off)):
        lengths = np.concatenate([stays(trace[:, k], value) for k in range(400)])
        assert lengths.mean() == pytest.approx(mean, rel=0.03)
        assert np.mean(lengths == 1) == pytest.approx(1 / mean, rel=0.03)  # geometric
        assert lengths.var() == pytest.approx(mean * (mean - 1), rel=0.1)


def test_markov_is_stationary_from_the_first_round():
    trace = traces.markov(50_000, 4, mean_on=2.0, mean_off=6.0)
    np.testing.assert_allclose(trace.mean(axis=1), 0.25, atol=5 * 0.5 / np.sqrt(50_000))


def test_markov_clients_can_differ_and_a_chain_can_forget():
    shares = traces.markov(
        3, 40_000, mean_on=[1.0, 4.0, 9.0], mean_off=[1.0, 4.0, 1.0]
    ).mean(axis=0)
    np.testing.assert_allclose(shares, [0.5, 0.5, 0.9], atol=0.03)
    coin = traces.markov(1, 40_000, mean_on=2.0, mean_off=2.0)[:, 0].astype(float)
    assert abs(np.corrcoef(coin[1:], coin[:-1])[0, 1]) < 0.03
    alternating = traces.markov(1, 10, mean_on=1.0, mean_off=1.0)[:, 0]
    assert (alternating[1:] != alternating[:-1]).all()


@pytest.mark.parametrize(
    "make",
    [traces.diurnal, lambda *a, **k: traces.markov(*a, mean_on=2.0, mean_off=2.0, **k)],
)
def test_the_seed_decides(make):
    np.testing.assert_array_equal(make(20, 30, seed=1), make(20, 30, seed=1))
    assert (make(20, 30, seed=1) != make(20, 30, seed=2)).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: traces.diurnal(0, 5), "n_clients=0"),
        (lambda: traces.diurnal(5, 0), "n_rounds=0"),
        (lambda: traces.diurnal(5, 5, seed=-1), "seed=-1"),
        (
            lambda: traces.diurnal(5, 5, mean=0.3),
            r"mean=0\.3 and amplitude=0\.5.*lower",
        ),
        (lambda: traces.diurnal(5, 5, mean=float("nan")), "mean=nan"),
        (
            lambda: traces.diurnal(5, 5, mean=[0.5] * 4),
            r"mean as one number or \[5\].*\(4,\)",
        ),
        (lambda: traces.diurnal(5, 5, period=0.0), r"period=0\.0"),
        (lambda: traces.diurnal(5, 5, spread=1.5), r"spread=1\.5"),
        (
            lambda: traces.markov(5, 5, mean_on=0.5, mean_off=2.0),
            r"mean_on >= 1.*mean_on=0\.5",
        ),
        (
            lambda: traces.markov(5, 5, mean_on=2.0, mean_off=float("inf")),
            "mean_off=inf",
        ),
        (lambda: traces.markov(5, 5, mean_on="long", mean_off=2.0), "mean_on.*long"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
