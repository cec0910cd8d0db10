"""No hyper-parameter of a partitioner, a split or a trace may be NaN, a flag for a
number, or text.
"""

import numpy as np
import pytest
from bad_values import BAD, Row, cases, is_refused, unlisted

from fedjax_fm import population
from fedjax_fm.population import splits, traces

P = population
LABEL = {"partition_by": "label"}
SEEDED = {"shuffle": "flag", "seed": "whole"}
COUNT = {"num_partitions": "whole"}
VERTICAL = {"active_party_columns_mode": "choice", **SEEDED}
MODES = {"drop_columns": "c", "shared_columns": ["a"], "active_party_columns": "y"}

ROWS = [
    Row(P.IidPartitioner, {"num_partitions": 3}, COUNT | SEEDED),
    Row(P.LinearPartitioner, {"num_partitions": 3}, COUNT),
    Row(P.SquarePartitioner, {"num_partitions": 3}, COUNT),
    Row(P.ExponentialPartitioner, {"num_partitions": 3}, COUNT),
    Row(P.IdToSizeFncPartitioner, {"num_partitions": 3, "partition_id_to_size_fn": np.sqrt}, COUNT),
    Row(
        P.DirichletPartitioner,
        {"num_partitions": 3, "alpha": 0.5, **LABEL},
        COUNT | SEEDED | {"alpha": "real", "min_partition_size": "whole", "self_balancing": "flag"},
    ),
    Row(
        P.InnerDirichletPartitioner,
        {"partition_sizes": [3, 4], "alpha": 0.5, **LABEL},
        SEEDED | {"alpha": "real"},
    ),
    Row(
        P.PathologicalPartitioner,
        {"num_partitions": 3, "num_classes_per_partition": 2, **LABEL},
        COUNT | SEEDED | {"num_classes_per_partition": "whole", "class_assignment_mode": "choice"},
    ),
    Row(
        P.ShardPartitioner,
        {"num_partitions": 3, "shard_size": 2, "num_shards_per_partition": 2, **LABEL},
        COUNT | SEEDED
        | {"shard_size": "whole?", "num_shards_per_partition": "whole?", "keep_incomplete_shard": "flag"},
    ),
    Row(
        P.GroupedNaturalIdPartitioner,
        {"group_size": 2, **LABEL},
        {"group_size": "whole", "mode": "choice", "sort_unique_ids": "flag"},
    ),
    Row(
        P.DistributionPartitioner,
        {
            "distribution_array": np.ones((2, 2)), "num_partitions": 2, "num_unique_labels_per_partition": 2,
            "preassigned_num_samples_per_label": 1, **LABEL,
        },
        COUNT | SEEDED
        | {
            "num_unique_labels_per_partition": "whole", "preassigned_num_samples_per_label": "whole", "rescale": "flag",
        },
    ),
    Row(P.ContinuousPartitioner, {"num_partitions": 3, "strictness": 0.5, **LABEL}, COUNT | SEEDED | {"strictness": "real"}),
    Row(P.VerticalEvenPartitioner, {"num_partitions": 3, **MODES}, COUNT | VERTICAL),
    Row(P.VerticalSizePartitioner, {"partition_sizes": [3, 4], **MODES}, VERTICAL),
    Row(splits.split_clients, {"num_clients": 5, "counts": {"a": 5}, "seed": 0}, {"num_clients": "whole", "seed": "whole"}),
    Row(splits.split_within, {"indices": [1, 2, 3], "fraction": 0.5, "seed": 0}, {"fraction": "real", "seed": "whole"}),
    Row(splits.split_by_group, {"groups": list("abab"), "fractions": {"x": 0.5, "y": 0.5}, "seed": 0}, {"seed": "whole"}),
    Row(
        traces.diurnal,
        {"n_clients": 3, "n_rounds": 4},
        {
            "n_clients": "whole", "n_rounds": "whole", "period": "real", "mean": "real", "amplitude": "real",
            "spread": "real", "seed": "whole",
        },
    ),
    Row(
        traces.markov,
        {"n_clients": 3, "n_rounds": 4, "mean_on": 2.0, "mean_off": 3.0},
        {"n_clients": "whole", "n_rounds": "whole", "mean_on": "real", "mean_off": "real", "seed": "whole"},
    ),
]  # fmt: skip
FACTORIES = [
    getattr(P, name)
    for name in P.__all__
    if name.endswith("Partitioner") and name != "Partitioner"
]


