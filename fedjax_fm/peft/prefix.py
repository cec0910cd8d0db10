"""Prefix tuning: trained keys and values before those of the text, in every layer.

References:
  Li, Liang (2021). Prefix-Tuning: Optimizing Continuous Prompts for Generation. arXiv
  2101.00190.
  Liu, Ji, Fu, Tam, Du, Yang, Tang (2021). P-Tuning v2: Prompt Tuning Can Be Comparable
  to Fine-tuning Universally Across Scales and Tasks. arXiv 2110.07602.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.checks import choice, real, whole
from fedjax_fm.models.stacked import Shared
from fedjax_fm.peft.linear import linears_in
from fedjax_fm.peft.method import Method, head_paths, parameter_paths
from fedjax_fm.peft.p_tuning import EncodedPrompt
from fedjax_fm.peft.patterns import HEADS, check_names, check_targets, matches
from fedjax_fm.peft.prompt import Prompt
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import get_module, named_modules, plain_names


class Prefix(nnx.Module):
    """Trained keys and values of p tokens.

    Args:
      keys: f32[..., p, heads, head_dim], with a leading axis for the layers of a stack.
      values: of the same shape.
    """

    def __init__(self, keys: jax.Array, values: jax.Array):
        self.keys, self.values = nnx.Param(keys), nnx.Param(values)

    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Returns (keys, values)."""
        return self.keys[...], self.values[...]


