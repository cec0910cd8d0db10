"""Rotary position embedding in Hugging Face's layout.

A head's first half is rotated against its second half. The paper (and GGUF) pairs
neighbours (2i, 2i + 1) instead of halves (i, i + d / 2); weights made for one layout
give fluent nonsense in the other, see `gguf_file.unpermute`.

References:
  Su et al., 2021, arXiv 2104.09864.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def count_positions(segments: jax.Array) -> jax.Array:
    """The number of real tokens of the same text before each token.

    Padding, which no token reads, gets any number.

    Args:
      segments: [B, T]; 0 for padding, else the number of the text that a token belongs
        to, rising within a row. An attention mask of zeros and ones is the case of one
        text a row.

    Returns:
      i32[B, T].

    Example:
      >>> count_positions(jnp.array([[0, 1, 1, 1, 2, 2]])).tolist()
      [[0, 0, 1, 2, 0, 1]]
    """
    segments = segments.astype(jnp.int32)
    count = jnp.cumsum(segments > 0, axis=-1, dtype=jnp.int32)
    latest = jax.lax.cummax(segments, axis=segments.ndim - 1)
    widths = [(0, 0)] * (segments.ndim - 1) + [(1, 0)]
    begins = segments > jnp.pad(latest, widths)[..., :-1]
    before = jax.lax.cummax(jnp.where(begins, count - 1, 0), axis=segments.ndim - 1)
    return jnp.maximum(count - 1 - before, 0)


class Llama3Scaling(NamedTuple):
    """How Llama 3.1 stretches its frequencies to longer contexts: rope type "llama3".

    Fields are named as in `config.json`.

    Attributes:
      factor: what the frequencies of long waves are divided by.
      low_freq_factor: waves longer than the old context divided by this are long.
      high_freq_factor: waves shorter than the old context divided by this stay as they
        are.
      original_max_position_embeddings: the old context, in tokens.

    References:
      Grattafiori et al., 2024, The Llama 3 Herd of Models, arXiv 2407.21783.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm import models
      >>> scaling = models.Llama3Scaling(32.0, 1.0, 4.0, 8192)
      >>> scaling.apply(np.array([1.0, 3.2e-6], np.float32)).tolist()[0]
      1.0
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def apply(self, frequencies: np.ndarray) -> np.ndarray:
        """The stretched frequencies f32[n].

        Those of long waves are divided by `factor`, those of short ones kept, those
        between mixed.

        Args:
          frequencies: f32[n], radians a token.
        """
        waves = 2 * np.pi / frequencies  # tokens
        share = self.original_max_position_embeddings / waves - self.low_freq_factor
        kept = np.clip(share / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        mixed = (1 - kept) * frequencies / self.factor + kept * frequencies
        return mixed.astype(np.float32)


class FrequencyFactors(NamedTuple):
    """What every frequency is divided by.

    It is rope type "linear", and the tensor `rope_freqs.weight` of GGUF files.

    Attributes:
      factors: one for each of the head_dim / 2 frequencies, or one for all.
    """

    factors: tuple[float, ...]

    def apply(self, frequencies: np.ndarray) -> np.ndarray:
        """The divided frequencies f32[n].

        Args:
          frequencies: f32[n], radians a token.

        Raises:
          ValueError: there are neither one nor n factors.

        Example:
          >>> FrequencyFactors((2.0,)).apply(np.ones(3, np.float32)).tolist()
          [0.5, 0.5, 0.5]
        """
        if len(self.factors) not in (1, len(frequencies)):
            raise ValueError(
                f"expected 1 or {len(frequencies)} frequency factors, got "
                f"{len(self.factors)}"
            )
        return frequencies / np.asarray(self.factors, np.float32)


RotaryScaling = Llama3Scaling | FrequencyFactors


def rotary_tables(
    positions: jax.Array,
    head_dim: int,
    theta: float,
    scaling: RotaryScaling | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The cosines and sines of the angles position * theta^(-2i / head_dim).

    Args:
      positions: i32[B, T].
      head_dim: width of a head, even.
      theta: base of the frequencies.
      scaling: stretches them; None: not.

    Returns:
      (cos, sin) f32[B, T, head_dim / 2].

    References:
      Su et al., 2021, arXiv 2104.09864, equation 15.

    Example:
      >>> cos, sin = rotary_tables(jnp.array([[0, 1]]), head_dim=4, theta=1e4)
      >>> cos.shape, sin[0, 0].tolist()
      ((1, 2, 2), [0.0, 0.0])
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.float32(theta) ** exponents
    if scaling is not None:
        frequencies = scaling.apply(frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns queries or keys by their positions, in f32.

    Args:
      x: [B, T, heads, head_dim].
      tables: of `rotary_tables`.

    Returns:
      [B, T, heads, head_dim] in x's dtype.

    References:
      Su et al., 2021, arXiv 2104.09864, equation 34, for halves instead of neighbours.
    """
    cos, sin = (table[:, :, None, :] for table in tables)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
