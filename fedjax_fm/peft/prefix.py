"""Prefix tuning: Optimizing Continuous Prompts for Generation.

Li, Liang, 2021, arXiv 2101.00190. Trained keys and values stand before those of the
tokens in every attention layer:

    attention = (1 - lambda) attention(tokens) + lambda attention(prefix),  lambda the
    prefix's share of the softmax

directly, or as tanh(P' W_1 + b_1) W_2 + b_2 while training (`collapse` leaves keys and
values). P-tuning v2 (Liu et al., 2021, arXiv 2110.07602) is the direct form, for
understanding tasks, with the network as an option.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.checks import choice, real, whole
from fedjax_fm.models.stacked import Shared
from fedjax_fm.peft.linear import linears_in
from fedjax_fm.peft.method import Method, head_paths, parameter_paths
from fedjax_fm.peft.patterns import HEADS, check_names, check_targets, matches
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import get_module, named_modules, plain_names


class Prefix(nnx.Module):
    """`keys` and `values` [..., p, heads, head_dim], a leading axis for the layers of a stack."""

    def __init__(self, keys: jax.Array, values: jax.Array):
        self.keys, self.values = nnx.Param(keys), nnx.Param(values)

    def __call__(self) -> tuple[jax.Array, jax.Array]:
        return self.keys[...], self.values[...]


class ReparameterisedPrefix(nnx.Module):
    """Keys and values as outputs of a network whose first half all layers share.

    tokens [p, w], kernel_1 [w, h], bias_1 [h] are `Shared`; kernel_2 [..., h, 2 heads
    head_dim], bias_2 the layer's own.
    """

    def __init__(
        self,
        shared: dict[str, Shared],
        kernel_2: jax.Array,
        bias_2: jax.Array,
        kv_shape: tuple[int, int],
    ):
        self.tokens, self.kernel_1, self.bias_1 = (
            shared["tokens"],
            shared["kernel_1"],
            shared["bias_1"],
        )
        self.kernel_2, self.bias_2 = nnx.Param(kernel_2), nnx.Param(bias_2)
        self.kv_shape = kv_shape

    def __call__(self) -> tuple[jax.Array, jax.Array]:
        inner = jnp.tanh(self.tokens[...] @ self.kernel_1[...] + self.bias_1[...])
        both = (
            inner @ self.kernel_2[...] + self.bias_2[..., None, :]
        )  # [..., p, 2 heads head_dim]
        both = both.reshape(*both.shape[:-1], 2, *self.kv_shape)
        return both[..., 0, :, :], both[..., 1, :, :]


def attentions(model: nnx.Module, at: str | None) -> list[str]:
    """Paths of the attention modules that take a prefix, see `models.virtual_tokens`."""
    plain = plain_names(model)
    takers = [
        p
        for p, m in named_modules(model)
        if hasattr(m, "prefix") and hasattr(m, "kv_shape")
    ]
    found = sorted(path for path in takers if at is None or matches(plain(path), at))
    if not found:
        names = ", ".join(sorted(plain(path) for path in takers)) or "none"
        raise ValueError(
            f"no attention takes a prefix{'' if at is None else f' at {at!r}'}; there are: {names}"
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
    """A trained prefix of `n_tokens` keys and values in every attention layer.

    Args:
      n_tokens: p; 0 leaves the model as it is.
      hidden: h, the hidden width of the reparameterising network; None trains keys and
        values themselves.
      width: w of the tokens that the network reads; default heads * head_dim of the keys.
      std: of the initial keys and values where they start "small" and without a
        network; default 0.02.
      init: initial values. "small": keys and values N(0, std^2); with the network,
        tokens N(0, 1), matrices N(0, 1 / fan-in), biases 0. "torch": those of the
        authors' code, of P-tuning v2's and of PEFT, which are PyTorch's: keys and
        values N(0, 1); with the network, tokens N(0, 1), matrices and biases U(-1, 1) /
        sqrt(fan-in). Keys and values of size 1 take much of the attention away from the
        text at first, so that more rounds are needed; the network is one for all layers
        there as here.
      at: a regular expression that picks attention modules by their path.
      modules_to_save: trained in full beside it; by default the head, where the model has one.

    The tokens' positions begin at p, as in the paper's code and in PEFT. Trains 2 L p
    heads head_dim numbers, with the network p w + (w + 1) h + (h + 1) 2 L heads
    head_dim.
    """
    _check_prefix(n_tokens, hidden, width, std, init)
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
                attention.prefix = Prefix(
                    *(draw.direct(2 + 2 * number + i, shape) for i in (0, 1))
                )
            else:
                out = 2 * kv_shape[0] * kv_shape[1]
                kernel_2 = draw.matrix(2 + 2 * number, (*stacked, hidden, out), hidden)
                bias_2 = draw.bias(2 + 2 * number, (*stacked, out), hidden)
                attention.prefix = ReparameterisedPrefix(
                    shared, kernel_2, bias_2, kv_shape
                )
        _number_tokens_on(model, paths, n_tokens)
        inside = tuple(f"{path}.prefix.".removeprefix(".") for path in paths)
        return {
            path for path in parameter_paths(model) if ".".join(path).startswith(inside)
        } | heads

    return Method("prefix" if hidden is None else "prefix_reparameterised", install)


def _check_prefix(
    n_tokens: int, hidden: int | None, width: int | None, std: float | None, init: str
) -> None:
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
                f"std={std} is of keys and values that start small, without a network; leave it out"
            )


class _Draws(NamedTuple):
    """Initial values, named by (key, number)."""

    key: jax.Array
    init: str
    std: float

    def normal(self, number: int, shape: tuple[int, ...], scale: float) -> jax.Array:
        return scale * jax.random.normal(jax.random.fold_in(self.key, number), shape)

    def direct(self, number: int, shape: tuple[int, ...]) -> jax.Array:
        return self.normal(number, shape, self.std if self.init == "small" else 1.0)

    def matrix(self, number: int, shape: tuple[int, ...], fan_in: int) -> jax.Array:
        if self.init == "small":
            return self.normal(number, shape, fan_in**-0.5)
        return self._uniform(jax.random.fold_in(self.key, number), shape, fan_in)

    def bias(self, number: int, shape: tuple[int, ...], fan_in: int) -> jax.Array:
        if self.init == "small":
            return jnp.zeros(shape)
        return self._uniform(
            jax.random.fold_in(jax.random.fold_in(self.key, number), 1), shape, fan_in
        )

    def _uniform(
        self, key: jax.Array, shape: tuple[int, ...], fan_in: int
    ) -> jax.Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def _number_tokens_on(model: nnx.Module, paths: list[str], n_tokens: int) -> None:
    """Lets the text's positions begin behind the prefix, in the towers that have one."""
    for path, module in named_modules(model):
        tower = path.rpartition(".")[0]
        # Of CLIP's towers only the one with a prefix numbers its tokens on.
        if hasattr(module, "first_position") and any(
            f".{p}".startswith(f".{tower}".rstrip(".")) for p in paths
        ):
            module.first_position += n_tokens  # pyright: ignore[reportAttributeAccessIssue]


@refuses_pefts_words
def p_tuning_v2(
    n_tokens: int,
    *,
    encoder: Literal["mlp"] | None = None,
    hidden: int = 512,
    init: Literal["small", "torch"] = "small",
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """Prefix tuning at all layers, by default without the network (`encoder="mlp"` has
    it, h = `hidden`).

    Args:
      n_tokens, init, modules_to_save: as in `prefix_tuning`.
      encoder: whether a network gives keys and values.
      hidden: its width; only with `encoder="mlp"`.
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
    """A copy of an adapted model with every reparameterised prefix replaced by the keys
    and values that it gives.
    """
    model = nnx.clone(model)
    for _, module in list(named_modules(model)):
        if isinstance(getattr(module, "prefix", None), ReparameterisedPrefix):
            module.prefix = Prefix(*module.prefix())  # pyright: ignore[reportAttributeAccessIssue]
    return model
