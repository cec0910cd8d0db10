"""Partitioners and `Population.from_table` read the tables that people have, or say in
one sentence what to call.
"""

import numpy as np
import pytest

from fedjax_fm import Population, datasets, population
from fedjax_fm.population import (
    ContinuousPartitioner,
    DirichletPartitioner,
    NaturalIdPartitioner,
    VerticalEvenPartitioner,
)

LABELS = [0, 1, 2, 0, 1, 1, 2, 0, 0, 1, 2, 2, 0, 1, 0, 2, 1, 0, 1, 1]
USERS = [["bob", "ann", "cid"][k * k % 3] for k in range(20)]
SCORES = [round(0.37 * k * k % 5, 2) for k in range(20)]
TOKENS = [[k, k + 1, 2 * k] for k in range(20)]
DATA = {"user": USERS, "label": LABELS, "score": SCORES, "tokens": TOKENS}
# What flwr-datasets 0.6.1 returns for DirichletPartitioner(3, "label", 0.5,
# min_partition_size=2) and these labels.
DIRICHLET = [[1, 2, 0, 16, 5, 3, 13, 4, 9], [14, 12, 8, 6, 7], [18, 11, 15, 10, 19, 17]]


def dict_of_arrays():
    return {name: np.array(column) for name, column in DATA.items()}


def records():
    kinds = [("user", "U3"), ("label", "i8"), ("score", "f8"), ("tokens", "i8", 3)]
    return np.array(list(zip(*DATA.values(), strict=True)), dtype=kinds)


def dataset():
    return pytest.importorskip("datasets").Dataset.from_dict(DATA)


def shuffled_dataset():
    """One whose rows are read through a list of row numbers, and whose first row was dropped."""
    order = np.random.default_rng(0).permutation(21)
    mixed = [{**DATA, "user": ["nobody", *USERS]}["user"]]
    columns = {
        "user": mixed[0],
        "label": [9, *LABELS],
        "score": [-1.0, *SCORES],
        "tokens": [[0, 0, 0], *TOKENS],
    }
    stored = {name: [column[k] for k in order] for name, column in columns.items()}
    places = np.argsort(order)[1:]
    return pytest.importorskip("datasets").Dataset.from_dict(stored).select(places)


def formatted_dataset(form):
    pytest.importorskip(form)
    return dataset().with_format(form)


def arrow(chunks=1):
    pa = pytest.importorskip("pyarrow")
    whole = pa.table(DATA)
    return (
        pa.concat_tables([whole.slice(0, 7), whole.slice(7)]) if chunks > 1 else whole
    )


def dictionary_arrow():
    whole = arrow()
    return whole.set_column(0, "user", whole.column("user").dictionary_encode())


def frame(**kinds):
    return pytest.importorskip("pandas").DataFrame(DATA).astype(kinds)


def frame_with_other_index():
    table = frame()
    table.index = [f"row {k % 4}" for k in range(20)]
    return table


TABLES = {
    "dict of lists": lambda: DATA,
    "dict of numpy arrays": dict_of_arrays,
    "numpy structured array": records,
    "datasets.Dataset": dataset,
    "datasets.Dataset, shuffled and selected": shuffled_dataset,
    "datasets.Dataset with_format('numpy')": lambda: formatted_dataset("numpy"),
    "datasets.Dataset with_format('torch')": lambda: formatted_dataset("torch"),
    "datasets.Dataset with_format('pandas')": lambda: formatted_dataset("pandas"),
    "pyarrow.Table": arrow,
    "pyarrow.Table of chunks": lambda: arrow(chunks=2),
    "pyarrow.Table with dictionaries": dictionary_arrow,
    "pyarrow.RecordBatch": lambda: arrow().to_batches()[0],
    "pandas.DataFrame": frame,
    "pandas.DataFrame, categories and nullable numbers": lambda: frame(
        user="category", label="Int64", score="Float64"
    ),
    "pandas.DataFrame with another index": frame_with_other_index,
    "dict of pandas.Series": lambda: {name: frame()[name] for name in DATA},
    "dict of datasets columns": lambda: {name: dataset()[name] for name in DATA},
    "polars.DataFrame": lambda: pytest.importorskip("polars").DataFrame(DATA),
}


