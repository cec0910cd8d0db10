"""Partitioners that deal by size, by mixtures of labels, by a measured property or by columns.

The rows beside `GOLDENS` and `VERTICAL` are what flwr-datasets 0.6.1 itself returns for
these columns and arguments."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm.population import (
    ContinuousPartitioner,
    DirichletPartitioner,
    DistributionPartitioner,
    ExponentialPartitioner,
    GroupedNaturalIdPartitioner,
    IdToSizeFncPartitioner,
    IidPartitioner,
    InnerDirichletPartitioner,
    LinearPartitioner,
    NaturalIdPartitioner,
    PathologicalPartitioner,
    ShardPartitioner,
    SizePartitioner,
    SquarePartitioner,
    VerticalEvenPartitioner,
    VerticalSizePartitioner,
)

LABELS = [0, 1, 2, 0, 1, 1, 2, 0, 0, 1, 2, 2, 0, 1, 0, 2, 1, 0, 1, 1]
LONG = [
    2,
    1,
    2,
    2,
    1,
    2,
    2,
    0,
    0,
    0,
    0,
    2,
    2,
    0,
    1,
    2,
    0,
    2,
    0,
    1,
    2,
    0,
    1,
    0,
    2,
    0,
    2,
    1,
    1,
    1,
    1,
    1,
    1,
    2,
    2,
    2,
    2,
    1,
    1,
    2,
]
X = [9.082, -0.111, 5.836, 3.864, 4.095, 4.569, 0.96, 4.536, 3.27, 11.646]
X += [5.452, 4.295, 4.437, 3.664, 2.89, 4.218, 5.964, 4.523, 6.916, 4.6]
COLUMNS = {"label": np.array(LABELS), "x": np.array(X)}
SHARES = np.array([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
COUNTS = np.array([[2, 3], [1.9, 2], [0, 4]])


def runs(*sizes: int) -> list[list[int]]:
    """Row numbers one after the other, in runs of these sizes."""
    return [
        rows.tolist() for rows in np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    ]


GOLDENS = [
    (LinearPartitioner(4), runs(2, 4, 6, 8)),
    (SquarePartitioner(3), runs(1, 5, 14)),
    (ExponentialPartitioner(3), runs(1, 4, 15)),
    (IdToSizeFncPartitioner(3, lambda ids: 1 / ids), runs(10, 5, 5)),
    (SizePartitioner([3, 5, 12]), runs(3, 5, 12)),
    (
        InnerDirichletPartitioner([6, 9, 5], "label", 0.5),
        [[9, 16, 19, 13, 18, 17], [5, 6, 2, 1, 4, 7, 3, 14, 8], [0, 10, 11, 12, 15]],
    ),
    (
        InnerDirichletPartitioner(
            [4, 0, 7], "label", [0.1, 1.0, 10.0], shuffle=False, seed=1
        ),
        [[6, 10, 11, 19], [], [5, 9, 13, 16, 18, 2, 15]],
    ),
    (
        InnerDirichletPartitioner([10, 10], "label", 2, seed=5),
        [[3, 0, 6, 15, 2, 5, 10, 12, 7, 17], [14, 1, 9, 8, 18, 4, 11, 16, 19, 13]],
    ),
    (
        DistributionPartitioner(SHARES[:, :2], 3, 2, "label", 0, shuffle=False, seed=9),
        [[0, 3, 17, 1, 4, 5, 9], [13, 16, 18, 19, 2, 6], [10, 11, 15, 7, 8, 12, 14]],
    ),
    (
        DistributionPartitioner(COUNTS, 3, 2, "label", 0, rescale=False, shuffle=False),
        [[0, 3, 1], [4, 5], [2, 6, 10, 11, 7, 8, 12]],
    ),
    (
        ContinuousPartitioner(3, "x", 0.5),
        [[6, 8, 1, 15, 4, 5, 17], [11, 19, 14, 12, 3, 13, 7], [10, 9, 0, 18, 2, 16]],
    ),
    (
        ContinuousPartitioner(3, "x", 1.0, shuffle=False),
        [[1, 6, 14, 8, 13, 3, 4], [15, 11, 12, 17, 7, 5, 19], [10, 2, 16, 18, 0, 9]],
    ),
    (
        ContinuousPartitioner(4, "x", 0.0, seed=8),
        [[6, 4, 1, 2, 0], [5, 18, 19, 14, 3], [11, 16, 12, 10, 15], [8, 17, 13, 7, 9]],
    ),
    (
        ContinuousPartitioner(2, "x", 1),
        [[14, 12, 1, 11, 13, 6, 4, 15, 8, 3], [16, 19, 0, 5, 9, 2, 7, 18, 10, 17]],
    ),
    (IidPartitioner(3, shuffle=False), runs(7, 7, 6)),
    (
        NaturalIdPartitioner("label"),
        [[0, 3, 7, 8, 12, 14, 17], [1, 4, 5, 9, 13, 16, 18, 19], [2, 6, 10, 11, 15]],
    ),
    (
        GroupedNaturalIdPartitioner("label", 2),
        [[0, 3, 7, 8, 12, 14, 17, 1, 4, 5, 9, 13, 16, 18, 19], [2, 6, 10, 11, 15]],
    ),
    (
        DirichletPartitioner(3, "label", 0.5, min_partition_size=2),
        [[1, 2, 0, 16, 5, 3, 13, 4, 9], [14, 12, 8, 6, 7], [18, 11, 15, 10, 19, 17]],
    ),
    (
        PathologicalPartitioner(3, "label", 2),
        [[0, 7, 2, 3, 6, 10], [5, 19, 1, 16, 9, 12, 13, 18, 4, 8], [14, 15, 11, 17]],
    ),
    (
        ShardPartitioner(3, "label", num_shards_per_partition=2),
        [[13, 1, 5, 9, 17, 4], [19, 18, 10, 16, 2, 6], [3, 8, 14, 0, 7, 12]],
    ),
]


def lists(clients: list[np.ndarray]) -> list[list[int]]:
    return [rows.tolist() for rows in clients]


@pytest.mark.compatibility
@pytest.mark.filterwarnings("ignore:.*dropped")
@pytest.mark.parametrize(
    ("partitioner", "expected"), GOLDENS, ids=lambda value: type(value).__name__
)
def test_rows_equal_those_of_flwr_datasets(partitioner, expected, compatibility):
    for _ in range(2):
        clients = partitioner.partition(COLUMNS)
        assert lists(clients) == expected
        assert all(rows.dtype == np.int64 for rows in clients)
    compatibility.works("Partitioners", type(partitioner).__name__)


def test_a_distribution_with_rows_set_aside_equals_flwr_datasets():
    clients = DistributionPartitioner(SHARES, 6, 2, "label", 1).partition(
        {"label": np.array(LONG)}
    )
    assert lists(clients) == [
        [7, 1, 14, 19, 25, 4, 23],
        [28, 5, 22, 0, 27, 2, 3],
        [9, 6, 12, 8, 11, 15],
        [10, 30, 29, 13],
        [32, 31, 20, 17, 39, 24, 26, 37, 38],
        [18, 34, 35, 21, 36, 33, 16],
    ]


@pytest.mark.parametrize(
    ("make", "n", "sizes"),
    [
        (LinearPartitioner, 997, [66, 132, 199, 265, 335]),
        (SquarePartitioner, 997, [18, 72, 163, 290, 454]),
        (ExponentialPartitioner, 997, [11, 31, 85, 233, 637]),
        (LinearPartitioner, 100, [6, 13, 20, 26, 35]),
        (SquarePartitioner, 100, [1, 7, 16, 29, 47]),
        (ExponentialPartitioner, 100, [1, 3, 8, 23, 65]),
    ],
)
def test_sizes_equal_those_of_flwr_datasets(make, n, sizes):
    assert lists(make(5).partition({"label": np.zeros(n)})) == runs(*sizes)


NAMES = [*"abcdefg", "y"]
EVEN = {"drop_columns": "c", "shared_columns": ["a"]}
VERTICAL = [
    (
        VerticalEvenPartitioner(3, "y", "add_to_first", **EVEN),
        [["g", "e", "y", "a"], ["f", "d", "a"], ["b", "a"]],
    ),
    (
        VerticalEvenPartitioner(3, "y", "add_to_last", **EVEN),
        [["g", "e", "a"], ["f", "d", "a"], ["b", "y", "a"]],
    ),
    (
        VerticalEvenPartitioner(3, "y", "create_as_first", **EVEN),
        [["y", "a"], ["g", "e", "a"], ["f", "d", "a"], ["b", "a"]],
    ),
    (
        VerticalEvenPartitioner(3, "y", "create_as_last", **EVEN),
        [["g", "e", "a"], ["f", "d", "a"], ["b", "a"], ["y", "a"]],
    ),
    (
        VerticalEvenPartitioner(3, "y", "add_to_all", **EVEN),
        [["g", "e", "y", "a"], ["f", "d", "y", "a"], ["b", "y", "a"]],
    ),
    (
        VerticalEvenPartitioner(3, "y", 1, **EVEN),
        [["g", "e", "a"], ["f", "d", "y", "a"], ["b", "a"]],
    ),
    (
        VerticalEvenPartitioner(3, shuffle=False),
        [["a", "b", "c"], ["d", "e", "f"], ["g", "y"]],
    ),
    (
        VerticalSizePartitioner([4, 0, 2], "y", "create_as_first", drop_columns=["c"]),
        [["y"], ["e", "d", "g", "f"], [], ["b", "a"]],
    ),
    (
        VerticalSizePartitioner([0.29, 0.3, 0.41], ["y", "g"], "add_to_all", seed=3),
        [["c", "y", "g"], ["f", "y", "g"], ["e", "b", "d", "a", "y", "g"]],
    ),
    (VerticalSizePartitioner([1.0]), [["d", "e", "c", "y", "g", "b", "f", "a"]]),
]


@pytest.mark.compatibility
@pytest.mark.parametrize(
    ("partitioner", "expected"), VERTICAL, ids=lambda value: type(value).__name__
)
def test_columns_equal_those_of_flwr_datasets(partitioner, expected, compatibility):
    for _ in range(2):
        assert partitioner.partition({name: np.zeros(2) for name in NAMES}) == expected
    compatibility.works("Partitioners", type(partitioner).__name__)


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    n_classes=st.integers(1, 5),
    seed=st.integers(0, 99),
    alpha=st.sampled_from([1e-4, 0.1, 1.0, 100.0]),
)
def test_inner_dirichlet_keeps_the_sizes_and_repeats_no_row(
    data, n_classes, seed, alpha
):
    labels = np.array(
        data.draw(st.lists(st.integers(0, n_classes - 1), min_size=5, max_size=60))
    )
    cuts = sorted(
        data.draw(st.lists(st.integers(0, len(labels)), min_size=1, max_size=4))
    )
    sizes = np.diff([0, *cuts, len(labels)]).tolist()
    clients = InnerDirichletPartitioner(sizes, "label", alpha, seed=seed).partition(
        {"label": labels}
    )
    assert [len(rows) for rows in clients] == sizes
    assert sorted(np.concatenate(clients).tolist()) == list(range(len(labels)))


def test_inner_dirichlet_mixes_classes_by_alpha():
    """E[share of class c with a client] = alpha_c / sum(alpha) while no class runs out."""
    labels = np.repeat(np.arange(3), 4000)
    alpha = np.array([1.0, 2.0, 5.0])
    shares = []
    for seed in range(60):
        clients = InnerDirichletPartitioner([40] * 10, "y", alpha, seed=seed)
        with pytest.warns(UserWarning, match="400 of 12000 rows; 11600 are dropped"):
            shares += [
                np.bincount(labels[rows], minlength=3) / 40
                for rows in clients.partition({"y": labels})
            ]
    np.testing.assert_allclose(np.mean(shares, axis=0), alpha / alpha.sum(), atol=0.04)


def test_inner_dirichlet_takes_labels_of_any_kind():
    """flwr-datasets takes labels 0, 1, ... only."""
    words = np.array(["no", "so", "yes"])[LABELS]
    for labels in (words, words.astype(object), np.array(LABELS) * 7 - 3):
        clients = InnerDirichletPartitioner([6, 9, 5], "label", 0.5).partition(
            {"label": labels}
        )
        assert lists(clients) == lists(
            InnerDirichletPartitioner([6, 9, 5], "label", 0.5).partition(COLUMNS)
        )


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(16, 40), min_size=1, max_size=4), times=st.integers(1, 2), kinds=st.integers(1, 4),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_distribution_deals_every_row_and_each_client_its_labels(
    counts, times, kinds, seed
):
    n_labels, rng = len(counts), np.random.default_rng(seed)
    kinds = min(kinds, n_labels)
    labels = rng.permutation(np.repeat(np.arange(n_labels), counts))
    shares = rng.lognormal(0, 1, (n_labels, kinds * times))
    clients = DistributionPartitioner(
        shares, n_labels * times, kinds, "y", 1, seed=seed
    ).partition({"y": labels})
    assert sorted(np.concatenate(clients).tolist()) == list(range(len(labels)))
    for k, rows in enumerate(clients):
        assert set(labels[rows].tolist()) == {(k + j) % n_labels for j in range(kinds)}


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(10, 200),
    clients=st.integers(1, 10),
    strictness=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_a_continuous_partition_covers_every_row_in_equal_parts(
    n, clients, strictness, seed
):
    x = np.random.default_rng(seed).normal(size=n)
    parts = ContinuousPartitioner(clients, "x", strictness, seed=seed).partition(
        {"x": x}
    )
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_strictness_is_the_correlation_of_clients_with_the_property():
    x = np.random.default_rng(0).normal(size=5000) * 1e-8 + 1.0
    spread = []
    for strictness in (0.0, 0.3, 0.7, 1.0):
        parts = ContinuousPartitioner(10, "x", strictness).partition({"x": x})
        spread.append(np.std([x[rows].mean() for rows in parts]) / x.std())
    assert spread == sorted(spread)
    assert spread[0] < 0.1
    assert spread[-1] > 0.9


def test_whole_numbers_beyond_float32_keep_their_order():
    x = 2**24 + np.random.default_rng(0).permutation(100)
    parts = ContinuousPartitioner(100, "x", 1.0).partition({"x": x})
    assert [int(x[rows[0]]) for rows in parts] == sorted(x.tolist())


def test_a_constant_property_is_iid_without_strictness():
    parts = ContinuousPartitioner(4, "x", 0.0).partition({"x": np.full(40, 3.0)})
    assert sorted(np.concatenate(parts).tolist()) == list(range(40))
    assert lists(parts) != runs(10, 10, 10, 10)


IMPOSSIBLE = [
    (LinearPartitioner(10), 20, r"num_partitions=10.*20 rows.*client 0.*0 rows"),
    (SquarePartitioner(10), 20, "num_partitions=10.*20 rows"),
    (ExponentialPartitioner(10), 20, "num_partitions=10.*20 rows"),
    (ExponentialPartitioner(1000), 20, "num_partitions=1000.*20 rows"),
    (
        IdToSizeFncPartitioner(3, lambda ids: ids * np.inf),
        20,
        "partition_id_to_size_fn.*inf",
    ),
    (IdToSizeFncPartitioner(3, lambda ids: -ids), 20, "partition_id_to_size_fn.*-1"),
    (IdToSizeFncPartitioner(3, lambda ids: 0 * ids), 20, "partition_id_to_size_fn.*0"),
    (
        IdToSizeFncPartitioner(3, lambda ids: ids[:2]),
        20,
        r"partition_id_to_size_fn.*\(3,\).*\(2,\)",
    ),
    (IdToSizeFncPartitioner(3, lambda ids: "abc"), 20, "partition_id_to_size_fn"),
    (InnerDirichletPartitioner([11, 10], "label", 1.0), 20, "20 rows.*21"),
    (
        InnerDirichletPartitioner([5, 5], "label", [1.0, 2.0]),
        20,
        r"3 classes.*alpha.*\(2,\)",
    ),
    (
        DistributionPartitioner(SHARES, 6, 2, "x", 0),
        20,
        r"20 classes.*\(3, 4\)|num_partitions=6.*20",
    ),
    (DistributionPartitioner(SHARES, 4, 2, "label", 0), 20, "num_partitions=4.*3"),
    (DistributionPartitioner(SHARES, 3, 2, "label", 0), 20, r"\(3, 2\).*\(3, 4\)"),
    (
        DistributionPartitioner(SHARES, 3, 4, "label", 0),
        20,
        "num_unique_labels_per_partition=4.*3",
    ),
    (
        DistributionPartitioner(SHARES, 6, 2, "label", 1),
        20,
        "preassigned_num_samples_per_label=1",
    ),
    (
        DistributionPartitioner(10 * COUNTS, 3, 2, "label", 0, rescale=False),
        20,
        r"distribution_array.*50.*7",
    ),
    (ContinuousPartitioner(21, "x", 1.0), 20, "num_partitions=21 for 20 rows"),
    (VerticalEvenPartitioner(3), 20, "num_partitions=3.*2 columns"),
    (
        VerticalEvenPartitioner(1, drop_columns="lable"),
        20,
        "drop_columns.*'lable'.*did you mean 'label'",
    ),
    (VerticalEvenPartitioner(1, "z"), 20, "active_party_columns.*'z'"),
    (VerticalSizePartitioner([1], shared_columns="z"), 20, "shared_columns.*'z'"),
    (
        VerticalSizePartitioner([0.5, 0.505, 0.0], shuffle=False),
        0,
        r"partition_sizes.*0\.505",
    ),
    (VerticalSizePartitioner([1, 2]), 20, r"partition_sizes.*3.*2 columns"),
]


@pytest.mark.parametrize(
    ("partitioner", "n", "message"), IMPOSSIBLE, ids=lambda value: type(value).__name__
)
def test_what_cannot_be_dealt_names_the_numbers(partitioner, n, message):
    wide = {f"c{k}": np.zeros(0) for k in range(1000)}
    table = {name: column[:n] for name, column in COLUMNS.items()} if n else wide
    with pytest.raises((ValueError, KeyError), match=message):
        partitioner.partition(table)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (np.array([1.0, np.nan, 2.0]), "'x' holds 1 NaN"),
        (np.array([1.0, np.inf, 2.0]), "'x'.*inf"),
        (np.array(["1", "2", "3"]), "'x'.*numbers"),
        (np.array([True, False, True]), "'x'.*numbers"),
        (np.array([1, None, 3], object), "'x'.*missing"),
        (np.ones((3, 2)), r"'x'.*\(3, 2\)"),
        (np.full(3, 2.5), r"'x'.*2\.5.*strictness"),
    ],
)
def test_a_property_is_a_column_of_finite_numbers(column, message):
    with pytest.raises(ValueError, match=message):
        ContinuousPartitioner(2, "x", 0.5).partition({"x": column})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"active_party_columns": "y", "shared_columns": ["y", "a"]},
            r"\['y'\].*shared_columns.*active_party_columns|\['y'\].*active_party_columns.*shared_columns",
        ),
        ({"active_party_columns": "y", "drop_columns": "y"}, r"\['y'\]"),
        ({"drop_columns": ["a", "a"]}, "drop_columns.*'a'.*twice"),
        ({"drop_columns": 3}, "drop_columns=3"),
        ({"shared_columns": ["a", None]}, "shared_columns"),
        ({"active_party_columns_mode": 2}, "active_party_columns_mode=2"),
        ({"active_party_columns_mode": -1}, "active_party_columns_mode=-1"),
    ],
)
def test_columns_have_one_part_to_play(how, message):
    for make in (
        lambda **how: VerticalEvenPartitioner(2, **how),
        lambda **how: VerticalSizePartitioner([0.5, 0.5], **how),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            make(**how)


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0.5, 0.6],
        [0.5, 1],
        [-0.5, 1.5],
        [0.5, float("nan")],
        [True, 2],
        ["1"],
        [-1, 2],
    ],
)
def test_sizes_of_vertical_partitions_are_counts_or_shares(sizes):
    with pytest.raises((TypeError, ValueError), match="partition_sizes"):
        VerticalSizePartitioner(sizes)


def test_counts_that_are_not_rescaled_may_drop_rows_and_say_so():
    with pytest.warns(UserWarning, match="12 of 20 rows; 8 are dropped"):
        DistributionPartitioner(COUNTS, 3, 2, "label", 0, rescale=False).partition(
            COLUMNS
        )


def test_sizes_that_leave_nothing_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InnerDirichletPartitioner([10, 10], "label", 1.0).partition(COLUMNS)
