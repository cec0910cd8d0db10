"""IDX files: small ones, damaged ones, and the real pictures."""

import gzip

import numpy as np
import pytest
from small_archives import needs, register

from fedjax_fm.datasets import load_fashion_mnist
from fedjax_fm.datasets.packaged.fashion_mnist import CLASSES, read_idx
from fedjax_fm.datasets.table import DataFileError

FOLDER = "usr/share/datasets/fashion-mnist"


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def test_a_small_package(monkeypatch, tmp_path):
    random = np.random.default_rng(0)
    images = {
        part: random.integers(0, 256, (n, 28, 28))
        for part, n in (("train", 5), ("t10k", 3))
    }
    labels = {"train": np.array([0, 9, 1, 2, 3]), "t10k": np.array([4, 5, 6])}
    members = {}
    for part in ("t10k", "train"):
        members[f"{FOLDER}/{part}-labels-idx1-ubyte.gz"] = idx(labels[part])
        members[f"{FOLDER}/{part}-images-idx3-ubyte.gz"] = idx(images[part])
    register(monkeypatch, tmp_path, "fashion_mnist", members)
    table = load_fashion_mnist()
    expected = np.concatenate([images["train"], images["t10k"]])
    assert np.array_equal(np.stack(table["image"]), expected)
    assert table["image"][0].dtype == np.uint8
    assert table["label"].tolist() == [0, 9, 1, 2, 3, 4, 5, 6]
    assert table["split"].tolist() == ["train"] * 5 + ["test"] * 3
    with pytest.raises(ValueError, match="read-only"):
        table["image"][0][0] = 1


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 4), (0,)])
def test_any_shape(shape):
    array = np.arange(int(np.prod(shape)), dtype=np.uint8).reshape(shape)
    assert np.array_equal(read_idx(idx(array), "toy"), array)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"no gzip", "toy: no whole gzip file"),
        (idx(np.zeros(50))[:-9], "toy: no whole gzip file"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0"), "toy: no IDX file of unsigned bytes"),
        (gzip.compress(b""), "toy: no IDX file of unsigned bytes"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03\1\2"), r"expected 3 numbers for the shape \(3,\), got 2"),
        (gzip.compress(b"\0\0\x08\x02\0\0\0\x03"), "for the shape"),
    ],
    # gzip writes the time into its files, and workers must agree on names.
    ids=["no gzip", "cut", "floats", "empty", "too short", "no sizes"],
)  # fmt: skip
def test_files_that_are_damaged(raw, message):
    with pytest.raises(DataFileError, match=message):
        read_idx(raw, "toy")


def test_the_real_one():
    needs("fashion_mnist")
    table = load_fashion_mnist()
    for split, count in (("train", 6000), ("test", 1000)):
        labels = table["label"][table["split"] == split]
        assert np.bincount(labels).tolist() == [count] * len(CLASSES)
    images = np.stack(table["image"])
    assert images.shape == (70_000, 28, 28)
    assert images.max() == 255
    # Means of the pixels that are widely published, of the 60,000.
    assert images[:60_000].mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert images[:60_000].std() / 255 == pytest.approx(0.3530, abs=1e-4)
