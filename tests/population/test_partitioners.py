"""Contracts all partitioners keep, goldens of the reference implementation, and errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm.population import (
    ExponentialPartitioner,
    LinearPartitioner,
    SquarePartitioner,
)
from fedjax_fm.population.partitioners import (
    DirichletPartitioner,
    GroupedNaturalIdPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    PathologicalPartitioner,
    ShardPartitioner,
    SizePartitioner,
)

# Factories seed -> partitioner; the seedless ones ignore it. All fit a table of 60 rows
# or more, 3 labels.
SEEDED = {
    "iid": lambda seed: IidPartitioner(5, seed=seed),
    "dirichlet": lambda seed: DirichletPartitioner(
        5, "label", 1.0, min_partition_size=1, seed=seed
    ),
    "dirichlet_balanced": lambda seed: DirichletPartitioner(
        5, "label", 5.0, min_partition_size=1, self_balancing=True, seed=seed
    ),
    "dirichlet_alpha_per_client": lambda seed: DirichletPartitioner(
        3, "label", [0.5, 1.0, 5.0], min_partition_size=0, seed=seed
    ),
    "pathological": lambda seed: PathologicalPartitioner(
        5, "label", 2, "first-deterministic", seed=seed
    ),
    "shard": lambda seed: ShardPartitioner(
        4, "label", shard_size=7, keep_incomplete_shard=True, seed=seed
    ),
}
SEEDLESS = {
    "natural": lambda seed: NaturalIdPartitioner("user"),
    "grouped_smaller": lambda seed: GroupedNaturalIdPartitioner("user", 2),
    "grouped_bigger": lambda seed: GroupedNaturalIdPartitioner(
        "user", 2, "allow-bigger"
    ),
    "grouped_sorted": lambda seed: GroupedNaturalIdPartitioner(
        "user", 2, sort_unique_ids=True
    ),
    "iid_unshuffled": lambda seed: IidPartitioner(5, shuffle=False),
}
ALL = SEEDED | SEEDLESS


def make_columns(n_rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(n_rows) % 3)
    user = rng.choice(["ann", "bob", "cid", "dot", "eve"], size=n_rows)
    return {"label": label, "user": user, "tokens": np.zeros((n_rows, 4))}


def lists(clients: list[np.ndarray]) -> list[list[int]]:
    return [rows.tolist() for rows in clients]


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=15, deadline=None)
@given(n_rows=st.integers(60, 200), seed=st.integers(0, 1000))
def test_clients_are_disjoint_cover_all_rows_and_repeat(
    name: str, n_rows: int, seed: int
) -> None:
    columns = make_columns(n_rows, seed)
    clients = ALL[name](seed).partition(columns)
    assert all(rows.dtype == np.int64 and rows.ndim == 1 for rows in clients)
    assert sorted(np.concatenate(clients).tolist()) == list(range(n_rows))
    assert lists(clients) == lists(ALL[name](seed).partition(columns))


@pytest.mark.parametrize("name", ALL)
def test_one_partitioner_called_twice_gives_the_same(name: str) -> None:
    partitioner, columns = ALL[name](3), make_columns(90, 0)
    assert lists(partitioner.partition(columns)) == lists(
        partitioner.partition(columns)
    )


@pytest.mark.parametrize("name", SEEDED)
def test_another_seed_gives_another_partition(name: str) -> None:
    columns = make_columns(120, 0)
    assert lists(SEEDED[name](1).partition(columns)) != lists(
        SEEDED[name](2).partition(columns)
    )


@pytest.mark.parametrize("name", ALL)
def test_the_columns_are_left_as_they_were(name: str) -> None:
    columns = make_columns(90, 0)
    before = {key: column.copy() for key, column in columns.items()}
    ALL[name](0).partition(columns)
    for key, column in columns.items():
        np.testing.assert_array_equal(column, before[key])


# What flwr-datasets 0.6.1 itself returns for this column and these arguments.
GOLDEN_LABELS = np.array([0, 1, 2, 0, 1, 1, 2, 0, 0, 1, 2, 2, 0, 1, 0, 2, 1, 0, 1, 1])
GOLDENS = [
    (
        DirichletPartitioner(3, "label", 0.5, min_partition_size=2),
        [[1, 2, 0, 16, 5, 3, 13, 4, 9], [14, 12, 8, 6, 7], [18, 11, 15, 10, 19, 17]],
    ),
    (
        DirichletPartitioner(
            3,
            "label",
            [0.1, 1.0, 10.0],
            min_partition_size=1,
            self_balancing=True,
            shuffle=False,
            seed=1,
        ),
        [[2, 6, 10, 11, 15], [1, 4, 5, 9, 13, 16, 18, 19], [0, 3, 7, 8, 12, 14, 17]],
    ),
    (
        PathologicalPartitioner(3, "label", 2),
        [[0, 7, 2, 3, 6, 10], [5, 19, 1, 16, 9, 12, 13, 18, 4, 8], [14, 15, 11, 17]],
    ),
    (
        PathologicalPartitioner(
            4, "label", 2, "first-deterministic", shuffle=False, seed=3
        ),
        [[0, 3, 2, 6], [7, 8, 1, 4, 5, 9, 13, 16, 18, 19], [12, 14, 10, 11], [17, 15]],
    ),
    (
        ShardPartitioner(3, "label", num_shards_per_partition=2),
        [[13, 1, 5, 9, 17, 4], [19, 18, 10, 16, 2, 6], [3, 8, 14, 0, 7, 12]],
    ),
    (
        ShardPartitioner(
            3, "label", shard_size=3, keep_incomplete_shard=True, shuffle=False, seed=5
        ),
        [[8, 12, 14, 16, 18, 19, 17, 1, 4], [5, 9, 13, 11, 15], [2, 6, 10, 0, 3, 7]],
    ),
    (
        GroupedNaturalIdPartitioner("label", 2),
        [[0, 3, 7, 8, 12, 14, 17, 1, 4, 5, 9, 13, 16, 18, 19], [2, 6, 10, 11, 15]],
    ),
]


@pytest.mark.parametrize(
    ("partitioner", "expected"), GOLDENS, ids=lambda value: type(value).__name__
)
def test_rows_equal_those_of_flwr_datasets(
    partitioner, expected: list[list[int]]
) -> None:
    assert lists(partitioner.partition({"label": GOLDEN_LABELS})) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IidPartitioner(0), "num_partitions=0"),
        (lambda: IidPartitioner(2, seed=-1), "seed=-1"),
        (lambda: DirichletPartitioner(0, "y", 1.0), "num_partitions=0"),
        (lambda: DirichletPartitioner(2, "y", 0.0), r"0 < alpha.*alpha=0\.0"),
        (lambda: DirichletPartitioner(2, "y", float("inf")), "alpha=inf"),
        (lambda: DirichletPartitioner(2, "y", float("nan")), "alpha=nan"),
        (lambda: DirichletPartitioner(2, "y", [1.0, -1.0]), r"alpha=\[1.0, -1.0\]"),
        (
            lambda: DirichletPartitioner(2, "y", [1.0] * 3),
            r"num_partitions=2.*shape \(3,\)",
        ),
        (
            lambda: DirichletPartitioner(2, "y", 1.0, min_partition_size=-1),
            "min_partition_size=-1",
        ),
        (lambda: GroupedNaturalIdPartitioner("y", 0), "group_size=0"),
        (
            lambda: GroupedNaturalIdPartitioner("y", 1, "drop-remainder"),
            "mode='drop-remainder'",
        ),
        (lambda: PathologicalPartitioner(2, "y", 0), "num_classes_per_partition=0"),
        (
            lambda: PathologicalPartitioner(2, "y", 1, "rand"),
            "class_assignment_mode='rand'",
        ),
        (lambda: ShardPartitioner(2, "y", shard_size=0), "shard_size=0"),
        (lambda: SizePartitioner([]), r"partition_sizes=\[\]"),
        (lambda: SizePartitioner([3, 0]), r"partition_sizes\[1\]=0"),
    ],
)
def test_bad_parameters_fail_when_the_partitioner_is_made(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("value", [2.0, "2", True, None])
def test_a_number_of_partitions_that_is_no_integer_is_a_type_error(value) -> None:
    with pytest.raises(TypeError, match="num_partitions"):
        IidPartitioner(value)


LABEL_RULES = [
    DirichletPartitioner(4, "label", 1.0, min_partition_size=0),
    PathologicalPartitioner(4, "label", 1),
    ShardPartitioner(4, "label", shard_size=1),
]


@pytest.mark.parametrize(
    "rule",
    [*LABEL_RULES, NaturalIdPartitioner("label")],
    ids=lambda r: type(r).__name__,
)
def test_bad_columns_are_named(rule) -> None:
    with pytest.raises(
        KeyError, match=r"'label'.*\['labels', 'text'\].*did you mean 'labels'"
    ):
        rule.partition({"labels": np.zeros(9), "text": np.zeros(9)})
    with pytest.raises(ValueError, match=r"lengths \{'label': 9, 'text': 8\}"):
        rule.partition({"label": np.zeros(9), "text": np.zeros(8)})
    with pytest.raises(ValueError, match="holds 1 NaN"):
        rule.partition({"label": np.array([0.0, 1.0, np.nan, 1.0])})
    with pytest.raises(ValueError, match=r"mixes types \['int', 'str'\]"):
        rule.partition({"label": np.array([0, "a", 1, "b"], dtype=object)})
    with pytest.raises(ValueError, match=r"one-dimensional.*shape \(4, 2\)"):
        rule.partition({"label": np.zeros((4, 2))})


@pytest.mark.parametrize(
    "rule", [*LABEL_RULES, IidPartitioner(4)], ids=lambda r: type(r).__name__
)
def test_more_clients_than_rows_is_an_error(rule) -> None:
    with pytest.raises(ValueError, match="num_partitions=4 for 3 rows"):
        rule.partition({"label": np.array([0, 1, 0])})


@pytest.mark.parametrize(
    "kind", [LinearPartitioner, SquarePartitioner, ExponentialPartitioner]
)
def test_more_clients_than_rows_are_refused_before_memory_is_asked_for(kind):
    with pytest.raises(ValueError, match=rf"num_partitions={2**40} .* got 60 rows"):
        kind(2**40).partition({"label": np.zeros(60)})
