"""Visual prompt tuning: trained tokens among those of an image.

References:
  Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim (2022). Visual Prompt Tuning. arXiv
  2203.12119.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.checks import choice, real, whole
from fedjax_fm.models.randomness import dropout
from fedjax_fm.models.stacked import Segments
from fedjax_fm.peft.layers import stacks
from fedjax_fm.peft.linear import LinearLayer, linear_shape, width_of
from fedjax_fm.peft.method import Method, head_paths
from fedjax_fm.peft.patterns import HEADS, check_names, check_targets, matches
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import (
    Wrapper,
    get_module,
    named_modules,
    plain_names,
    replace_module,
)


class VisualPrompt(Wrapper):
    """Adds p tokens behind the class token, runs a module, and removes them again.

    Args:
      base: maps hidden states [B, T, d] to the same shape.
      prompt: f32[..., p, d], with a leading axis for the layers of a stack.
      rate: of dropout on the tokens.
      stacked_layers: number of these layers; None outside of stacks.
    """

    def __init__(
        self, base: Any, prompt: jax.Array, rate: float, stacked_layers: int | None
    ):
        self.base, self.rate = base, rate
        self.prompt = nnx.Param(prompt)
        if stacked_layers is not None:
            self.stacked_layers = stacked_layers

    def __call__(self, hidden: jax.Array, *context: Any) -> jax.Array:
        """[B, 1 + N, d] -> [B, 1 + N, d]."""
        if any(extra is not None for extra in context):
            raise ValueError(
                "visual prompts go into encoders whose layers see all tokens; "
                "this one is given a mask"
            )
        shape = (hidden.shape[0], *self.prompt.shape)
        tokens = jnp.broadcast_to(self.prompt[...], shape).astype(hidden.dtype)
        tokens = dropout(tokens, self.rate, place=0)
        n_tokens = tokens.shape[1]
        longer = jnp.concatenate([hidden[:, :1], tokens, hidden[:, 1:]], axis=1)
        out = self.base(longer, *context)
        return jnp.concatenate([out[:, :1], out[:, 1 + n_tokens :]], axis=1)


@refuses_pefts_words
def vpt(
    n_tokens: int,
    mode: Literal["shallow", "deep"] = "deep",
    *,
    dropout: float = 0.1,
    at: str | None = None,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """Visual prompt tuning: trains p tokens behind the class token of an image.

    The sequence in every layer has 1 + N + p tokens. The tokens start uniform within
    sqrt(6 / (patch + d)), which is Xavier's bound for the projection of patches.

    Args:
      n_tokens: p; 0 leaves the model as it is.
      mode: "shallow" adds tokens before the first layer only (equations 4 to 6), p d
        trained numbers. "deep" replaces the tokens before every one of L layers by new
        ones (equations 7 and 8), L p d trained numbers.
      dropout: rate on the tokens; acts only where the model is called with a key.
      at: a regular expression that picks the stack of layers, where a model has several
        (image and text). None: the model has one.
      modules_to_save: modules that are trained in full; by default the head, where the
        model has one.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for a model in
        which there is not exactly one stack of layers inside of an encoder, or one that
        reads text.

    References:
      Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim (2022), arXiv 2203.12119,
      section 3.2.

    Example:
      >>> from fedjax_fm import models, peft
      >>> config = models.ViTConfig(
      ...     hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     intermediate_size=8, image_size=4, patch_size=2, num_channels=1,
      ... )
      >>> model = nnx.eval_shape(  # shapes alone; the weights take no memory
      ...     lambda: models.ViTForImageClassification(config, 3, nnx.Rngs(0))
      ... )
      >>> adapted = peft.apply(model, vpt(5))
      >>> delta = nnx.to_pure_dict(adapted.delta)
      >>> jax.tree.map(jnp.shape, delta["vit"]["encoder"])  # for each of two layers
      {'layer': {'prompt': (2, 5, 8)}}
      >>> sorted(delta)
      ['classifier', 'vit']
    """
    choice("mode", mode, ("shallow", "deep"))
    whole("n_tokens", n_tokens, least=0)
    real("dropout", dropout, least=0, below=1)
    check_names("modules_to_save", modules_to_save)
    if at is not None:
        check_targets("at", at)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        heads = head_paths(model, modules_to_save)
        if n_tokens == 0:
            return heads
        plain, there = plain_names(model), stacks(model)
        found = []
        for stack in there:
            whole_stack = not isinstance(get_module(model, stack), nnx.List | Segments)
            if whole_stack and (at is None or matches(plain(stack), at)):
                found.append(stack)
        if len(found) != 1 or (mode == "shallow" and "." not in found[0]):
            raise ValueError(
                f"expected one stack of layers inside an encoder, got {found}; "
                f"there are {sorted(there)}"
            )
        (path,) = found
        n_layers = there[path]
        _refuse_text(model, path)
        width = width_of(get_module(model, path))
        bound = math.sqrt(6 / (_patch_size(model, width) + width))
        if mode == "shallow":  # around the module that holds the stack
            path = path.rpartition(".")[0]
        shape = (n_tokens, width) if mode == "shallow" else (n_layers, n_tokens, width)
        prompt = jax.random.uniform(
            key, shape, jnp.float32, minval=-bound, maxval=bound
        )
        base = get_module(model, path)
        stacked_layers = n_layers if mode == "deep" else None
        wrapper = VisualPrompt(base, prompt, dropout, stacked_layers)
        replace_module(model, path, wrapper)
        return {(*path.split("."), "prompt")} | heads

    return Method(f"vpt_{mode}", install)


def _refuse_text(model: nnx.Module, path: str) -> None:
    """Raises ValueError where a module above `path` reads text."""
    words = path.split(".")
    paths = [".".join(words[:length]) for length in range(len(words))]
    above = [get_module(model, one) for one in paths]
    readers = [
        type(module).__name__ for module in above if hasattr(module, "vocabulary")
    ]
    if readers:
        raise ValueError(
            f"vpt puts tokens among an image's, but {path} reads text "
            f"({readers[-1]}); use prompt_tuning"
        )


def _patch_size(model: nnx.Module, width: int) -> int:
    """Numbers in a patch, by the layer that projects patches; else the width."""
    sizes = [
        linear_shape(layer)[-2]
        for path, layer in named_modules(model)
        if isinstance(layer, LinearLayer) and "patch" in path
    ]
    return sizes[0] if sizes else width