def plain_clients(ids):
    """Row numbers of each id, in order of first appearance."""
    rows = {}
    for k, value in enumerate(ids):
        rows.setdefault(value, []).append(k)
    return list(rows.values())


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", TABLES)
def test_partitioners_read_the_table(kind, compatibility):
    table = TABLES[kind]()
    natural = NaturalIdPartitioner("user")
    assert [rows.tolist() for rows in natural.partition(table)] == plain_clients(USERS)
    assert natural.client_names(table) == list(dict.fromkeys(USERS))
    skewed = DirichletPartitioner(3, "label", 0.5, min_partition_size=2)
    assert [rows.tolist() for rows in skewed.partition(table)] == DIRICHLET
    ordered = ContinuousPartitioner(20, "score", 1.0).partition(table)
    assert [int(rows[0]) for rows in ordered] == np.argsort(
        SCORES, kind="stable"
    ).tolist()
    assert VerticalEvenPartitioner(2, shuffle=False).partition(table) == [
        ["user", "label"],
        ["score", "tokens"],
    ]
    with pytest.raises(
        KeyError, match=r"unknown column 'lable'.*did you mean 'label'"
    ) as raised:
        DirichletPartitioner(3, "lable", 0.5).partition(table)
    assert len(str(raised.value)) < 200
    compatibility.works("Table types", kind, "partitioners")


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", TABLES)
def test_a_population_reads_the_table(kind, compatibility):
    got = Population.from_table(TABLES[kind](), by="user")
    assert list(got.arrays) == ["label", "score", "tokens"]
    for k, rows in enumerate(plain_clients(USERS)):
        client = got.client(k)
        assert client["label"].tolist() == [LABELS[row] for row in rows]
        assert client["score"].tolist() == [SCORES[row] for row in rows]
        assert client["tokens"].tolist() == [TOKENS[row] for row in rows]
    assert got.arrays["label"].dtype.kind == "i"
    assert got.arrays["score"].dtype == np.float64
    compatibility.works("Table types", kind, "Population.from_table")


