"""Numbers that a synthesiser says, in any number of voices: no speech of people.

The program espeak-ng (`apt-get install espeak-ng`, GPL-3) is called as it is; its voices
are formants by rule, and its variants change pitch, timbre and breath. What is learned
on them says nothing of real speech by itself: see `load_spoken_numbers` for some.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedjax_fm import checks
from fedjax_fm.datasets.hashed import splits_of
from fedjax_fm.datasets.packaged.columns import object_column
from fedjax_fm.datasets.packaged.spoken import NUMBERS, VOICES, read_wav
from fedjax_fm.datasets.table import Table

PROGRAM = "espeak-ng"
# Variants of every language's voice that sound like people more than like machines.
VARIANTS = (
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5",
    "Andy", "Annie", "Denis", "Gene", "Hugo", "Lee", "Mario", "anika", "john", "linda",
    "zac",
)  # fmt: skip
_MOST_SECONDS = 60  # of one call


def speak(
    text: str, voice: str, *, speed: int = 160, program: str = PROGRAM
) -> tuple[np.ndarray, int]:
    """What espeak-ng says.

    Args:
      text: numbers are read in the voice's language.
      voice: a language, or one with a variant: "es", "es+f3".
      speed: words a minute, 80 to 450.
      program: its name or path.

    Returns:
      (samples f32[n] in [-1, 1), samples a second: 22,050).

    Raises:
      FileNotFoundError: the program is not there; says how to install it.
      ValueError: it does not know the voice, or says nothing.

    Example:
      >>> sound, rate = speak("7", "es+f3")  # doctest: +SKIP
    """
    checks.text("text", text)
    checks.text("voice", voice)
    checks.whole("speed", speed, least=80, most=450)
    found = shutil.which(program)
    if found is None:
        raise FileNotFoundError(
            f"{program} is not installed, which says the words: apt-get install "
            "espeak-ng"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        words = ["-v", voice, "-s", str(speed), "-w", str(path), "--", text]
        done = subprocess.run(
            [found, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_MOST_SECONDS,
        )
        if done.returncode or not path.is_file():
            said = " ".join((done.stderr or done.stdout).split())
            raise ValueError(
                f"{program} does not say {text!r} with voice={voice!r}: {said}"
            )
        return read_wav(path.read_bytes(), f"{program} {voice}")


def make_spoken_numbers(
    languages: Sequence[str] = tuple(VOICES),
    variants: Sequence[str] = VARIANTS,
    *,
    speeds: Sequence[int] = (160,),
    numbers: Sequence[int] = NUMBERS,
    program: str = PROGRAM,
) -> Table:
    """Makes one recording of each number by each voice at each speed.

    Args:
      languages: that espeak-ng has.
      variants: of voices; a voice is a language and a variant.
      speeds: words a minute.
      numbers: some of `NUMBERS`.
      program: its name or path.

    Returns:
      A table of the columns of `load_spoken_numbers`, with a voice such as "es+f3" and
      the split of the variant, in all languages alike.

    Raises:
      FileNotFoundError: espeak-ng is not installed.
      ValueError: nothing to say, or a number that is none of `NUMBERS`.

    Example:
      >>> table = make_spoken_numbers(["en"], ["m1", "f1"])  # doctest: +SKIP
      >>> table.provenance["kind"]  # doctest: +SKIP
      'synthetic'
    """
    unknown = [number for number in numbers if number not in NUMBERS]
    if unknown:
        raise ValueError(f"expected numbers of {list(NUMBERS)}, got {unknown[0]}")
    asked = [
        (language, variant, speed, number)
        for language in languages
        for variant in variants
        for speed in speeds
        for number in numbers
    ]
    if not asked:
        raise ValueError(
            "expected at least one of languages, variants, speeds and numbers"
        )
    said = [
        speak(str(number), f"{language}+{variant}", speed=speed, program=program)
        for language, variant, speed, number in asked
    ]
    spoken = np.array([number for *_, number in asked], np.int32)
    columns = {
        "sound": object_column([sound for sound, _ in said]),
        "rate": np.array([rate for _, rate in said], np.int32),
        "number": spoken,
        "label": np.searchsorted(NUMBERS, spoken).astype(np.int32),
        "language": np.array([language for language, *_ in asked]),
        "voice": np.array([f"{one}+{variant}" for one, variant, *_ in asked]),
        "split": splits_of([variant for _, variant, *_ in asked]),
    }
    provenance = {
        "name": "made_numbers",
        "kind": "synthetic",
        "citation": "espeak-ng contributors. eSpeak NG text-to-speech.",
        "licence": "none on the sound; the program is under GPL-3",
        "program": _version(program),
        "rows": len(said),
        "dropped": {},
    }
    return Table(columns, provenance)


def _version(program: str) -> str:
    """The first line that the program says of itself, without where its files lie."""
    words = [str(shutil.which(program)), "--version"]
    done = subprocess.run(words, capture_output=True, encoding="utf-8")
    return done.stdout.partition("  Data at")[0].strip()
