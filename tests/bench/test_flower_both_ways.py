"""The study that runs through Flower and by Simulator: its table, and its runs without Flower."""

import importlib.util

import numpy as np
import pytest
from scipy import stats

from fedjax_fm.experiments.bench import flower_both_ways as bench


def rows(accuracies):
    for seed, pair in enumerate(accuracies):
        for way, accuracy in zip(bench.WAYS, pair, strict=True):
            own = {"down": 2e6, "up": 1e6, "seconds": 3.0, "round_seconds": 0.01}
            yield {
                "method": "fedavg",
                "seed": seed,
                "way": way,
                "accuracy": accuracy,
                **own,
            }


def test_the_table_by_hand():
    pairs = [(0.8, 0.8), (0.9, 0.88), (0.7, 0.71)]
    found = bench.table(list(rows(pairs))).splitlines()
    half = {
        way: 100 * stats.t.ppf(0.975, 2) * stats.sem(column)
        for way, column in zip(bench.WAYS, np.transpose(pairs), strict=True)
    }
    assert found[2].startswith(
        f"| fedavg | flower | 80.00 ± {half['flower']:.2f} | 2.000 ± 0.000 |"
    )
    assert f"79.67 ± {half['simulator']:.2f}" in found[3]
    apart = np.subtract(*np.transpose(pairs))
    low = 100 * stats.t.ppf(0.975, 2) * stats.sem(apart)
    assert found[4].startswith(
        f"| fedavg | paired difference | {100 * apart.mean():.2f} ± {low:.2f} |"
    )


class Message:
    def __init__(self, kind):
        self.metadata = type("Metadata", (), {"message_type": kind})


def test_only_the_messages_of_rounds_are_counted(monkeypatch):
    monkeypatch.setattr(bench, "_bytes", lambda message: 10)
    grid = type(
        "Grid", (), {"send_and_receive": lambda self, messages, timeout: messages[1:]}
    )
    counted = bench.Counted(grid())
    counted.send_and_receive([Message("query")] * 3, timeout=1.0)
    assert (counted.down, counted.up, counted.times) == (0, 0, [])
    counted.send_and_receive([Message("train")] * 3, timeout=1.0)
    assert (counted.down, counted.up, len(counted.times)) == (30, 20, 1)


@pytest.mark.slow
def test_both_ways_give_one_model():
    for name in ("flwr", "ray", "sklearn"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    through, by = bench.measured(["fedavg"], [0], rounds=2, cpus=1)
    assert through["accuracy"] == pytest.approx(by["accuracy"], abs=1 / bench.TEST)
    assert by["down"] < through["down"] < 1.2 * by["down"]
    assert by["up"] < through["up"] < 1.2 * by["up"]
