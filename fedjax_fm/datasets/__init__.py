"""Data sets: real ones that need no download, and named benchmarks.

Two are shipped with the package and checked byte for byte when they are loaded. One is
read from the Python packages that are installed. `load` knows the benchmarks of the
literature by name.
"""

from fedjax_fm.datasets.docstrings import load_docstrings
from fedjax_fm.datasets.named import (
    Benchmark,
    NamedData,
    describe,
    list_names,
    load,
)
from fedjax_fm.datasets.sentiment import load_sentiment
from fedjax_fm.datasets.shakespeare import load_shakespeare
from fedjax_fm.datasets.table import DataFileError, Table

__all__ = [
    "Benchmark",
    "DataFileError",
    "NamedData",
    "Table",
    "describe",
    "list_names",
    "load",
    "load_docstrings",
    "load_sentiment",
    "load_shakespeare",
]
