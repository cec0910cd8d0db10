"""Numbers that four people say in five languages, from prompts of a telephone system.

One recording of each number in each language: too few to train on, and meant to test
what was trained on other speech. The English and the Spanish voice are one person.

References:
  Digium. Asterisk Core Sounds 1.6.1, CC BY-SA 3.0, the Russian ones CC BY 3.0.
"""

from __future__ import annotations

import hashlib
import io
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedjax_fm.datasets.packaged.columns import object_column
from fedjax_fm.datasets.packaged.sources import SOURCES, opened
from fedjax_fm.datasets.table import DataFileError, Table

# In digits; the words that all five packages have, all of them one word or two.
NUMBERS = (*range(21), 30, 40, 50, 60, 70, 80, 90)
# language: the folder of its voice
VOICES = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}
_FOLDER = "usr/share/asterisk/sounds"
_WIDTH = 2  # bytes of a sample
_LARGEST = 2**15  # of a sample


def load_spoken_numbers(
    languages: Sequence[str] = tuple(VOICES), cache: str | Path | None = None
) -> Table:
    """Loads one recording of each of `NUMBERS` in each language.

    Args:
      languages: some of `VOICES`.
      cache: see `sources.cache_folder`.

    Returns:
      A table of columns `sound` (object, each samples f32[n] in [-1, 1]), `rate`
      (int32, samples a second: 8,000), `number` (int32), `label` (int32, its place in
      `NUMBERS`), `language`, `voice` (str) and `split` (str: all are "test").

    Raises:
      ValueError: no languages, the same twice, or one that there is not.
      MissingArchive: a package is not there; the message says how it is fetched.
      DataFileError: it is not the known one, or not laid out as expected.

    Example:
      >>> table = load_spoken_numbers(["it"])  # doctest: +SKIP
      >>> len(table)  # doctest: +SKIP
      28
    """
    chosen = list(languages)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(VOICES):
        raise ValueError(
            f"expected different languages of {list(VOICES)}, got languages={chosen}"
        )
    sounds, rates, releases = [], [], {}
    for language in chosen:
        archive, releases[language] = opened(f"spoken_{language}", cache)
        folder = f"{_FOLDER}/{VOICES[language]}/digits"
        names = [f"{folder}/{number}.wav" for number in NUMBERS]
        for name, raw in archive.read_all(names).items():
            sound, rate = read_wav(raw, name)
            sounds.append(sound)
            rates.append(rate)
    n = len(NUMBERS)
    columns = {
        "sound": object_column(sounds),
        "rate": np.array(rates, np.int32),
        "number": np.tile(np.array(NUMBERS, np.int32), len(chosen)),
        "label": np.tile(np.arange(n, dtype=np.int32), len(chosen)),
        "language": np.repeat(chosen, n),
        "voice": np.repeat([VOICES[language] for language in chosen], n),
        "split": np.repeat("test", len(sounds)),
    }
    sources = [SOURCES[f"spoken_{language}"] for language in chosen]
    hashes = "".join(release.sha256 for release in releases.values())
    provenance = {
        "name": "spoken_numbers",
        "kind": "real",
        "citation": sources[0].citation,
        "licence": "; ".join(sorted({source.licence for source in sources})),
        "sha256": hashlib.sha256(hashes.encode()).hexdigest(),
        "rows": len(sounds),
        "dropped": {},
        "package": {one: release.version for one, release in releases.items()},
    }
    return Table(columns, provenance)


def read_wav(raw: bytes, name: str) -> tuple[np.ndarray, int]:
    """Reads a WAV file of one channel and 16 bits.

    Args:
      raw: the file.
      name: for an error.

    Returns:
      (samples f32[n] in [-1, 1), samples a second).

    Raises:
      DataFileError: no whole WAV file, several channels, or other numbers.

    Example:
      >>> file = io.BytesIO()
      >>> with wave.open(file, "wb") as out:
      ...     out.setparams((1, 2, 8000, 0, "NONE", ""))
      ...     out.writeframes(np.array([0, 16384], "<i2").tobytes())
      >>> samples, rate = read_wav(file.getvalue(), "toy")
      >>> samples.tolist(), rate
      ([0.0, 0.5], 8000)
    """
    try:
        with wave.open(io.BytesIO(raw)) as file:
            channels, width, rate, n, *_ = file.getparams()
            frames = file.readframes(n)
    except (wave.Error, EOFError, RuntimeError) as error:  # of a chunk outside
        why = str(error) or "it ends too early"
        raise DataFileError(f"{name}: no WAV file ({why})") from error
    if (channels, width) != (1, _WIDTH) or rate < 1:
        raise DataFileError(
            f"{name}: expected one channel of 16 bits, got {channels} of {8 * width} "
            f"bits at {rate} Hz"
        )
    if len(frames) != n * width:
        raise DataFileError(f"{name}: expected {n} samples, got {len(frames) // width}")
    samples = np.frombuffer(frames, "<i2").astype(np.float32) / _LARGEST
    return samples, rate
