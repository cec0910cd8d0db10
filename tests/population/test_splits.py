"""Splits keep groups, clients and rows on one side, and depend on nothing but their arguments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm.population.splits import (
    assert_disjoint,
    split_by_group,
    split_clients,
    split_within,
)

FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}


@st.composite
def grouped_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Groups of 1 to 6 rows in random order, and the stratum of each row (a property of
    its group).
    """
    sizes = draw(st.lists(st.integers(1, 6), min_size=40, max_size=80))
    group_of_row = np.repeat(np.arange(len(sizes)), sizes)
    group_of_row = np.random.default_rng(draw(st.integers(0, 1000))).permutation(
        group_of_row
    )
    return np.array([f"user/{k}" for k in group_of_row]), group_of_row % 3


@settings(max_examples=40, deadline=None)
@given(data=grouped_rows(), seed=st.integers(0, 1000), stratified=st.booleans())
def test_groups_stay_whole_and_shares_are_close(
    data, seed: int, stratified: bool
) -> None:
    groups, strata = data
    splits = split_by_group(groups, FRACTIONS, seed, strata if stratified else None)
    assert list(splits) == list(FRACTIONS)
    assert_disjoint(**splits)
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(
        range(len(groups))
    )
    sides = [set(groups[rows].tolist()) for rows in splits.values()]
    assert sum(len(side) for side in sides) == len(set(groups.tolist()))
    largest = np.unique(groups, return_counts=True)[1].max()
    for name, rows in splits.items():
        assert (np.diff(rows) > 0).all()
        assert len(rows) < FRACTIONS[name] * len(groups) + largest
        assert len(rows) > FRACTIONS[name] * len(groups) - 2 * largest


@settings(max_examples=40, deadline=None)
@given(data=grouped_rows(), seed=st.integers(0, 1000), order=st.integers(0, 1000))
def test_the_order_of_the_rows_does_not_matter(data, seed: int, order: int) -> None:
    groups, strata = data
    mixed = np.random.default_rng(order).permutation(len(groups))
    first = split_by_group(groups, FRACTIONS, seed, strata)
    second = split_by_group(groups[mixed], FRACTIONS, seed, strata[mixed])
    for name in FRACTIONS:
        np.testing.assert_array_equal(first[name], np.sort(mixed[second[name]]))


def test_the_seed_decides_who_goes_where() -> None:
    groups = np.array([f"g{k}" for k in range(100)])
    first, again, other = (
        split_by_group(groups, FRACTIONS, seed)["test"].tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_every_group_is_held_out_equally_often() -> None:
    """A rank by hash that favoured some names would show as a group that is never, or
    always, in test.
    """
    groups = np.array([f"g{k}" for k in range(20)])
    times = np.zeros(20)
    for seed in range(500):
        times[split_by_group(groups, {"train": 0.8, "test": 0.2}, seed)["test"]] += 1
    assert times.sum() == 500 * 4
    assert 60 < times.min() <= times.max() < 140  # mean 100, standard deviation 9


def test_shares_are_kept_within_strata() -> None:
    strata = np.repeat(["a", "b"], [900, 100])
    groups = np.array([f"{stratum}/{k}" for k, stratum in enumerate(strata)])
    splits = split_by_group(groups, {"train": 0.9, "test": 0.1}, 0, strata)
    assert np.sum(strata[splits["test"]] == "b") == 10


def test_many_small_strata_do_not_starve_a_small_split() -> None:
    """Rounding inside each stratum would give every group of every stratum to train."""
    groups = np.arange(300)
    splits = split_by_group(
        groups, {"train": 0.8, "validation": 0.1, "test": 0.1}, 0, strata=groups // 3
    )
    assert [len(rows) for rows in splits.values()] == [240, 30, 30]


def test_a_group_in_two_strata_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"group b in \['x', 'y'\]"):
        split_by_group(
            np.array(["a", "b", "b"]), {"train": 1.0}, 0, np.array(["x", "x", "y"])
        )


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.5, "test": 0.4}, "sum of 0.9"),
        ({"train": 1.0, "test": 0.0}, "positive fractions"),
        ({"train": 1.5, "test": -0.5}, "positive fractions"),
        ({"train": float("nan"), "test": 0.5}, "positive fractions"),
        ({}, "sum to 1"),
    ],
)
def test_bad_fractions_are_refused(fractions: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_by_group(np.arange(10), fractions, 0)


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"'test' with fraction 0\.1 stays empty: 2 groups"
    ):
        split_by_group(np.array(["a", "b"]), {"train": 0.9, "test": 0.1}, 0)
    with pytest.raises(ValueError, match="stays empty: 0 groups"):
        split_by_group(np.array([], dtype=str), {"train": 1.0}, 0)
    with pytest.raises(ValueError, match="equal length"):
        split_by_group(np.arange(3), {"train": 1.0}, 0, np.arange(4))


def test_split_clients_covers_all_clients() -> None:
    counts = {"train": 64, "validation": 8, "held_out": 8}
    splits = split_clients(80, counts, seed=3)
    assert {name: len(ids) for name, ids in splits.items()} == counts
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(80))
    assert all(
        ids.dtype == np.int64 and (np.diff(ids) > 0).all() for ids in splits.values()
    )
    again, other = split_clients(80, counts, seed=3), split_clients(80, counts, seed=4)
    assert (
        splits["held_out"].tolist()
        == again["held_out"].tolist()
        != other["held_out"].tolist()
    )


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train": 5, "test": 4}, "num_clients=10.*sum of 9"),
        ({"train": 10, "test": 0}, r"counts\['test'\]=0"),
    ],
)
def test_bad_counts_are_refused(counts: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_clients(10, counts, 0)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(0, 10_000), unique=True, max_size=50),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_split_within_gives_both_sides_rows(
    rows: list[int], fraction: float, seed: int
) -> None:
    train, test = split_within(rows, fraction, seed)
    assert_disjoint(train=train, test=test)
    assert sorted([*train.tolist(), *test.tolist()]) == sorted(rows)
    assert train.dtype == test.dtype == np.int64
    if len(rows) >= 2:
        assert min(len(train), len(test)) >= 1
        assert abs(len(train) - fraction * len(rows)) <= 1
    else:
        assert len(test) == 0
    reverse = split_within(np.array(rows[::-1], dtype=np.int64), fraction, seed)
    assert train.tolist() == reverse[0].tolist()


def test_split_within_depends_on_the_seed_and_reads_fraction_as_train() -> None:
    train, test = split_within(range(100), 0.8, seed=0)
    assert (len(train), len(test)) == (80, 20)
    assert train.tolist() != split_within(range(100), 0.8, seed=1)[0].tolist()


def test_split_within_refuses_bad_arguments() -> None:
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="0 < fraction < 1"):
            split_within([1, 2], fraction, 0)
    with pytest.raises(ValueError, match="row 5 2 times"):
        split_within([5, 1, 5], 0.5, 0)


def test_assert_disjoint_names_the_splits_and_a_row() -> None:
    assert_disjoint(
        train=np.array([0, 1]),
        validation=np.array([2]),
        test=np.array([], dtype=np.int64),
    )
    with pytest.raises(
        ValueError, match="'train' and 'test' share 1 rows, for example row 7"
    ):
        assert_disjoint(
            train=np.array([1, 7]), validation=np.array([2]), test=np.array([3, 7])
        )
