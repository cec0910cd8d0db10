"""Data quality at the clients: filters, and near duplicates within and across clients.

`filter_texts` is what a client does alone. `near_duplicates` is for texts in one place;
across clients each sends `band_keys`, and `keep_one` is what the server answers.
"""

from fedjax_fm.datasets.quality.across import AcrossClients, band_keys, keep_one
from fedjax_fm.datasets.quality.filters import Filtered, filter_texts
from fedjax_fm.datasets.quality.lines import Corrected, correct_lines
from fedjax_fm.datasets.quality.minhash import MinHash, similarities
from fedjax_fm.datasets.quality.near import Duplicates, near_duplicates
from fedjax_fm.datasets.quality.rules import INSTRUCTION, WEB, Rules, first_reason
from fedjax_fm.datasets.quality.shingles import jaccard, normalised, shingles

__all__ = [
    "INSTRUCTION",
    "WEB",
    "AcrossClients",
    "Corrected",
    "Duplicates",
    "Filtered",
    "MinHash",
    "Rules",
    "band_keys",
    "correct_lines",
    "filter_texts",
    "first_reason",
    "jaccard",
    "keep_one",
    "near_duplicates",
    "normalised",
    "shingles",
    "similarities",
]
