"""What is drawn of a study's curves."""

import pytest

from fedjax_fm.study import plots
from fedjax_fm.study.results import Results
from fedjax_fm.study.shape import LOSS


def results_of(rounds):
    curve = [
        {
            "round": number,
            "seconds": float(number),
            "uplink_bytes": 1000 * number,
            "downlink_bytes": 1000 * number,
            "eval_loss": 1.0 / number,
        }
        for number in rounds
    ]
    runs = [{"seed": seed, "curve": curve} for seed in range(2)]
    arms = {"one": {"label": "one", "runs": runs}}
    return Results({"scores": [vars(LOSS)], "arms": arms})


@pytest.mark.parametrize(("rounds", "marker"), [([5], "o"), ([5, 10], "None")])
def test_a_curve_of_one_point_is_a_mark(rounds, marker):
    figure = plots.curves(results_of(rounds))
    assert figure is not None
    for axes in figure.axes:
        (line,) = axes.lines
        assert line.get_marker() == marker
        assert len(line.get_xdata()) == len(rounds)