# One number for each client or class is a value of these.
LISTS = ("mean", "amplitude", "mean_on", "mean_off", "alpha")
CASES = [
    case
    for case in cases(ROWS)
    if not (case.values[1] in LISTS and case.values[2] == [0.1])
]


@pytest.mark.parametrize(("row", "parameter", "value"), CASES)
def test_a_bad_value_is_refused_by_name(row, parameter, value):
    is_refused(row, parameter, value)


def test_every_number_flag_and_choice_is_in_the_table():
    assert len(FACTORIES) == 16
    functions = [
        splits.split_clients,
        splits.split_within,
        splits.split_by_group,
        traces.diurnal,
        traces.markov,
    ]
    assert unlisted([*FACTORIES, *functions], ROWS) == []


@pytest.mark.parametrize("value", BAD["real"][:5])
@pytest.mark.parametrize(
    ("row", "parameter", "good"),
    [
        (P.DirichletPartitioner, "alpha", [0.5, 1.0, 2.0]),
        (P.InnerDirichletPartitioner, "alpha", [0.5, 1.0, 2.0]),
        (traces.markov, "mean_on", [2.0, 2.0, 3.0]),
        (traces.diurnal, "mean", [0.5, 0.5, 0.5]),
    ],
)
def test_one_bad_number_of_many_is_refused_by_name(row, parameter, good, value):
    row = next(entry for entry in ROWS if entry.make is row)
    row.make(**{**row.good, parameter: good})
    with pytest.raises((TypeError, ValueError), match=parameter):
        row.make(**{**row.good, parameter: [good[0], value, good[2]]})


@pytest.mark.parametrize("value", [float("nan"), 2.5, True, "3", None, -1])
@pytest.mark.parametrize(
    "make",
    [P.SizePartitioner, lambda sizes: P.InnerDirichletPartitioner(sizes, "label", 1.0)],
)
def test_one_bad_size_of_many_is_refused_by_name(make, value):
    make([3, 4])
    with pytest.raises((TypeError, ValueError), match=r"partition_sizes\[1\]"):
        make([3, value])


@pytest.mark.parametrize("value", [None, 3, "34", {3: 4}])
@pytest.mark.parametrize("make", [P.SizePartitioner, P.VerticalSizePartitioner])
def test_sizes_are_a_sequence(make, value):
    with pytest.raises((TypeError, ValueError), match="partition_sizes"):
        make(value)


@pytest.mark.parametrize("value", [None, 3, ["label"], ("a", "b"), ""])
@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if "partition_by" in row.good],
    ids=lambda row: row.make.__name__,
)
def test_the_column_to_partition_by_is_named_by_text(row, value):
    with pytest.raises(TypeError, match="partition_by"):
        row.make(**{**row.good, "partition_by": value})


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.0, np.nan]]), np.array([[1.0, np.inf]]), np.array([[1.0, -1.0]]), np.array([1.0, 2.0]),
        np.array([["1", "2"]]), np.array([[True, False]]), np.array([[0.0, 0.0]]), None, [[1.0], [1.0, 2.0]],
    ],
    ids=repr,
)  # fmt: skip
def test_a_distribution_is_a_matrix_of_numbers_that_are_not_negative(array):
    with pytest.raises((TypeError, ValueError), match="distribution_array"):
        P.DistributionPartitioner(array, 2, 1, "label", 0)


@pytest.mark.parametrize(
    "fractions", [{"a": True}, {"a": "1"}, {"a": np.nan}, {"a": 0.5, "b": None}, {}]
)
def test_fractions_are_numbers(fractions):
    with pytest.raises((TypeError, ValueError), match="fraction"):
        splits.split_by_group(list("abab"), fractions, seed=0)


@pytest.mark.parametrize(
    "indices",
    [[True, False, True], [0.0, 1.5], ["1", "2"], [-1, 2], [[1, 2]], [None, 1]],
)
def test_row_numbers_are_whole(indices):
    with pytest.raises((TypeError, ValueError), match=r"indices|row"):
        splits.split_within(indices, 0.5, seed=0)
    with pytest.raises((TypeError, ValueError), match=r"train|row"):
        splits.assert_disjoint(train=np.array(indices), test=np.array([7]))
