"""Visual Prompt Tuning.

Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim, 2022, arXiv 2203.12119. p trained
tokens behind the class token: shallow, before the first layer only (their equations 4
to 6); deep, new ones before every layer in place of what the layer before made of its
own (7, 8). The sequence in every layer has 1 + N + p tokens.
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
    """Puts tokens [..., p, d] behind the class token of hidden [B, 1 + N, d], runs
    `base` and takes them off again.
    """

    def __init__(
        self, base: Any, prompt: jax.Array, rate: float, stacked_layers: int | None
    ):
        self.base, self.rate = base, rate
        self.prompt = nnx.Param(prompt)
        if stacked_layers is not None:
            self.stacked_layers = stacked_layers

    def __call__(self, hidden: jax.Array, *context: Any) -> jax.Array:
        if any(extra is not None for extra in context):
            raise ValueError(
                "visual prompts go into encoders whose layers see all tokens; "
                "this one is given a mask"
            )
        tokens = jnp.broadcast_to(
            self.prompt[...], (hidden.shape[0], *self.prompt.shape)
        ).astype(hidden.dtype)
        tokens = dropout(tokens, self.rate, place=0)
        n_tokens = tokens.shape[1]
        out = self.base(
            jnp.concatenate([hidden[:, :1], tokens, hidden[:, 1:]], axis=1), *context
        )
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
    """Visual prompts of `n_tokens` tokens in a vision transformer.

    Args:
      n_tokens: p; 0 leaves the model as it is.
      mode: "shallow", p d numbers, or "deep", L p d.
      dropout: rate on the prompts; acts only where the model is called with a key.
      at: a regular expression that picks the stack of layers, where a model has several
        (image and text).
      modules_to_save: trained in full beside it; by default the head, where the model has one.

    Prompts start uniform within sqrt(6 / (patch + d)), Xavier's bound for the patch
    projection. "shallow" acts around the module that holds the stack and maps hidden
    states to hidden states.

    Raises:
      ValueError: by `apply`, on a model without one stack of layers to choose, or where
        that stack reads text.
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
        found = [
            p
            for p in there
            if not isinstance(get_module(model, p), nnx.List | Segments)
        ]
        found = [p for p in found if at is None or matches(plain(p), at)]
        if len(found) != 1 or (mode == "shallow" and "." not in found[0]):
            raise ValueError(
                f"expected one stack of layers inside an encoder, got {found}; "
                f"there are {sorted(there)}"
            )
        path, n_layers = found[0], there[found[0]]
        _refuse_text(model, path)
        width = width_of(get_module(model, path))
        bound = math.sqrt(6 / (_patch_size(model, width) + width))
        if mode == "shallow":
            path = path.rpartition(".")[0]
        shape = (n_tokens, width) if mode == "shallow" else (n_layers, n_tokens, width)
        prompt = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
        base = get_module(model, path)
        replace_module(
            model,
            path,
            VisualPrompt(base, prompt, dropout, n_layers if mode == "deep" else None),
        )
        return {(*path.split("."), "prompt")} | heads

    return Method(f"vpt_{mode}", install)


def _refuse_text(model: nnx.Module, path: str) -> None:
    words = path.split(".")
    above = [
        get_module(model, ".".join(words[:length])) for length in range(len(words))
    ]
    readers = [
        type(module).__name__ for module in above if hasattr(module, "vocabulary")
    ]
    if readers:
        raise ValueError(
            f"vpt puts tokens among an image's, but {path} reads text "
            f"({readers[-1]}); use prompt_tuning"
        )


def _patch_size(model: nnx.Module, width: int) -> int:
    """Numbers in a patch, from the layer that projects them.

    The width where no layer can be told to do so.
    """
    sizes = [
        linear_shape(layer)[-2]
        for path, layer in named_modules(model)
        if isinstance(layer, LinearLayer) and "patch" in path
    ]
    return sizes[0] if sizes else width