def test_every_partitioner_takes_rows_of_a_foreign_table():
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"label": LABELS, "x": SCORES})
    plain = {"label": np.array(LABELS), "x": np.array(SCORES)}
    for partitioner in (
        population.IidPartitioner(3),
        population.SizePartitioner([12, 8]),
        population.LinearPartitioner(3),
        population.InnerDirichletPartitioner([12, 8], "label", 1.0),
        population.DistributionPartitioner(np.ones((3, 2)), 3, 2, "label", 1),
        population.PathologicalPartitioner(3, "label", 2),
        population.ShardPartitioner(3, "label", shard_size=3),
        population.GroupedNaturalIdPartitioner("label", 2),
    ):
        for ours, theirs in zip(
            partitioner.partition(plain), partitioner.partition(table), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_clients_of_a_population_come_from_a_rule_or_from_row_numbers():
    rule = DirichletPartitioner(3, "label", 0.5, min_partition_size=2)
    by_rule = Population.from_table(DATA, by=rule, columns=["tokens", "label"])
    by_rows = Population.from_table(DATA, rows=DIRICHLET, columns=["tokens", "label"])
    for got in (by_rule, by_rows):
        assert list(got.arrays) == ["tokens", "label"]
        for k, rows in enumerate(DIRICHLET):
            assert got.client(k)["tokens"].tolist() == [TOKENS[row] for row in rows]
    with_empty = Population.from_table(
        DATA, rows=[[], [3, 1], np.array([], np.int64)], columns=["label"]
    )
    assert with_empty.sizes.tolist() == [0, 2, 0]
    assert with_empty.arrays["label"].tolist() == [LABELS[3], LABELS[1]]


def test_the_tables_of_the_package_are_tables():
    table = datasets.Table({"user": np.array(USERS), "label": np.array(LABELS)}, {})
    assert [
        rows.tolist() for rows in NaturalIdPartitioner("user").partition(table)
    ] == plain_clients(USERS)
    assert Population.from_table(table, by="user").n_clients == len(set(USERS))


def test_images_of_a_data_set_of_arrays_keep_their_shape():
    hf = pytest.importorskip("datasets")
    images = np.arange(24, dtype=np.int32).reshape(4, 2, 3)
    features = hf.Features(
        {"x": hf.Array2D((2, 3), "int32"), "y": hf.ClassLabel(names=["no", "yes"])}
    )
    table = hf.Dataset.from_dict(
        {"x": images, "y": ["no", "yes", "yes", "no"]}, features=features
    )
    got = Population.from_table(table, by="y", columns=["x", "y"])
    np.testing.assert_array_equal(got.client(0)["x"], images[[0, 3]])
    assert got.arrays["x"].dtype == np.int32
    assert got.arrays["y"].tolist() == [0, 0, 1, 1]


RAGGED = [[1, 2, 3], [4], [5, 6], []]


def ragged_tables():
    arrays = np.empty(4, object)
    arrays[:] = [np.array(row) for row in RAGGED]
    return {
        "dict of lists": lambda: {"user": list("abab"), "ids": RAGGED},
        "dict of numpy arrays": lambda: {"user": np.array(list("abab")), "ids": arrays},
        "datasets.Dataset": lambda: pytest.importorskip("datasets").Dataset.from_dict(
            {"user": list("abab"), "ids": RAGGED}
        ),
        "pyarrow.Table": lambda: pytest.importorskip("pyarrow").table(
            {"user": list("abab"), "ids": RAGGED}
        ),
        "pandas.DataFrame": lambda: pytest.importorskip("pandas").DataFrame(
            {"user": list("abab"), "ids": RAGGED}
        ),
        "polars.DataFrame": lambda: pytest.importorskip("polars").DataFrame(
            {"user": list("abab"), "ids": RAGGED}
        ),
    }


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", ragged_tables())
def test_ragged_token_lists_are_named_or_padded(kind, compatibility):
    table = ragged_tables()[kind]()
    assert [
        rows.tolist() for rows in NaturalIdPartitioner("user").partition(table)
    ] == [[0, 2], [1, 3]]
    with pytest.raises(
        ValueError, match=r"'ids' is ragged.*0 to 3.*pad=\{'ids': "
    ) as raised:
        Population.from_table(table, by="user")
    compatibility.refused("Table types", f"{kind}, ragged token lists", raised)
    padded = Population.from_table(table, by="user", pad={"ids": -100})
    assert padded.arrays["ids"].tolist() == [
        [1, 2, 3],
        [5, 6, -100],
        [4, -100, -100],
        [-100, -100, -100],
    ]
    assert padded.arrays["ids"].dtype.kind == "i"
    compatibility.works("Table types", f"{kind}, ragged token lists, pad=")


def iterable_dataset():
    return dataset().to_iterable_dataset()


def dataset_dict():
    return pytest.importorskip("datasets").DatasetDict(
        {"train": dataset(), "test": dataset()}
    )


FOREIGN = {
    "datasets.DatasetDict": (dataset_dict, r"\['train', 'test'\].*table\['train'\]"),
    "datasets.IterableDataset": (iterable_dataset, "IterableDataset.*read into memory"),
    "polars.LazyFrame": (
        lambda: pytest.importorskip("polars").LazyFrame(DATA),
        r"LazyFrame.*collect\(\)",
    ),
    "pandas.Series": (lambda: frame()["label"], "Series.*one column"),
    "list of rows": (
        lambda: [{"user": "a", "label": 0}],
        r"list.*\[row\[name\] for row in rows\]",
    ),
    "list of numbers": (lambda: [1, 2, 3], "list"),
    "plain array": (lambda: np.ones((3, 2)), r"ndarray.*named"),
    "path": (lambda: "reviews.csv", r"'reviews\.csv'.*read_csv"),
    "nothing": (lambda: None, "NoneType"),
    "no columns": (dict, "one or more columns"),
    "dict of dicts": (lambda: {"train": DATA, "test": DATA}, r"table\['train'\]"),
    "a number as a column": (lambda: {"user": ["a"], "label": 3}, "'label'.*int"),
    "a text as a column": (
        lambda: {"user": ["a", "b"], "label": "ab"},
        "'label'.*one text",
    ),
    "an iterator as a column": (
        lambda: {"user": iter("ab"), "label": [1, 2]},
        "'user'.*str_ascii_iterator|'user'.*iterator",
    ),
}


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_table_is_told_what_to_call(kind, compatibility):
    make, message = FOREIGN[kind]
    for read in (
        NaturalIdPartitioner("user").partition,
        population.IidPartitioner(1).partition,
        lambda table: Population.from_table(table, by="user"),
    ):
        with pytest.raises((TypeError, ValueError), match=message) as raised:
            read(make())
        assert len(str(raised.value)) < 400
    compatibility.refused("Table types", kind, raised)


def missing(column):
    pd_column = {"k": column, "label": [0, 1, 0]}
    return {
        "dict of lists": lambda: pd_column,
        "pyarrow.Table": lambda: pytest.importorskip("pyarrow").table(pd_column),
        "datasets.Dataset": lambda: pytest.importorskip("datasets").Dataset.from_dict(
            pd_column
        ),
        "pandas.DataFrame": lambda: (
            pytest.importorskip("pandas").DataFrame(pd_column).convert_dtypes()
        ),
        "polars.DataFrame": lambda: pytest.importorskip("polars").DataFrame(pd_column),
    }


@pytest.mark.compatibility
@pytest.mark.parametrize(
    "column",
    [[1, None, 2], ["a", None, "b"], [1.5, None, 2.0], [True, None, False]],
    ids=repr,
)
@pytest.mark.parametrize("kind", missing([]))
def test_missing_values_are_counted_and_named(kind, column, compatibility):
    table = missing(column)[kind]()
    with pytest.raises(ValueError, match=r"'k'.*1 missing.*row 1") as raised:
        NaturalIdPartitioner("k").partition(table)
    if column[0] != "a":
        with pytest.raises(ValueError, match=r"'k'.*1 missing.*row 1"):
            Population.from_table(table, by="label")
    compatibility.refused("Table types", f"{kind}, missing values", raised)


@pytest.mark.parametrize("kind", ["pyarrow.Table", "datasets.Dataset"])
def test_missing_tokens_are_named_too(kind):
    table = missing([[1, None], [2, 3], [4, 5]])[kind]()
    with pytest.raises(ValueError, match=r"'k'.*missing"):
        Population.from_table(table, by="label")


@pytest.mark.compatibility
@pytest.mark.parametrize(
    "kind",
    [
        "dict of lists",
        "pyarrow.Table",
        "pandas.DataFrame",
        "datasets.Dataset",
        "polars.DataFrame",
    ],
)
def test_text_in_a_population_is_named(kind, compatibility):
    table = TABLES[kind]()
    with pytest.raises(
        ValueError, match=r"'user' holds text.*tokenize.*leave it out"
    ) as raised:
        Population.from_table(table, by="label")
    assert Population.from_table(table, by="label", columns=["score"]).n_clients == 3
    compatibility.refused("Table types", f"{kind}, text in a population", raised)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([0, "0", 1], r"'k' mixes types \['int', 'str'\]"),
        ([b"a", "a", "b"], r"'k' mixes types \['bytes', 'str'\]"),
        ([True, 2, 3], r"'k' mixes types \['bool', 'int'\]"),
        ([{"a": 1}, {"a": 2}, {"a": 1}], "'k' holds dict"),
        ([[1, 2], [3, 4], [1, 2]], r"one-dimensional column 'k'.*\(3, 2\)"),
        ([[1], [3, 4], [1, 2]], "'k' is ragged"),
    ],
)
def test_columns_that_are_no_categories_are_named(column, message):
    with pytest.raises(ValueError, match=message):
        NaturalIdPartitioner("k").partition({"k": column})


