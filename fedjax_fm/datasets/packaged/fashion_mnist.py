"""Fashion-MNIST: grey pictures of clothes in ten classes.

References:
  Xiao, Rasul, Vollgraf (2017). Fashion-MNIST: a Novel Image Dataset for Benchmarking
  Machine Learning Algorithms. arXiv 1708.07747.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from fedjax_fm.datasets.packaged.columns import object_column
from fedjax_fm.datasets.packaged.sources import opened, provenance
from fedjax_fm.datasets.table import DataFileError, Table

CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker",
    "bag", "ankle boot",
)  # fmt: skip

_FOLDER = "usr/share/datasets/fashion-mnist"
_PARTS = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTES = 8  # the code of the type in an IDX file
_HEADER = 4  # bytes: two zeros, type, number of axes; then 4 for each axis


def load_fashion_mnist(cache: str | Path | None = None) -> Table:
    """Loads 60,000 pictures to train on and 10,000 to test with.

    Args:
      cache: see `sources.cache_folder`.

    Returns:
      A table of columns `image` (object, each a uint8[28, 28] of 0 for the ground to
      255; `np.stack(table["image"])` has them all), `label` (int32, the place in
      `CLASSES`) and `split` (str: train, test; that of the authors).

    Raises:
      MissingArchive: the package is not there; the message says how it is fetched.
      DataFileError: it is not the known one, or not laid out as expected.

    References:
      Xiao, Rasul, Vollgraf (2017), arXiv 1708.07747.

    Example:
      >>> table = load_fashion_mnist()  # doctest: +SKIP
    """
    archive, release = opened("fashion_mnist", cache)
    files = [
        f"{_FOLDER}/{part}-{kind}-ubyte.gz"
        for part in _PARTS.values()
        for kind in ("images-idx3", "labels-idx1")
    ]
    content = archive.read_all(files)
    arrays = [read_idx(content[name], name) for name in files]
    images, labels = np.concatenate(arrays[::2]), np.concatenate(arrays[1::2])
    images.setflags(write=False)
    sizes = [len(array) for array in arrays[1::2]]
    columns = {
        "image": object_column(images),  # pyright: ignore[reportArgumentType]
        "label": labels.astype(np.int32),
        "split": np.repeat(np.array(list(_PARTS)), sizes),
    }
    return Table(columns, provenance("fashion_mnist", release, len(labels), {}))


def read_idx(raw: bytes, name: str) -> np.ndarray:
    """Reads a gzipped IDX file of bytes, the format of MNIST.

    Args:
      raw: the compressed file.
      name: for an error.

    Returns:
      uint8, of the shape that the file says.

    Raises:
      DataFileError: no gzip, another type of numbers, or fewer or more than the shape.

    Example:
      >>> read_idx(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 6])), "toy").tolist()
      [5, 6]
    """
    try:
        data = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError(f"{name}: no whole gzip file ({error})") from error
    if len(data) < _HEADER or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTES:
        raise DataFileError(f"{name}: no IDX file of unsigned bytes")
    axes = data[3]
    start = _HEADER + 4 * axes
    shape = tuple(np.frombuffer(data[_HEADER:start], ">u4").tolist())
    if len(shape) != axes or len(data) - start != math.prod(shape):
        raise DataFileError(
            f"{name}: expected {math.prod(shape)} numbers for the shape {shape}, got "
            f"{len(data) - start}"
        )
    return np.frombuffer(data[start:], np.uint8).reshape(shape)
