"""A saved population is whole or not there, whatever its arrays are called."""

import errno

import numpy as np
import pytest

from fedjax_fm import Population

NAMES = [
    "offsets",
    "a/b",
    "../up",
    ".",
    "..",
    "a.b",
    "ümlaut",
    "%41",
    "A",
    "a b",
    "a\\b",
    "a:b*?",
    "arrays",
    "0",
]


def population(names=("x", "y")) -> Population:
    arrays = {name: np.arange(6).reshape(3, 2) + 10 * k for k, name in enumerate(names)}
    return Population.from_arrays(arrays, [0, 1, 3])


@pytest.mark.parametrize("name", NAMES)
def test_an_array_of_any_name_comes_back(name, tmp_path):
    saved = population(("x", name, "b"))
    saved.save(tmp_path / "folder")
    opened = Population.open(tmp_path / "folder")
    assert list(opened.arrays) == ["x", name, "b"]
    for key, array in saved.arrays.items():
        np.testing.assert_array_equal(opened.arrays[key], array)
    assert opened.offsets.tolist() == [0, 1, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_names_that_differ_in_case_only_do_not_share_a_file(tmp_path):
    population(("x", "X", "%58")).save(tmp_path / "folder")
    files = [path.name.lower() for path in (tmp_path / "folder").iterdir()]
    assert len(set(files)) == 5
    assert list(Population.open(tmp_path / "folder").arrays) == ["x", "X", "%58"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    write, calls = np.save, []

    def fails(path, array, **how):
        calls.append(path)
        write(path, array, **how)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", fails)
    with pytest.raises(OSError, match="No space left"):
        population().save(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_file", [True, False])
def test_what_is_there_is_left_as_it_is(is_file, tmp_path):
    target = tmp_path / "folder"
    if is_file:
        target.write_text("mine")
    else:
        target.mkdir()
    with pytest.raises(FileExistsError, match="folder"):
        population().save(target)
    assert target.read_text() == "mine" if is_file else list(target.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_of_plain_files_opens(tmp_path):
    """As `save` wrote it before there was a list of arrays, or as people write it themselves."""
    for name, array in {
        "x": np.arange(3),
        "%41": np.ones(3),
        "offsets": np.array([0, 3]),
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
    assert set(Population.open(tmp_path).arrays) == {"x", "%41"}


def test_a_missing_file_is_named(tmp_path):
    population().save(tmp_path / "folder")
    (tmp_path / "folder" / "y.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"'y'.*y\.npy"):
        Population.open(tmp_path / "folder")


def test_a_foreign_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no offsets\.npy"):
        Population.open(tmp_path)


@pytest.mark.parametrize("damage", ["short", "text", "empty", "pickle"])
@pytest.mark.parametrize("name", ["x", "offsets"])
def test_a_damaged_file_is_named(damage, name, tmp_path):
    population().save(tmp_path / "folder")
    path = tmp_path / "folder" / f"{name}.npy"
    if damage == "pickle":
        np.save(path, np.array([{}, None, None]), allow_pickle=True)
    else:
        path.write_bytes(
            {"short": path.read_bytes()[:-4], "text": b"hello", "empty": b""}[damage]
        )
    with pytest.raises(ValueError, match=rf"{name}\.npy"):
        Population.open(tmp_path / "folder")


def test_a_damaged_list_of_arrays_is_named(tmp_path):
    population().save(tmp_path / "folder")
    for text in ("{", "[]", '{"arrays": {"x": "../x.npy"}}', '{"arrays": 3}'):
        (tmp_path / "folder" / "arrays.json").write_text(text)
        with pytest.raises(ValueError, match=r"arrays\.json"):
            Population.open(tmp_path / "folder")


def test_a_header_that_ends_within_a_bracket_is_told(tmp_path):
    """Numpy reads headers as Python and lets the tokenizer's own error through."""
    folder = tmp_path / "clients"
    Population.from_clients([{"x": np.zeros(2, np.float32)}]).save(folder)
    place = folder / "offsets.npy"
    raw = place.read_bytes()
    place.write_bytes(raw.replace(b"}", b" ", 1))
    with pytest.raises(ValueError, match=r"offsets.npy is no whole array of numbers"):
        Population.open(folder)
