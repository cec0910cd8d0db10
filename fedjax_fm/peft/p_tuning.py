"""P-tuning: a prompt that a small network makes of trained tokens.

References:
  Liu, Zheng, Du, Ding, Qian, Yang, Tang (2021). GPT Understands, Too. arXiv 2103.10385.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.checks import choice, whole
from fedjax_fm.peft.method import Method, head_paths, parameter_paths
from fedjax_fm.peft.patterns import HEADS, check_names, check_targets
from fedjax_fm.peft.prompt import takes_prompt
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import get_module


class Dense(nnx.Module):
    """A linear layer whose weights are trained: x W + b.

    Args:
      kernel: f32[in, out].
      bias: f32[out].
    """

    def __init__(self, kernel: jax.Array, bias: jax.Array):
        self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        return x @ self.kernel[...] + self.bias[...]


class LSTM(nnx.Module):
    """One direction of one layer; gates in torch's order: input, forget, cell, output.

    Torch has two biases, of which the sum alone counts; here it is one.

    Args:
      kernel: f32[in, 4 h].
      hidden_kernel: f32[h, 4 h].
      bias: f32[4 h].
    """

    def __init__(self, kernel: jax.Array, hidden_kernel: jax.Array, bias: jax.Array):
        self.kernel, self.hidden_kernel = nnx.Param(kernel), nnx.Param(hidden_kernel)
        self.bias = nnx.Param(bias)

    def __call__(self, x: jax.Array, reverse: bool = False) -> jax.Array:
        """[p, in] -> [p, h], from the first token or from the last."""
        gates = x @ self.kernel[...] + self.bias[...]
        hidden_kernel = self.hidden_kernel[...]

        def step(carry, gates):
            hidden, cell = carry
            i, f, g, o = jnp.split(gates + hidden @ hidden_kernel, 4)
            kept = jax.nn.sigmoid(f) * cell
            cell = kept + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        zeros = jnp.zeros(hidden_kernel.shape[0], gates.dtype)
        _, outputs = jax.lax.scan(step, (zeros, zeros), gates, reverse=reverse)
        return outputs


class EncodedPrompt(nnx.Module):
    """A prompt of p tokens that a network makes of as many trained ones.

    Args:
      tokens: f32[p, d].
      forward: LSTMs from the first token, a layer each; none without LSTM.
      backward: LSTMs from the last token.
      dense: layers behind them, rectified but the last.
    """

    def __init__(
        self,
        tokens: jax.Array,
        forward: list[LSTM],
        backward: list[LSTM],
        dense: list[Dense],
    ):
        self.tokens = nnx.Param(tokens)
        self.forward, self.backward = nnx.List(forward), nnx.List(backward)
        self.dense = nnx.List(dense)

    def __call__(self) -> jax.Array:
        """Computes f32[p, d]."""
        x = self.tokens[...]
        for onward, back in zip(self.forward, self.backward, strict=True):
            x = jnp.concatenate([onward(x), back(x, reverse=True)], axis=-1)
        *inner, last = self.dense
        for layer in inner:
            x = jax.nn.relu(layer(x))
        return last(x)


@refuses_pefts_words
def p_tuning(
    n_tokens: int,
    *,
    encoder: Literal["lstm", "mlp"] = "lstm",
    hidden: int | None = None,
    layers: int = 2,
    at: str | None = None,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """P-tuning: prompt tuning whose p vectors come from a network while they are trained.

        "lstm": W_2 relu(W_1 [LSTM(e); LSTM reversed(e)])    "mlp": W_3 relu(W_2 relu(W_1 e))

    with biases, and trained tokens e f32[p, d]. The network and the tokens are trained
    and sent; `collapse` replaces them by their p outputs, a plain prompt, as a saved
    folder has it. Outputs keep the shape of the text, as for `prompt_tuning`.

    Args:
      n_tokens: p; 0 leaves the model as it is.
      encoder: "lstm", as in the paper, or "mlp", PEFT's default.
      hidden: h, width of one direction of the LSTM and half of the layer behind it, or
        of the layers of the "mlp". None: d, as in PEFT; the authors' is d / 2.
      layers: of the LSTM; the "mlp" has always three.
      at: a regular expression that picks the module, where several take a prompt. None:
        the model has one.
      modules_to_save: modules that are trained in full; by default the head, where the
        model has one.

    Returns:
      The method. Tokens start N(0, 1), weights and biases as torch's, U(-1, 1) /
      sqrt(inputs), of an LSTM U(-1, 1) / sqrt(h).

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for a model that
        takes no prompt.

    References:
      Liu et al. (2021), arXiv 2103.10385, section 3.2, "prompt encoder".

    Example:
      >>> from fedjax_fm import models, peft
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.p_tuning(3, encoder="mlp", hidden=4))
      >>> prompt = adapted.model().model.prompt
      >>> prompt.tokens.shape, [layer.kernel.shape for layer in prompt.dense]
      ((3, 8), [(8, 4), (4, 4), (4, 8)])
      >>> peft.collapse(adapted.model()).model.prompt.embedding.shape
      (3, 8)
    """
    whole("n_tokens", n_tokens, least=0)
    choice("encoder", encoder, ("lstm", "mlp"))
    whole("layers", layers, least=1)
    if hidden is not None:
        whole("hidden", hidden, least=1)
    check_names("modules_to_save", modules_to_save)
    if at is not None:
        check_targets("at", at)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        heads = head_paths(model, modules_to_save)
        if n_tokens == 0:
            return heads
        path = takes_prompt(model, at)
        owner = get_module(model, path)
        width = owner.vocabulary.embedding.shape[-1]
        n_hidden = width if hidden is None else hidden
        n_layers = layers if encoder == "lstm" else 0
        owner.prompt = _drawn(key, n_tokens, width, n_hidden=n_hidden, layers=n_layers)
        above = (*(path.split(".") if path else ()), "prompt")
        return {(*above, *name) for name in parameter_paths(owner.prompt)} | heads

    return Method(f"p_tuning_{encoder}", install)


def _drawn(
    key: jax.Array, n_tokens: int, width: int, *, n_hidden: int, layers: int
) -> EncodedPrompt:
    """The network at its initial values, with an LSTM if it has layers."""
    tokens_key, forward_key, backward_key, dense_key = jax.random.split(key, 4)
    sizes = [width] + [2 * n_hidden] * (layers - 1)
    sizes = sizes[:layers]
    inner = [2 * n_hidden] if layers else [n_hidden, n_hidden]
    widths = [2 * n_hidden if layers else width, *inner, width]
    return EncodedPrompt(
        tokens=jax.random.normal(tokens_key, (n_tokens, width)),
        forward=_lstms(forward_key, sizes, n_hidden),
        backward=_lstms(backward_key, sizes, n_hidden),
        dense=_dense_layers(dense_key, widths),
    )


def _lstms(key: jax.Array, sizes: list[int], n_hidden: int) -> list[LSTM]:
    """Layers of inputs of these sizes."""
    found = []
    for number, n_in in enumerate(sizes):
        shapes = (n_in, 4 * n_hidden), (n_hidden, 4 * n_hidden), (4 * n_hidden,)
        own = jax.random.fold_in(key, number)
        found.append(LSTM(*_uniform(own, shapes, n_hidden)))
    return found


def _dense_layers(key: jax.Array, widths: list[int]) -> list[Dense]:
    """Layers from each width to the next."""
    found = []
    for number, n_in in enumerate(widths[:-1]):
        n_out = widths[number + 1]
        own = jax.random.fold_in(key, number)
        found.append(Dense(*_uniform(own, ((n_in, n_out), (n_out,)), n_in)))
    return found


def _uniform(key: jax.Array, shapes: Any, n_inputs: int) -> list[jax.Array]:
    """U(-1, 1) / sqrt(n_inputs), of each shape."""
    bound = n_inputs**-0.5
    keys = jax.random.split(key, len(shapes))
    return [
        jax.random.uniform(one, shape, minval=-bound, maxval=bound)
        for one, shape in zip(keys, shapes, strict=True)
    ]