class ReparameterisedPrefix(nnx.Module):
    """Keys and values as outputs of a network whose first half all layers share.

        tanh(tokens W_1 + b_1) W_2 + b_2

    Args:
      shared: {"tokens": f32[p, w], "kernel_1": f32[w, h], "bias_1": f32[h]}.
      kernel_2: f32[..., h, 2 heads head_dim], the layer's own.
      bias_2: f32[..., 2 heads head_dim], the layer's own.
      kv_shape: (heads, head_dim).
    """

    def __init__(
        self,
        shared: dict[str, Shared],
        kernel_2: jax.Array,
        bias_2: jax.Array,
        kv_shape: tuple[int, int],
    ):
        self.tokens = shared["tokens"]
        self.kernel_1, self.bias_1 = shared["kernel_1"], shared["bias_1"]
        self.kernel_2, self.bias_2 = nnx.Param(kernel_2), nnx.Param(bias_2)
        self.kv_shape = kv_shape

    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Computes (keys, values), each f32[..., p, heads, head_dim]."""
        inner = jnp.tanh(self.tokens[...] @ self.kernel_1[...] + self.bias_1[...])
        # [..., p, 2 heads head_dim]
        both = inner @ self.kernel_2[...] + self.bias_2[..., None, :]
        both = both.reshape(*both.shape[:-1], 2, *self.kv_shape)
        return both[..., 0, :, :], both[..., 1, :, :]


def attentions(model: nnx.Module, at: str | None) -> list[str]:
    """Finds the attention modules that take a prefix, see `models.virtual_tokens`.

    Args:
      model: adapted or not.
      at: a regular expression on their paths; None: all of them.

    Returns:
      Their paths, sorted.

    Raises:
      ValueError: there is none.
    """
    plain = plain_names(model)
    takers = [
        p
        for p, m in named_modules(model)
        if hasattr(m, "prefix") and hasattr(m, "kv_shape")
    ]
    found = sorted(path for path in takers if at is None or matches(plain(path), at))
    if not found:
        names = sorted(plain(path) for path in takers)
        where = "" if at is None else f" at {at!r}"
        raise ValueError(
            f"no attention takes a prefix{where}; there are: "
            f"{', '.join(names) or 'none'}"
        )
    return found


@refuses_pefts_words
def prefix_tuning(
    n_tokens: int,
    *,
    hidden: int | None = None,
    width: int | None = None,
    std: float | None = None,
    init: Literal["small", "torch"] = "small",
    at: str | None = None,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """Prefix tuning: trains keys and values of p tokens before the text in every layer.

        attention = (1 - lambda) attention(text) + lambda attention(prefix)

    lambda is the prefix's share of the softmax. The positions of the text begin at p,
    as in the paper's code and in PEFT. With L layers there are 2 L p heads head_dim
    trained numbers, or p w + (w + 1) h + (h + 1) 2 L heads head_dim with the network.

    Args:
      n_tokens: p; 0 leaves the model as it is.
      hidden: h, hidden width of the reparameterising network: keys and values are
        tanh(tokens W_1 + b_1) W_2 + b_2 while they are trained, and `collapse` replaces
        the network by its outputs. All layers share tokens, W_1 and b_1. None: keys and
        values are trained themselves.
      width: w of the tokens that the network reads; None: heads * head_dim.
      std: standard deviation of the initial keys and values, for init "small" without a
        network; None: 0.02.
      init: initial values. "small": keys and values N(0, std^2); with the network,
        tokens N(0, 1), matrices N(0, 1 / fan-in), biases 0. "torch", as in the code of
        the authors, of P-tuning v2 and of PEFT: keys and values N(0, 1); with the
        network, tokens N(0, 1), matrices and biases U(-1, 1) / sqrt(fan-in). Keys and
        values of size 1 draw much of the attention at first, so that more rounds are
        needed.
      at: a regular expression that picks attention modules by their path; None: all.
      modules_to_save: modules that are trained in full; by default the head, where the
        model has one.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for a model that
        takes no prefix.

    References:
      Li, Liang (2021), arXiv 2101.00190, section 4.

    Example:
      >>> from fedjax_fm import models, peft
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = nnx.eval_shape(  # shapes alone; the weights take no memory
      ...     lambda: models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      ... )
      >>> adapted = peft.apply(model, peft.prefix_tuning(3))
      >>> delta = nnx.to_pure_dict(adapted.delta)
      >>> jax.tree.map(jnp.shape, delta["model"]["layers"]["self_attn"])
      {'prefix': {'keys': (1, 3, 2, 4), 'values': (1, 3, 2, 4)}}
    """
    _check_prefix(n_tokens, hidden=hidden, width=width, std=std, init=init)
    check_names("modules_to_save", modules_to_save)
    if at is not None:
        check_targets("at", at)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        heads = head_paths(model, modules_to_save)
        if n_tokens == 0:
            return heads
        paths = attentions(model, at)
        draw = _Draws(key, init, 0.02 if std is None else std)
        shared: dict[str, Shared] = {}
        if hidden is not None:
            n_heads, head_dim = get_module(model, paths[0]).kv_shape
            w = n_heads * head_dim if width is None else width
            shared["tokens"] = Shared(draw.normal(0, (n_tokens, w), 1.0))
            shared["kernel_1"] = Shared(draw.matrix(1, (w, hidden), w))
            shared["bias_1"] = Shared(draw.bias(1, (hidden,), w))
        for number, path in enumerate(paths):
            attention = get_module(model, path)
            stacked, kv_shape = linears_in(attention)[0][:-2], attention.kv_shape
            if hidden is None:
                shape = (*stacked, n_tokens, *kv_shape)
                keys = draw.direct(2 + 2 * number, shape)
                values = draw.direct(3 + 2 * number, shape)
                attention.prefix = Prefix(keys, values)
            else:
                out = 2 * kv_shape[0] * kv_shape[1]
                kernel_2 = draw.matrix(2 + 2 * number, (*stacked, hidden, out), hidden)
                bias_2 = draw.bias(2 + 2 * number, (*stacked, out), hidden)
                attention.prefix = ReparameterisedPrefix(
                    shared, kernel_2, bias_2, kv_shape
                )
        _number_tokens_on(model, paths, n_tokens)
        inside = tuple(f"{path}.prefix.".removeprefix(".") for path in paths)
        trained = {
            path for path in parameter_paths(model) if ".".join(path).startswith(inside)
        }
        return trained | heads

    return Method("prefix" if hidden is None else "prefix_reparameterised", install)


def _check_prefix(
    n_tokens: int,
    *,
    hidden: int | None,
    width: int | None,
    std: float | None,
    init: str,
) -> None:
    """Refuses arguments that make no sense, alone or together."""
    whole("n_tokens", n_tokens, least=0)
    choice("init", init, ("small", "torch"))
    if hidden is not None:
        whole("hidden", hidden, least=1)
    if width is not None:
        whole("width", width, least=1)
        if hidden is None:
            raise ValueError(
                f"width={width} is that of a network's tokens; give hidden= to have one"
            )
    if std is not None:
        real("std", std, least=0)
        if hidden is not None or init != "small":
            raise ValueError(
                f"std={std} is of keys and values that start small, without a network; "
                "leave it out"
            )


class _Draws(NamedTuple):
    """Initial values, each of which is named by the key and a number."""

    key: jax.Array
    init: str  # "small" or "torch"
    std: float  # of keys and values that start small

    def normal(self, number: int, shape: tuple[int, ...], scale: float) -> jax.Array:
        """N(0, scale^2)."""
        own = jax.random.fold_in(self.key, number)
        return scale * jax.random.normal(own, shape)

    def direct(self, number: int, shape: tuple[int, ...]) -> jax.Array:
        """Keys or values."""
        return self.normal(number, shape, self.std if self.init == "small" else 1.0)

    def matrix(self, number: int, shape: tuple[int, ...], fan_in: int) -> jax.Array:
        """A matrix of the network."""
        if self.init == "small":
            return self.normal(number, shape, fan_in**-0.5)
        return self._uniform(jax.random.fold_in(self.key, number), shape, fan_in)

    def bias(self, number: int, shape: tuple[int, ...], fan_in: int) -> jax.Array:
        """The bias of the layer whose matrix has the same number."""
        if self.init == "small":
            return jnp.zeros(shape)
        of_layer = jax.random.fold_in(self.key, number)
        return self._uniform(jax.random.fold_in(of_layer, 1), shape, fan_in)

    def _uniform(
        self, key: jax.Array, shape: tuple[int, ...], fan_in: int
    ) -> jax.Array:
        """U(-1, 1) / sqrt(fan-in)."""
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def _number_tokens_on(model: nnx.Module, paths: list[str], n_tokens: int) -> None:
    """Lets the positions of the text begin behind the prefix."""
    modules: dict[str, Any] = dict(named_modules(model))
    for path, module in modules.items():
        tower = path.rpartition(".")[0]
        start = f".{tower}".rstrip(".")
        # Of CLIP's two towers, only the one with a prefix changes its positions.
        has_prefix = any(f".{own}".startswith(start) for own in paths)
        if hasattr(module, "first_position") and has_prefix:
            module.first_position += n_tokens


@refuses_pefts_words
def p_tuning_v2(
    n_tokens: int,
    *,
    encoder: Literal["mlp"] | None = None,
    hidden: int = 512,
    init: Literal["small", "torch"] = "small",
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """P-tuning v2: prefix tuning of all layers, by default without the network.

    Args:
      n_tokens: p, as in `prefix_tuning`; 0 leaves the model as it is.
      encoder: "mlp" trains the network of `prefix_tuning`; None, keys and values
        themselves.
      hidden: h, hidden width of the network; only with `encoder="mlp"`.
      init: initial values, as in `prefix_tuning`.
      modules_to_save: modules that are trained in full; by default the head, where the
        model has one.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for a model that
        takes no prefix.

    References:
      Liu, Ji, Fu, Tam, Du, Yang, Tang (2021), arXiv 2110.07602.

    Example:
      >>> from fedjax_fm import models, peft
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = nnx.eval_shape(  # shapes alone; the weights take no memory
      ...     lambda: models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      ... )
      >>> adapted = peft.apply(model, peft.p_tuning_v2(3))
      >>> delta = nnx.to_pure_dict(adapted.delta)
      >>> jax.tree.map(jnp.shape, delta["model"]["layers"]["self_attn"])
      {'prefix': {'keys': (1, 3, 2, 4), 'values': (1, 3, 2, 4)}}
    """
    if encoder is not None:
        choice("encoder", encoder, ("mlp",))
    whole("hidden", hidden, least=1)
    method = prefix_tuning(
        n_tokens,
        hidden=hidden if encoder else None,
        init=init,
        modules_to_save=modules_to_save,
    )
    return method._replace(name="p_tuning_v2")


def collapse(model: nnx.Module) -> nnx.Module:
    """Replaces every network behind a prefix or a prompt by what it computes.

    Args:
      model: an adapted model; it is not changed.

    Returns:
      A copy that computes the same.

    Example:
      >>> from fedjax_fm import models, peft
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = nnx.eval_shape(  # shapes alone; the weights take no memory
      ...     lambda: models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      ... )
      >>> adapted = peft.apply(model, peft.prefix_tuning(3, hidden=4))
      >>> peft.collapse(adapted.model()).model.layers.self_attn.prefix.keys.shape
      (1, 3, 2, 4)
    """
    model = nnx.clone(model)
    modules: dict[str, Any] = dict(named_modules(model))
    for module in modules.values():
        prefix = getattr(module, "prefix", None)
        if isinstance(prefix, ReparameterisedPrefix):
            keys, values = prefix()
            module.prefix = Prefix(keys, values)
        if isinstance(prompt := getattr(module, "prompt", None), EncodedPrompt):
            module.prompt = Prompt(prompt())
    return model
