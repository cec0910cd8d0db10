"""Real data sets that need no download.

Two are shipped with the package and checked byte for byte when they are loaded. One is
read from the Python packages that are installed.
"""

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
