"""The real data that ships with the package, checked byte for byte when it is loaded."""

from fedjax_fm.datasets.docstrings import load_docstrings
from fedjax_fm.datasets.sentiment import load_sentiment
from fedjax_fm.datasets.shakespeare import load_shakespeare
from fedjax_fm.datasets.table import DataFileError, Table

__all__ = [
    "DataFileError",
    "Table",
    "load_docstrings",
    "load_sentiment",
    "load_shakespeare",
]
