"""Rotary position embedding in Hugging Face's layout.

A head's first half is rotated against its second half.

Su et al., 2021, arXiv 2104.09864. The paper (and GGUF) pairs neighbours (2i, 2i + 1)
instead of halves (i, i + d / 2); weights made for one layout give fluent nonsense in
the other, see `gguf_file.unpermute`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def count_positions(segments: jax.Array) -> jax.Array:
    """i32[B, T]: the number of real tokens of the same text before each.

    Padding (read by nobody) gets any.

    Args:
      segments: [B, T]; 0 for padding, else the number of the text that a token belongs
        to, rising within a row. An attention mask of zeros and ones is the case of one
        text a row.
    """
    segments = segments.astype(jnp.int32)
    count = jnp.cumsum(segments > 0, axis=-1, dtype=jnp.int32)
    latest = jax.lax.cummax(segments, axis=segments.ndim - 1)
    begins = (
        segments > jnp.pad(latest, [(0, 0)] * (segments.ndim - 1) + [(1, 0)])[..., :-1]
    )
    before = jax.lax.cummax(jnp.where(begins, count - 1, 0), axis=segments.ndim - 1)
    return jnp.maximum(count - 1 - before, 0)


class Llama3Scaling(NamedTuple):
    """How Llama 3.1 stretches its frequencies to longer contexts.

    Rope type "llama3", fields as in `config.json`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def apply(self, frequencies: np.ndarray) -> np.ndarray:
        """Frequencies f32[n]: long waves divided by `factor`, short ones kept, those
        between mixed.
        """
        waves = 2 * np.pi / frequencies  # tokens
        share = self.original_max_position_embeddings / waves - self.low_freq_factor
        kept = np.clip(share / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return ((1 - kept) * frequencies / self.factor + kept * frequencies).astype(
            np.float32
        )


class FrequencyFactors(NamedTuple):
    """What every frequency is divided by.

    Rope type "linear", and the tensor `rope_freqs.weight` of GGUF files.
    """

    factors: tuple[
        float, ...
    ]  # one for each of the head_dim / 2 frequencies, or one for all

    def apply(self, frequencies: np.ndarray) -> np.ndarray:
        """Frequencies f32[n], divided.

        Raises:
          ValueError: there are neither one nor n factors.
        """
        if len(self.factors) not in (1, len(frequencies)):
            raise ValueError(
                f"expected 1 or {len(frequencies)} frequency factors, got {len(self.factors)}"
            )
        return frequencies / np.asarray(self.factors, np.float32)


RotaryScaling = Llama3Scaling | FrequencyFactors


def rotary_tables(
    positions: jax.Array,
    head_dim: int,
    theta: float,
    scaling: RotaryScaling | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) f32[B, T, head_dim / 2] of the angles position * theta^(-2i / head_dim).

    Positions i32[B, T].
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.float32(theta) ** exponents
    if scaling is not None:
        frequencies = scaling.apply(frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """X [B, T, heads, head_dim] turned by its position, in f32, returned in x's dtype."""
    cos, sin = (table[:, :, None, :] for table in tables)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)
