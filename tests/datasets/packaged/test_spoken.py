"""Prompts of a telephone: small packages, damaged sound, and the real ones."""

import io
import wave

import numpy as np
import pytest
from small_archives import needs, register

from fedjax_fm.datasets import load_spoken_numbers
from fedjax_fm.datasets.packaged.spoken import NUMBERS, VOICES, read_wav
from fedjax_fm.datasets.table import DataFileError

FOLDER = "usr/share/asterisk/sounds"


def wav(samples, rate=8000, channels=1):
    file = io.BytesIO()
    samples = np.asarray(samples)
    kind = f"<i{samples.dtype.itemsize}"
    with wave.open(file, "wb") as out:
        out.setparams((channels, samples.dtype.itemsize, rate, 0, "NONE", ""))
        out.writeframes(samples.astype(kind).tobytes())
    return file.getvalue()


def sound_of(language, number):
    """As long as the number says, as loud as the language."""
    loud = 1000 * (1 + list(VOICES).index(language))
    return np.full(10 + number, loud, np.int16)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    for language, voice in VOICES.items():
        members = {
            f"{FOLDER}/{voice}/digits/{number}.wav": wav(sound_of(language, number))
            for number in reversed(NUMBERS)
        }
        members[f"{FOLDER}/{voice}/digits/oh.wav"] = b"not read"
        members[f"{FOLDER}/{voice}/7.wav"] = b"not read"
        register(monkeypatch, tmp_path, f"spoken_{language}", members)


@pytest.mark.usefixtures("toy")
def test_small_packages():
    table = load_spoken_numbers(["ru", "en"])
    assert len(table) == 2 * 28
    assert table["language"].tolist() == ["ru"] * 28 + ["en"] * 28
    assert set(table["voice"][:28]) == {VOICES["ru"]}
    assert set(table["split"]) == {"test"}
    assert set(table["rate"]) == {8000}
    for row in range(len(table)):
        number, language = int(table["number"][row]), str(table["language"][row])
        assert NUMBERS[table["label"][row]] == number
        expected = sound_of(language, number) / 32768
        np.testing.assert_array_equal(table["sound"][row], expected.astype("f"))
    whole = load_spoken_numbers()
    assert len(whole) == 140
    assert whole.provenance["sha256"] != table.provenance["sha256"]
    assert whole.provenance["kind"] == "real"
    for languages in ([], ["en", "en"], ["de"]):
        with pytest.raises(ValueError, match="expected different languages of"):
            load_spoken_numbers(languages)


def test_a_package_without_a_number(monkeypatch, tmp_path):
    members = {f"{FOLDER}/{VOICES['it']}/digits/1.wav": wav(np.zeros(9, np.int16))}
    register(monkeypatch, tmp_path, "spoken_it", members)
    with pytest.raises(DataFileError, match=r"27 of 28 members are missing"):
        load_spoken_numbers(["it"])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"no sound", r"toy: no WAV file"),
        (b"", r"toy: no WAV file"),
        (wav(np.zeros(8, np.int16))[:-4], "expected 8 samples, got 6"),
        (wav(np.zeros(8, np.int32)), "got 1 of 32 bits at 8000 Hz"),
        (wav(np.zeros(8, np.int16), channels=2), "got 2 of 16 bits"),
    ],
    ids=["no wav", "empty", "cut", "32 bits", "stereo"],
)
def test_files_that_are_damaged(raw, message):
    with pytest.raises(DataFileError, match=message):
        read_wav(raw, "toy")


def test_the_real_ones():
    for language in VOICES:
        needs(f"spoken_{language}")
    table = load_spoken_numbers()
    assert len(table) == 140
    seconds = [len(sound) / 8000 for sound in table["sound"]]
    assert 0.2 < min(seconds) < max(seconds) < 3
    assert all(np.abs(sound).max() > 0.05 for sound in table["sound"])