def test_large_ids_do_not_meet():
    """NumPy makes float64 of a list with -1 and 2**63, and 2**63 and 2**63 + 1 are one float64."""
    ids = [-1, 2**63, 2**63 + 1, -1]
    assert [
        rows.tolist() for rows in NaturalIdPartitioner("k").partition({"k": ids})
    ] == [[0, 3], [1], [2]]
    assert NaturalIdPartitioner("k").client_names({"k": ids}) == [
        "-1",
        str(2**63),
        str(2**63 + 1),
    ]


def test_a_column_that_is_there_twice_is_refused():
    table = frame()
    table.columns = ["user", "label", "score", "label"]
    for read in (
        DirichletPartitioner(3, "label", 0.5).partition,
        lambda table: Population.from_table(table, by="user"),
    ):
        with pytest.raises(ValueError, match=r"'label'.*twice"):
            read(table)
    numbered = frame().rename(columns={"label": 7})
    with pytest.raises((TypeError, ValueError), match=r"named by text.*7"):
        Population.from_table(numbered, by="user")


ASKS = [
    ({}, "by=.*rows="),
    ({"by": "user", "rows": [[0]]}, "by=.*rows="),
    ({"by": 3}, "by=3"),
    ({"by": VerticalEvenPartitioner(2)}, "VerticalEvenPartitioner.*columns"),
    ({"by": "users"}, "unknown column 'users'"),
    ({"by": "user", "columns": ["lable"]}, "unknown column 'lable'"),
    ({"by": "user", "columns": []}, "columns"),
    ({"by": "user", "columns": "label"}, r"columns=\['label'\]"),
    ({"by": "user", "columns": ["label", "label"]}, "'label'.*twice"),
    ({"by": "user", "pad": {"tokns": 0}}, "pad.*'tokns'"),
    (
        {"by": "user", "columns": ["label"], "pad": {"label": 0}},
        "pad.*'label'.*no lists",
    ),
    ({"by": "user", "columns": ["tokens"], "pad": {"tokens": "0"}}, "pad.*'tokens'"),
    ({"rows": []}, "at least one client"),
    ({"rows": [[0, 20]]}, r"client 0.*\[0, 20\).*20"),
    ({"rows": [[0], [-1]]}, r"client 1.*-1"),
    ({"rows": [[0], [0.5]]}, "client 1.*whole"),
    ({"rows": [np.ones(20, bool)]}, "client 0.*flatnonzero"),
    ({"rows": [3]}, "client 0"),
]


@pytest.mark.parametrize(("how", "message"), ASKS, ids=lambda value: str(value)[:40])
def test_what_is_asked_of_a_table_must_fit_it(how, message):
    with pytest.raises((TypeError, ValueError, KeyError, IndexError), match=message):
        Population.from_table(DATA, **how)
