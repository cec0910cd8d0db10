"""The share of evaluation: its arithmetic, and that it runs on a tiny Llama."""

import itertools

from fedjax_fm.experiments.bench import evaluation


def test_the_share_by_hand(monkeypatch):
    # The clock is read before and after each call: rounds take 4 s, looks 2 s.
    ticks = itertools.accumulate(itertools.cycle([1, 4, 1, 2]))
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: next(ticks))
    found = evaluation.share_of_evaluation(int, int, every=5, repeats=3)
    assert found == (4, 2, 2 / 22)


def test_a_tiny_llama():
    how = {"clients": 2, "steps": 1, "batch": 2, "length": 8, "rows": 4, "every": 2}
    found = evaluation.measure("tiny", repeats=1, **how)
    assert min(found) > 0
    assert found.share < 1
