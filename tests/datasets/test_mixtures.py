"""Mixing rates in closed form, counts by brute force, patterns and shots by hand."""

import collections
import itertools

import numpy as np
import pytest

from fedjax_fm.datasets import (
    Pattern,
    TextTask,
    flan_examples,
    flan_mixture,
    mix_counts,
    mixing_rates,
)

SIZES = [20, 400, 9000]
PATTERNS = [
    Pattern("Capital of {land}?", "{city}"),
    Pattern("{city} is the capital of", "{land}"),  # the inverse
    Pattern('Answer as {{"city": ...}}: {land}', "{city}"),
]


def task(n=6, name="capitals", patterns=PATTERNS):
    rows = [{"land": f"land {i}", "city": f"city {i}"} for i in range(n)]
    return TextTask(name, rows, patterns)


def test_rates_are_proportional_to_examples():
    np.testing.assert_allclose(mixing_rates(SIZES), np.array(SIZES) / sum(SIZES))


def test_a_cap_holds_large_tasks_down():
    found = mixing_rates(SIZES, maximum=400)
    np.testing.assert_allclose(found, [20 / 820, 400 / 820, 400 / 820])
    np.testing.assert_allclose(mixing_rates(SIZES, maximum=1), [1 / 3] * 3)
    np.testing.assert_array_equal(
        mixing_rates(SIZES, maximum=9000), mixing_rates(SIZES)
    )


def test_temperature_is_a_root_after_the_cap():
    for temperature in (1.0, 2.0, 3.5):
        roots = np.array([20, 400, 400]) ** (1 / temperature)
        np.testing.assert_allclose(
            mixing_rates(SIZES, maximum=400, temperature=temperature),
            roots / roots.sum(),
        )
    np.testing.assert_allclose(
        mixing_rates(SIZES, temperature=1e9), [1 / 3] * 3, rtol=1e-6
    )


def test_counts_are_the_nearest_of_all_that_add_up():
    """Largest remainders have the least distance from the exact shares, by brute force."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        rates = rng.dirichlet(np.ones(3))
        counts = mix_counts(rates, 7)
        splits = (c for c in itertools.product(range(8), repeat=3) if sum(c) == 7)
        best = min(np.abs(np.array(c) - 7 * rates).sum() for c in splits)
        assert counts.sum() == 7
        np.testing.assert_allclose(np.abs(counts - 7 * rates).sum(), best)


def test_every_row_comes_once_before_one_comes_twice():
    found = flan_examples(task(patterns=PATTERNS[:1]), 15, seed=3)
    seen = collections.Counter(example.targets for example in found)
    assert sorted(seen.values()) == [2, 2, 2, 3, 3, 3]
    first = [example.targets for example in found[:6]]
    assert len(set(first)) == 6


def test_patterns_are_drawn_and_filled():
    found = flan_examples(task(60))
    kinds = collections.Counter()
    for example in found:
        for number, pattern in enumerate(PATTERNS):
            rows = task(60).rows
            kinds[number] += any(
                pattern.of(row) == (example.inputs, example.targets) for row in rows
            )
        assert example.task == "capitals"
    assert sum(kinds.values()) == 60
    assert min(kinds.values()) > 8  # of twenty each, binomially
    assert any('{"city": ...}' in example.inputs for example in found)


def test_shots_are_other_rows_by_the_same_pattern():
    found = flan_examples(task(5), few_shot=1.0, shots=2)
    for example in found:
        *before, asked = example.inputs.split("\n\n")
        assert len(before) == 2
        rows = [*before, f"{asked}\n{example.targets}"]
        fitting = []
        for pattern in PATTERNS:
            texts = {"\n".join(pattern.of(row)) for row in task(5).rows}
            fitting.append(len(set(rows) & texts))
        assert max(fitting) == 3  # three different rows of one pattern
    half = flan_examples(task(400), few_shot=0.5)
    share = np.mean(["\n\n" in example.inputs for example in half])
    assert abs(share - 0.5) < 0.1  # four standard deviations


def test_a_mixture_has_the_counts_and_a_task_its_own_draws():
    tasks = [task(n, name) for n, name in ((5, "a"), (40, "b"), (300, "c"))]
    mixture = flan_mixture(tasks, 90, maximum=40, seed=1)
    assert {name: len(found) for name, found in mixture.items()} == {
        "a": 5, "b": 43, "c": 42,
    }  # fmt: skip
    alone = flan_mixture(tasks[:1], 5, seed=1)
    assert alone["a"] == mixture["a"]
    assert flan_mixture(tasks[:1], 5, seed=2)["a"] != mixture["a"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mixing_rates([]), "sizes=\\[\\]"),
        (lambda: mixing_rates([0, 3]), "sizes=0"),
        (lambda: mixing_rates([3], maximum=0), "maximum=0"),
        (lambda: mixing_rates([3], temperature=0.5), "temperature=0.5"),
        (lambda: mix_counts([0.5, 0.6], 3), "of sum one"),
        (lambda: mix_counts([1.0], -1), "examples=-1"),
        (lambda: flan_examples(task(), few_shot=1.5), "few_shot=1.5"),
        (lambda: flan_examples(task(2), few_shot=1.0, shots=2), "3 rows at least"),
        (lambda: flan_examples(task(patterns=[])), "a pattern at least"),
        (lambda: flan_examples(task(patterns=[Pattern("{x}", "y")])), "the field 'x'"),
        (lambda: flan_mixture([task(), task()], 3), "different names"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()
