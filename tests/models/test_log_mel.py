"""Spectrograms beside transformers' feature extractor, and closed forms."""

import numpy as np
import pytest

from fedjax_fm import models
from fedjax_fm.models.log_mel import RATE, mel_bands

transformers = pytest.importorskip("transformers")
RANDOM = np.random.default_rng(0)


def sounds() -> list[np.ndarray]:
    """Noise, a tone in noise, a click, silence, and one that is longer than a window."""
    times = np.arange(2 * RATE) / RATE
    tone = 0.5 * np.sin(2 * np.pi * 440 * times) + 1e-3 * RANDOM.normal(size=2 * RATE)
    click = np.zeros(1000)
    click[500] = 1
    noise, longer = (0.1 * RANDOM.normal(size=n) for n in (5000, 31 * RATE))
    found = [noise, tone, click, np.zeros(10), longer]
    return [sound.astype(np.float32) for sound in found]


@pytest.mark.parametrize("bins", [80, 128])
def test_bands_are_those_of_transformers(bins):
    from transformers.audio_utils import mel_filter_bank

    expected = mel_filter_bank(
        num_frequency_bins=201,
        num_mel_filters=bins,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    np.testing.assert_allclose(mel_bands(bins), expected.T, atol=1e-12)


@pytest.mark.parametrize(("bins", "seconds"), [(80, 30), (128, 30), (80, 3), (80, 1.5)])
def test_whole_and_short_windows_equal_transformers(bins, seconds):
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    length = int(seconds * RATE)
    given = sounds()
    padded = np.zeros((len(given), length))
    for row, sound in zip(padded, given, strict=True):
        row[: len(sound)] = sound[:length]
    found = models.log_mel(given, seconds=seconds, bins=bins)
    assert found.dtype == np.float32
    # Both compute in f64 here.
    expected = extractor._np_extract_fbank_features(padded, "cpu")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # By torch, in f32, which has fewer digits where a place is far from the loudest.
    how = {"max_length": length, "sampling_rate": RATE, "return_tensors": "np"}
    in_f32 = extractor(given, **how).input_features
    np.testing.assert_allclose(found, in_f32, atol=2e-3)
    assert np.abs(found - in_f32).mean() < 1e-5


def test_sound_at_another_rate_is_the_same_sound():
    times = np.arange(8000) / 8000
    tone = np.sin(2 * np.pi * 300 * times)
    found = models.resampled(tone, 8000)
    expected = np.sin(2 * np.pi * 300 * np.arange(RATE) / RATE)
    assert found.dtype == np.float32
    # The filter rings at both ends.
    np.testing.assert_allclose(found[400:-400], expected[400:-400], atol=2e-3)
    same = models.resampled(expected.astype(np.float32), RATE)
    np.testing.assert_allclose(same, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rate": 8000}, r"expected rate=16000 .*got rate=8000; models\.resampled"),
        ({"seconds": 0.005}, "multiple of 0.01, a frame, got seconds=0.005"),
        ({"seconds": 0}, "seconds"),
        ({"bins": 0}, "bins"),
    ],
)
def test_windows_that_are_none(how, message):
    with pytest.raises(ValueError, match=message):
        models.log_mel([np.zeros(100)], **how)


def test_what_is_no_sound():
    for sound in (np.zeros((2, 100)), np.zeros(100, np.int16)):
        with pytest.raises(ValueError, match=r"expected sound 1 as samples f\[n\]"):
            models.log_mel([np.zeros(100), sound], seconds=1)
    with pytest.raises(ValueError, match="sound 0 has samples that are no numbers"):
        models.log_mel([np.array([0.0, np.nan])], seconds=1)
    with pytest.raises(ValueError, match="rate"):
        models.resampled(np.zeros(100), 0)
    assert models.log_mel([], seconds=1).shape == (0, 80, 100)
