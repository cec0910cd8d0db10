"""Tables in every format that is read, and files that must be refused."""

import csv
import json

import numpy as np
import pytest

from fedjax_fm.finetune import files
from fedjax_fm.population.columns import column_names
from fedjax_fm.runs.errors import UsageError

ROWS = [
    {"text": 'good, "very" good', "label": "yes", "user": "ann"},
    {"text": "two\nlines — ü", "label": "no", "user": "bob"},
]


def as_jsonl(place):
    path = place / "a.jsonl"
    text = "\n".join(json.dumps(row) for row in ROWS)
    path.write_text(f"{text}\n\n", encoding="utf-8")
    return path


def as_json(place):
    path = place / "a.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


def as_json_of_lists(place):
    path = place / "b.json"
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    path.write_text(json.dumps(columns), encoding="utf-8")
    return path


def as_json_with_a_list_inside(place):
    path = place / "c.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS}), encoding="utf-8")
    return path


def as_table(place, name, delimiter):
    path = place / name
    with open(path, "w", newline="", encoding="utf-8-sig") as handle:
        writer = csv.DictWriter(handle, ROWS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def as_csv(place):
    return as_table(place, "a.csv", ",")


def as_tsv(place):
    return as_table(place, "a.tsv", "\t")


def arrow_table():
    arrow = pytest.importorskip("pyarrow")
    return arrow.Table.from_pylist(ROWS)


def as_parquet(place):
    pq = pytest.importorskip("pyarrow.parquet")
    path = place / "a.parquet"
    pq.write_table(arrow_table(), path)
    return path


def as_arrow(place, stream=False):
    ipc = pytest.importorskip("pyarrow.ipc")
    path = place / "a.arrow"
    table = arrow_table()
    make = ipc.new_stream if stream else ipc.new_file
    with make(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


def as_arrow_stream(place):
    return as_arrow(place, stream=True)


def as_saved_dataset(place):
    datasets = pytest.importorskip("datasets")
    path = place / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


@pytest.mark.parametrize(
    "write",
    [
        as_jsonl, as_json, as_json_of_lists, as_json_with_a_list_inside, as_csv, as_tsv,
        as_parquet, as_arrow, as_arrow_stream, as_saved_dataset,
    ],
)  # fmt: skip
def test_the_same_rows_from_every_format(write, tmp_path):
    source = files.read(str(write(tmp_path)))
    assert sorted(column_names(source.table)) == ["label", "text", "user"]
    for name in ("text", "label", "user"):
        column = source.table[name]
        values = column.to_pylist() if hasattr(column, "to_pylist") else list(column)
        assert values == [row[name] for row in ROWS]
    assert len(source.sha256) == 64


def test_a_folder_of_texts(tmp_path):
    for author, text in (("ann", "one"), ("bob", "two")):
        (tmp_path / author).mkdir()
        (tmp_path / author / "a.txt").write_text(text, encoding="utf-8")
    source = files.read(str(tmp_path))
    assert list(source.table["text"]) == ["one", "two"]
    assert list(source.table["folder"]) == ["ann", "bob"]


def test_images_in_folders_of_their_classes(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, value in (("cat", 0), ("dog", 255)):
        (tmp_path / name).mkdir()
        pixels = np.full((6, 4, 3), value, np.uint8)
        image.fromarray(pixels).save(tmp_path / name / "a.png")
    source = files.read(str(tmp_path))
    assert list(source.table["label"]) == ["cat", "dog"]
    arrays = files.images(list(source.table["image"]), size=2)
    assert arrays.shape == (2, 2, 2, 3)
    assert arrays[0].max() == 0
    assert arrays[1].min() == 1


def test_an_image_without_a_class_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    for name in ("cat/a.png", "cover.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match="in no folder of their class"):
        files.read(str(tmp_path))


@pytest.mark.parametrize("blank", ["\u2028", "\x85", "\x0c"])
def test_only_ends_of_lines_end_a_row(blank, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"user,text\na,one{blank}two\r\nb,three\n", encoding="utf-8")
    assert list(files.read(str(path)).table["text"]) == [f"one{blank}two", "three"]


def test_a_stand_in_is_of_a_benchmark_alone(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\none\n", encoding="utf-8")
    for place in (str(path), "chitchat"):
        with pytest.raises(UsageError, match="has no stand-in"):
            files.read(place, stand_in=True)


def test_numbers_stay_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1, "y": 0.5}\n{"x": 2, "y": 1.5}\n', encoding="utf-8")
    table = files.read(str(path)).table
    assert table["x"].dtype.kind == "i"
    assert table["y"].dtype.kind == "f"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2: no JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected an object"),
        ("a.jsonl", "\n\n", "no"),
        ("a.json", "{", "no JSON"),
        ("a.json", "[1, 2]", "expected a list of objects"),
        ("a.csv", "a,b\n1\n", "row 2: 1 cells"),
        ("a.csv", "a,a\n1,2\n", "two columns are called 'a'"),
        ("a.csv", "a,b\n", "no rows"),
        ("a.parquet", "no parquet", "cannot be read as Parquet"),
        ("a.arrow", "no arrow", "cannot be read as an Arrow"),
        ("a.xlsx", "", "of no kind that is read"),
    ],
)
def test_a_file_that_is_none_is_refused(name, text, said, tmp_path):
    if name.endswith((".parquet", ".arrow")):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        files.read(str(path))


def test_bytes_that_are_no_utf8_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(UsageError, match="not UTF-8"):
        files.read(str(path))


@pytest.mark.parametrize("place", ["./nowhere", "nowhere.jsonl", "/no/such/file.csv"])
def test_what_is_not_there_is_said(place):
    with pytest.raises(UsageError, match="there is no file or folder"):
        files.read(place)


def test_a_stand_in_is_taken_only_if_asked_and_says_so():
    source = files.read("flowertune/finance", stand_in=True)
    assert "STAND-IN" in source.notes[0]
    assert source.client == "client"
    with pytest.raises(UsageError, match="no named benchmark"):
        files.read("shakespeare", stand_in=False) and files.read("a", stand_in=True)


def test_data_that_ship():
    source = files.read("sentiment")
    assert source.kind == "real"
    assert {"text", "label", "domain"} <= set(source.columns)


def test_a_hub_that_is_not_reached_is_said(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*words, **more):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UsageError, match=r"ConnectionError: no network\)"):
        files.read("somebody/something")


def test_a_data_set_of_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(name, split):
        assert (name, split) == ("somebody/something", "validation")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = files.read("somebody/something", "validation")
    assert source.kind == "hub data set"
    assert list(source.table["user"]) == ["ann", "bob"]
