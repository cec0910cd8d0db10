"""Predictions of a round's seconds against two processes over a throttled line."""

import time

import pytest

from fedjax_fm.experiments.bench.link import _compared, measured
from fedjax_fm.experiments.bench.link_side import Setup
from fedjax_fm.experiments.bench.namespaces import PAYLOAD_SHARE, why_not

WHY = why_not()


@pytest.mark.skipif(bool(WHY), reason=WHY)
def test_rounds_take_about_what_was_predicted():
    """The line alone takes 3.4 s a round: half of it wrong in rate or bytes would be seen
    even where other programs slow the computation down.
    """
    setup = Setup(rounds=2, width=512, steps=2, batch=16)
    started = time.perf_counter()
    *rows, summary = measured(setup, down=10.0, up=10.0)
    assert len(rows) == 2
    size = 2 * 512 * 512 * 4
    for row in rows:
        assert row["down"] == row["up"] == size
        assert row["seconds"] > 2 * size / (10e6 / 8)  # no faster than the line
    assert summary["predicted"] > 2 * size / (10e6 / 8 * PAYLOAD_SHARE)
    assert abs(summary["median_error_percent"]) < 25
    assert time.perf_counter() - started < 300


def test_the_prediction_by_hand():
    known = {
        "seconds_per_step": 0.1,
        "round_trip": 0.02,
        "billed_down": 1_000_000,
        "billed_up": 500_000,
    }
    setup = Setup(rounds=1, width=1, steps=5, batch=1)
    rows = [{"seconds": 2.0, "down": 1_000_000, "up": 500_000}]
    row, summary = _compared(known, rows, setup, (8.0, 4.0))
    goodput = 1e6 * PAYLOAD_SHARE
    expected = 0.5 + 0.02 + 1e6 / goodput + 5e5 / (goodput / 2)
    assert row["predicted"] == pytest.approx(expected)
    assert row["error_percent"] == pytest.approx(100 * (expected / 2 - 1))
    assert summary["granularity"] == pytest.approx(0.5 / (expected - 0.5))
