"""A transformer over codes of frames: one over frames, one over the codes of a frame.

A frame of sound has Q codes, of a residual quantiser. The global transformer reads the
frames before this one, each the sum of its codes' embeddings; the local transformer adds
what it says to the codes of this frame that are there already. The cost is that of T
frames and of Q codes, not of T Q tokens.

References:
  Yang et al., 2023, UniAudio: An Audio Foundation Model Toward Universal Audio
  Generation, arXiv 2310.00704 (the multi-scale transformer); sums of embeddings and tied
  tables are as in ESPnet's implementation of it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.models.bert import layer_norm
from fedjax_fm.models.clip import CLIPEncoder, CLIPTextConfig
from fedjax_fm.models.randomness import randomness


@dataclass(frozen=True)
class MultiScaleConfig:
    """A multi-scale transformer's sizes.

    Attributes:
      n_codes: K, entries of each of the quantiser's tables.
      n_books: Q, codes of a frame.
      hidden_size: d, width of both transformers.
      num_attention_heads: heads of both, a divisor of d.
      intermediate_size: width inside the feed-forward networks.
      global_layers: over frames.
      local_layers: over the codes of a frame.
      max_frames: positions, the longest sound.
      layer_norm_eps: what layer normalisation adds to the variance.

    Raises:
      TypeError, ValueError: sizes below one, or heads that do not divide the width.

    Example:
      >>> MultiScaleConfig(hidden_size=64).tower(2).num_hidden_layers
      2
    """

    n_codes: int = 1024
    n_books: int = 3
    hidden_size: int = 512
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    global_layers: int = 6
    local_layers: int = 2
    max_frames: int = 1500
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        for name in self.__dataclass_fields__:
            if name != "layer_norm_eps":
                checks.whole(name, getattr(self, name), least=1)
        self.tower(1)

    def tower(self, layers: int) -> CLIPTextConfig:
        """The sizes of pre-norm layers of this width.

        Args:
          layers: how many.
        """
        return CLIPTextConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=self.num_attention_heads,
            hidden_act="gelu",
            layer_norm_eps=self.layer_norm_eps,
        )


class MultiScaleLM(nnx.Module):
    """Predicts every code of a frame from the frames before it and its codes so far.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations; logits are f32.

    References:
      Yang et al., 2023, arXiv 2310.00704.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.MultiScaleConfig(
      ...     n_codes=7, n_books=3, hidden_size=8, num_attention_heads=2,
      ...     intermediate_size=16, global_layers=1, local_layers=1, max_frames=5,
      ... )
      >>> def run(codes):
      ...     return models.MultiScaleLM(config, nnx.Rngs(0))(codes)
      >>> codes = jnp.ones((2, 4, 3), jnp.int32)
      >>> jax.eval_shape(run, codes).shape  # traced, not computed
      (2, 4, 3, 7)
    """

    def __init__(
        self, config: MultiScaleConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        d, init = config.hidden_size, nnx.initializers.normal(0.02)

        def table(rows: int) -> nnx.Embed:
            return nnx.Embed(rows, d, embedding_init=init, param_dtype=dtype, rngs=rngs)

        def layers(n: int) -> CLIPEncoder:
            return CLIPEncoder(config.tower(n), rngs, dtype)

        self.config = config
        self.embed_codes = table(config.n_books * config.n_codes)
        self.embed_frames = table(config.max_frames)
        self.embed_books = table(config.n_books)
        self.start = nnx.Param(init(rngs.params(), (d,), dtype))
        self.global_encoder = layers(config.global_layers)
        self.global_norm = layer_norm(d, config.layer_norm_eps, dtype, rngs)
        self.local_encoder = layers(config.local_layers)
        self.local_norm = layer_norm(d, config.layer_norm_eps, dtype, rngs)

    def __call__(self, codes: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits f32[B, T, Q, K] of all codes, each given those before it.

        Args:
          codes: i32[B, T, Q], in 0..K-1.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.

        Raises:
          ValueError: another number of codes a frame, or more frames than positions.
        """
        self._check(codes)
        with randomness(key):
            embedded = self.embed(codes)  # [B, T, Q, d]
            hidden = self.local(self.frames(embedded), embedded)
        books = self.embed_codes.embedding[...].reshape(
            self.config.n_books, self.config.n_codes, -1
        )
        return jnp.einsum(
            "btqd,qkd->btqk", hidden, books, preferred_element_type=jnp.float32
        )

    def embed(self, codes: jax.Array) -> jax.Array:
        """The embeddings [B, T, Q, d] of codes; each book has its own rows.

        Args:
          codes: i32[B, T, Q].
        """
        first = self.config.n_codes * jnp.arange(self.config.n_books, dtype=jnp.int32)
        return self.embed_codes(codes + first)

    def frames(self, embedded: jax.Array) -> jax.Array:
        """What the global transformer says before each frame, [B, T, d].

        Args:
          embedded: [B, T, Q, d], of `embed`.
        """
        batch, length = embedded.shape[:2]
        start = jnp.broadcast_to(self.start[...], (batch, 1, embedded.shape[-1]))
        before = embedded[:, :-1].sum(axis=2)
        read = jnp.concatenate([start, before], axis=1)
        read = read + self.embed_frames.embedding[...][:length]
        hidden = self.global_encoder(read, _causal(length))
        return self.global_norm(hidden)

    def local(self, frames: jax.Array, embedded: jax.Array) -> jax.Array:
        """What the local transformer says before each code, [B, T, Q, d].

        Args:
          frames: [B, T, d], of `frames`.
          embedded: [B, T, Q, d], of `embed`.
        """
        batch, length, n_books, d = embedded.shape
        earlier = jnp.pad(embedded[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
        read = frames[:, :, None] + earlier + self.embed_books.embedding[...]
        flat = read.reshape(batch * length, n_books, d)
        hidden = self.local_encoder(flat, _causal(n_books))
        return self.local_norm(hidden).reshape(embedded.shape)

    def _check(self, codes: jax.Array) -> None:
        """Refuses codes of another quantiser, or of too long a sound."""
        config, shape = self.config, codes.shape
        fits = len(shape) == 3 and shape[2] == config.n_books
        if not fits or not 0 < shape[1] <= config.max_frames:
            raise ValueError(
                f"expected codes [B, T, {config.n_books}], T at most max_frames="
                f"{config.max_frames}, got {list(shape)}"
            )


def _causal(length: int) -> jax.Array:
    """bool[1, 1, T, T]: each sees itself and what is before it."""
    return jnp.tril(jnp.ones((1, 1, length, length), bool))
