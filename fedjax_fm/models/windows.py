"""Attention that sees only the last tokens, in all layers or in some.

References:
  Beltagy et al., 2020, arXiv 2004.05150; as Mistral and Qwen have it: Jiang et al.,
  2023, arXiv 2310.06825, section 2.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.models.virtual_tokens import seen_by_all

KINDS = ("full_attention", "sliding_attention")


class AttentionMask(NamedTuple):
    """The masks of a stack of layers: which token sees which.

    Attributes:
      plain: of layers without a window, or of all layers where they are alike; bool,
        broadcast to [B, heads, T, S]. `Texts` where attention goes by texts.
      sliding: of layers with a window, where there are both kinds; else None.
    """

    plain: Any
    sliding: jax.Array | None

    def of_layer(self, windowed: jax.Array | None) -> Any:
        """The mask of one layer.

        Args:
          windowed: bool[], whether it has a window; None where all layers are alike.
        """
        if self.sliding is None or windowed is None:
            return self.plain
        return jnp.where(windowed, self.sliding, self.plain)


def masks_of(
    seen: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    window: int | None,
    windowed: Sequence[bool] | None,
    n_before: int = 0,
) -> AttentionMask:
    """The masks of all layers.

    With a window, query i sees key j where `seen` says so and i - j < window. Tokens
    before the text, of a trained prefix, have the numbers -n_before, ..., -1 and slide
    out of the window, too, as cached tokens do in transformers and so in PEFT.

    Args:
      seen: bool, broadcast to [B, heads, T, S]: causal, without padding.
      queries: i32[B, T], the number of each query's token in its text. Padding does not
        count, so that it may lie on either side, or between a prompt and what follows
        it.
      keys: i32[B, S], the number of each key's token, likewise.
      window: tokens that are seen, the query's own among them; None: all.
      windowed: which layers have the window; None: all.
      n_before: p, tokens before the text.

    Returns:
      Masks of S keys without a window, else of p + S.

    References:
      Beltagy et al., 2020, arXiv 2004.05150, section 3.1.

    Example:
      >>> seen, number = jnp.tril(jnp.ones((1, 1, 3, 3), bool)), jnp.arange(3)[None]
      >>> masks_of(seen, number, number, 2, None).plain[0, 0].astype(int).tolist()
      [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    if window is None:
        return AttentionMask(plain=seen, sliding=None)
    distance = queries[:, None, :, None] - keys[:, None, None, :]
    near = seen & (distance < window)
    if n_before:
        before = jnp.arange(n_before, dtype=queries.dtype) - n_before
        also = queries[:, None, :, None] - before < window
        shape = (*near.shape[:-1], n_before)
        near = jnp.concatenate([jnp.broadcast_to(also, shape), near], axis=-1)
        seen = seen_by_all(seen, n_before)
    if windowed is None:
        return AttentionMask(plain=near, sliding=None)
    return AttentionMask(plain=seen, sliding=near)


def windowed_layers(layer_types: Sequence[str] | None) -> tuple[bool, ...] | None:
    """Whether each layer sees the last tokens only.

    Args:
      layer_types: of `checked_windows`.

    Returns:
      One flag a layer; None where all layers are alike.

    Example:
      >>> windowed_layers(["sliding_attention", "full_attention"])
      (True, False)
    """
    kinds = layer_types or ()
    if len(set(kinds)) <= 1:
        return None
    return tuple(kind == "sliding_attention" for kind in kinds)


def window_in_use(window: int | None, layer_types: Sequence[str] | None) -> int | None:
    """The window, None where no layer has it.

    Args:
      window: tokens that are seen; None: all.
      layer_types: of `checked_windows`.

    Example:
      >>> window_in_use(512, ["full_attention"]) is None
      True
    """
    has_none = layer_types is not None and "sliding_attention" not in layer_types
    return None if has_none else window


def checked_windows(
    window: int | None, layer_types: Sequence[str] | None, n_layers: int
) -> None:
    """Checks the window and which layers have it.

    Args:
      window: tokens that are seen; None: all.
      layer_types: "full_attention" or "sliding_attention" for each layer; None: all
        alike.
      n_layers: of the model.

    Raises:
      TypeError, ValueError: no whole number of tokens; not one known kind for each
        layer; layers with a window of no known width.
    """
    if window is not None:
        checks.whole("sliding_window", window, least=1)
    if layer_types is None:
        return
    for kind in layer_types:
        checks.choice("layer_types", kind, KINDS)
    if len(layer_types) != n_layers:
        raise ValueError(
            f"expected layer_types of num_hidden_layers={n_layers} layers, got "
            f"{len(layer_types)}"
        )
    if window is None and "sliding_attention" in layer_types:
        raise ValueError(
            "layer_types has 'sliding_attention', but there is no sliding_window "
            "(use_sliding_window=False?)"
        )
