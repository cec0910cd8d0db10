"""What each partitioner promises beyond the contracts all of them keep."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm.population.partitioners import (
    DirichletPartitioner,
    GroupedNaturalIdPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    PathologicalPartitioner,
    ShardPartitioner,
    SizePartitioner,
)


def lists(clients: list[np.ndarray]) -> list[list[int]]:
    return [rows.tolist() for rows in clients]


def label_skew(clients: list[np.ndarray], labels: np.ndarray) -> float:
    """Mean over clients of the total variation distance to the label shares of the whole table."""
    n_classes = labels.max() + 1
    overall = np.bincount(labels, minlength=n_classes) / len(labels)
    shares = [
        np.bincount(labels[rows], minlength=n_classes) / len(rows) for rows in clients
    ]
    return float(np.mean([0.5 * np.abs(share - overall).sum() for share in shares]))


def test_dirichlet_skew_falls_as_alpha_grows() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 8000)
    skews = []
    for alpha in (0.05, 0.5, 5.0, 500.0, 1e6):
        runs = [
            DirichletPartitioner(10, "label", alpha, min_partition_size=1, seed=seed)
            for seed in range(8)
        ]
        skews.append(
            np.mean(
                [label_skew(run.partition({"label": labels}), labels) for run in runs]
            )
        )
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.5  # a client holds little but one or two of four classes
    assert skews[-1] < 0.01  # every client has the shares of the population


def test_dirichlet_with_small_alpha_gives_a_class_to_one_client() -> None:
    labels, largest = np.repeat(np.arange(4), 500), []
    for seed in range(20):
        clients = DirichletPartitioner(6, "label", 0.001, 0, seed=seed).partition(
            {"label": labels}
        )
        largest += [
            max(np.sum(labels[rows] == k) for rows in clients) for k in range(4)
        ]
    assert np.mean(largest) > 0.95 * 500


def test_dirichlet_shares_have_the_mean_of_alpha() -> None:
    """E[share of client k] = alpha_k / sum(alpha), which mixing up classes and clients
    would break.
    """
    alpha, labels = np.array([1.0, 2.0, 5.0]), np.zeros(1000, dtype=int)
    sizes = [
        [
            len(rows)
            for rows in DirichletPartitioner(3, "y", alpha, 0, seed=seed).partition(
                {"y": labels}
            )
        ]
        for seed in range(400)
    ]
    np.testing.assert_allclose(
        np.mean(sizes, axis=0) / 1000, alpha / alpha.sum(), atol=0.03
    )


def test_dirichlet_keeps_the_minimum_or_says_it_cannot() -> None:
    columns = {"label": np.arange(120) % 3}
    clients = DirichletPartitioner(6, "label", 1.0, min_partition_size=8).partition(
        columns
    )
    assert min(len(rows) for rows in clients) >= 8
    with pytest.raises(
        ValueError,
        match=r"min_partition_size=19.*alpha=0\.1.*11 draws of 120 rows.*raise alpha",
    ):
        DirichletPartitioner(6, "label", 0.1, min_partition_size=19).partition(columns)
    with pytest.raises(
        ValueError, match=r"min_partition_size=21.*120 rows are not enough"
    ):
        DirichletPartitioner(6, "label", 100.0, min_partition_size=21).partition(
            columns
        )


def test_self_balancing_gives_a_full_client_nothing_more() -> None:
    labels = np.repeat(np.arange(10), 100)
    for seed in range(5):
        partitioner = DirichletPartitioner(
            5,
            "label",
            0.3,
            min_partition_size=0,
            self_balancing=True,
            shuffle=False,
            seed=seed,
        )
        for rows in partitioner.partition({"label": labels}):
            # Unshuffled, a client's rows stand in the order in which the classes were dealt.
            before_last_class = (
                np.sum(labels[rows] != labels[rows][-1]) if len(rows) else 0
            )
            assert before_last_class <= 200


def test_iid_sizes_differ_by_at_most_one_and_rows_are_mixed() -> None:
    columns = {"label": np.sort(np.arange(1003) % 2)}
    clients = IidPartitioner(10).partition(columns)
    assert sorted({len(rows) for rows in clients}) == [100, 101]
    assert all(0.3 < columns["label"][rows].mean() < 0.7 for rows in clients)
    assert lists(IidPartitioner(2, shuffle=False).partition({"a": np.zeros(3)})) == [
        [0, 1],
        [2],
    ]


def test_natural_clients_stand_in_order_of_first_appearance() -> None:
    columns = {"role": np.array(["lear", "fool", "lear", "edgar"], dtype=object)}
    partitioner = NaturalIdPartitioner("role")
    assert partitioner.client_names(columns) == ["lear", "fool", "edgar"]
    assert lists(partitioner.partition(columns)) == [[0, 2], [1], [3]]


@pytest.mark.parametrize(
    ("mode", "ids"),
    [
        ("allow-smaller", [{3, 1}, {2, 0}, {4}]),
        ("allow-bigger", [{3, 1, 2}, {0, 4}]),
        ("drop-reminder", [{3, 1}, {2, 0}]),
    ],
)
def test_grouped_modes_treat_a_remainder_of_ids(mode, ids: list[set[int]]) -> None:
    columns = {"user": np.array([3, 1, 3, 2, 0, 1, 4])}
    clients = GroupedNaturalIdPartitioner("user", 2, mode).partition(columns)
    assert [set(columns["user"][rows].tolist()) for rows in clients] == ids


def test_grouped_errors_name_the_numbers() -> None:
    columns = {"user": np.arange(5)}
    with pytest.raises(ValueError, match=r"group_size=2 for 5 ids \(remainder 1\)"):
        GroupedNaturalIdPartitioner("user", 2, "strict").partition(columns)
    assert len(GroupedNaturalIdPartitioner("user", 5, "strict").partition(columns)) == 1
    assert len(GroupedNaturalIdPartitioner("user", 9).partition(columns)) == 1
    with pytest.raises(ValueError, match="group_size=9 for 5 ids"):
        GroupedNaturalIdPartitioner("user", 9, "allow-bigger").partition(columns)


@pytest.mark.parametrize("mode", ["random", "deterministic", "first-deterministic"])
@settings(max_examples=20, deadline=None)
@given(n_wanted=st.integers(1, 4), seed=st.integers(0, 100))
def test_pathological_clients_have_exactly_the_classes_asked_for(
    mode, n_wanted: int, seed: int
) -> None:
    labels = np.arange(400) % 4
    partitioner = PathologicalPartitioner(8, "label", n_wanted, mode, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        clients = partitioner.partition({"label": labels})
    assert [len(set(labels[rows].tolist())) for rows in clients] == [n_wanted] * 8
    assert len(np.unique(np.concatenate(clients))) == sum(len(rows) for rows in clients)


def test_pathological_warns_of_dropped_classes_and_refuses_the_impossible() -> None:
    with pytest.warns(
        UserWarning, match=r"classes \[2, 3\]; their 50 rows are dropped"
    ):
        clients = PathologicalPartitioner(2, "label", 1, "deterministic").partition(
            {"label": np.arange(100) % 4}
        )
    assert sum(len(rows) for rows in clients) == 50
    with pytest.raises(ValueError, match="num_classes_per_partition=3 for 2 classes"):
        PathologicalPartitioner(2, "label", 3).partition({"label": np.array([0, 1, 1])})
    with pytest.raises(ValueError, match="assigned to 3 clients but has 1 rows"):
        PathologicalPartitioner(3, "label", 2).partition(
            {"label": np.array([0, 1, 1, 1])}
        )


def test_shards_of_the_fedavg_paper_give_two_classes_each() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 600))
    clients = ShardPartitioner(
        100, "label", num_shards_per_partition=2, shard_size=30
    ).partition({"label": labels})
    assert [len(rows) for rows in clients] == [60] * 100
    assert max(len(set(labels[rows].tolist())) for rows in clients) == 2


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        (
            {"num_shards_per_partition": 2, "shard_size": 5},
            [10, 10, 10],
        ),  # 10 whole shards, 6 dealt
        ({"num_shards_per_partition": 2}, [16, 16, 16]),  # 50 // 6 = 8 rows a shard
        ({"shard_size": 7}, [21, 14, 14]),  # 7 whole shards, one row dropped
    ],
)
def test_shard_sizes(arguments: dict[str, int], sizes: list[int]) -> None:
    clients = ShardPartitioner(3, "label", **arguments).partition(
        {"label": np.arange(50)}
    )
    assert [len(rows) for rows in clients] == sizes
    assert len(np.unique(np.concatenate(clients))) == sum(sizes)


def test_shard_errors_name_the_numbers() -> None:
    columns = {"label": np.arange(50)}
    with pytest.raises(ValueError, match=r"at least 60 rows.*got 50"):
        ShardPartitioner(3, "label", 4, 5).partition(columns)
    with pytest.raises(ValueError, match=r"at least 90 rows.*got 50"):
        ShardPartitioner(3, "label", 30).partition(columns)
    with pytest.raises(ValueError, match="got 2 shards of shard_size=20"):
        ShardPartitioner(3, "label", shard_size=20).partition(columns)
    with pytest.raises(ValueError, match="None for both"):
        ShardPartitioner(3, "label")


def test_sizes_are_contiguous_and_a_remainder_warns() -> None:
    columns = {"label": np.zeros(6)}
    assert lists(SizePartitioner([1, 3, 2]).partition(columns)) == [
        [0],
        [1, 2, 3],
        [4, 5],
    ]
    with pytest.warns(UserWarning, match="add up to 4 of 6 rows; 2 are dropped"):
        assert lists(SizePartitioner([1, 3]).partition(columns)) == [[0], [1, 2, 3]]
    with pytest.raises(ValueError, match="at most 6 rows, got a sum of 7"):
        SizePartitioner([3, 4]).partition(columns)
