"""Sound as Whisper reads it: the logarithm of its power in bands, a frame every 10 ms.

References:
  Radford et al., 2022, Robust Speech Recognition via Large-Scale Weak Supervision, arXiv
  2212.04356, section 2.2; the bands are those of Slaney's Auditory Toolbox, 1998.
"""

import functools
import math
from collections.abc import Iterable

import numpy as np

from fedjax_fm import checks

RATE = 16_000  # samples a second
HOP = 160  # samples from one frame to the next
FRAMES = RATE // HOP  # a second
_SPAN = 400  # samples of a frame, the length of its Fourier transform
_LEAST_POWER = 1e-10
_DECADES = 8.0  # below the loudest place of a window, where all else is cut off
_LINEAR_TO = 1000.0  # Hz, up to which bands are equally wide
_LINEAR_STEP = 200 / 3  # Hz
_GROWTH = math.log(6.4) / 27  # of the logarithm, a band


def log_mel(
    sounds: Iterable[np.ndarray],
    *,
    seconds: float = 30.0,
    bins: int = 80,
    rate: int = RATE,
) -> np.ndarray:
    """Windows of sound as log-mel spectrograms.

        x = max(log10(mel power), its maximum over the window - 8);   (x + 4) / 4

    What transformers' `WhisperFeatureExtractor` gives. Sounds are cut at the window's
    end or filled with silence. Whisper was trained on windows of 30 seconds; a shorter
    one is cheaper and has the first positions of the encoder.

    Args:
      sounds: one array of samples f[n] each, mono, in [-1, 1].
      seconds: of a window, a multiple of 0.01.
      bins: M, bands of a frame; 80, and 128 for Whisper large-v3.
      rate: samples a second; only 16,000 is read, see `resampled`.

    Returns:
      f32[sounds, M, 100 seconds].

    Raises:
      ValueError: another rate, no whole number of frames, sounds that are no arrays of
        one dimension, hold what is no number, or have the range of integers.

    References:
      Radford et al., 2022, arXiv 2212.04356, section 2.2.

    Example:
      >>> tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
      >>> found = log_mel([tone, tone[:800]], seconds=0.5)
      >>> found.shape, int(found[0, :, 20].argmax())  # the band around 440 Hz
      ((2, 80, 50), 11)
    """
    checks.whole("bins", bins, least=1)
    checks.real("seconds", seconds, above=0)
    if rate != RATE:
        raise ValueError(
            f"expected rate={RATE} samples a second, got rate={rate}; "
            "models.resampled(sound, rate) changes it"
        )
    n_frames = round(seconds * FRAMES)
    if n_frames < 1 or abs(n_frames - seconds * FRAMES) > 1e-6:
        raise ValueError(
            f"expected seconds as a multiple of {1 / FRAMES}, a frame, got "
            f"seconds={seconds}"
        )
    bands = mel_bands(bins)
    found = [
        _spectrogram(_window(sound, number, n_frames * HOP), bands)
        for number, sound in enumerate(sounds)
    ]
    return np.stack(found) if found else np.zeros((0, bins, n_frames), np.float32)


def resampled(sound: np.ndarray, rate: int) -> np.ndarray:
    """Sound at 16,000 samples a second, by scipy's polyphase filter.

    Args:
      sound: f[n], at `rate`.
      rate: samples a second.

    Returns:
      f32[ceil(16000 n / rate)].

    Raises:
      ValueError: no array of one dimension, or no such rate.

    Example:
      >>> resampled(np.zeros(8000), rate=8000).shape
      (16000,)
    """
    checks.whole("rate", rate, least=1)
    from scipy import signal  # takes half a second to import

    shared = math.gcd(RATE, rate)
    mono = _mono("sound", sound)
    changed = signal.resample_poly(mono, RATE // shared, rate // shared)
    return changed.astype(np.float32)


@functools.cache
def mel_bands(bins: int) -> np.ndarray:
    """Triangular bands of equal area, equally wide in Slaney's mel.

    Bands are 200/3 Hz apart up to 1000 Hz, from there on by a factor of 6.4^(1/27).

    Args:
      bins: M.

    Returns:
      f64[M, 201], the weights of the frequencies 0, 40, ..., 8000 Hz.

    Example:
      >>> mel_bands(80).shape
      (80, 201)
    """
    most = _to_mel(RATE / 2)
    edges = _to_hertz(np.linspace(0, most, bins + 2))  # [M + 2]
    frequencies = np.linspace(0, RATE / 2, _SPAN // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    triangles = np.maximum(0, np.minimum(rising, falling))
    bands = triangles * 2 / (high - low)
    bands.setflags(write=False)
    return bands


def _to_mel(hertz: float) -> float:
    """Slaney's mel of a frequency above 1000 Hz."""
    return _LINEAR_TO / _LINEAR_STEP + math.log(hertz / _LINEAR_TO) / _GROWTH


def _to_hertz(mel: np.ndarray) -> np.ndarray:
    """The frequencies of these mel."""
    knee = _LINEAR_TO / _LINEAR_STEP
    above = _LINEAR_TO * np.exp(_GROWTH * (mel - knee))
    return np.where(mel < knee, _LINEAR_STEP * mel, above)


def _mono(name: str, sound: np.ndarray) -> np.ndarray:
    """One channel of real samples, f64[n]."""
    samples = np.asarray(sound)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(
            f"expected {name} as samples f[n] in [-1, 1], mono, got "
            f"{samples.dtype}{list(samples.shape)}"
        )
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} has samples that are no numbers")
    return samples.astype(np.float64)


def _window(sound: np.ndarray, number: int, length: int) -> np.ndarray:
    """The first samples of a sound, with silence behind them, f64[length]."""
    samples = _mono(f"sound {number}", sound)[:length]
    return np.pad(samples, (0, length - len(samples)))


def _spectrogram(samples: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """f32[M, frames] of one window."""
    around = np.pad(samples, _SPAN // 2, mode="reflect")
    spans = np.lib.stride_tricks.sliding_window_view(around, _SPAN)[:-1:HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_SPAN) / _SPAN)
    power = np.abs(np.fft.rfft(spans * hann)) ** 2  # [frames, 201]
    logarithm = np.log10(np.maximum(bands @ power.T, _LEAST_POWER))
    kept = np.maximum(logarithm, logarithm.max() - _DECADES)
    return ((kept + 4) / 4).astype(np.float32)
