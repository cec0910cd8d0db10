"""Frozen linear layers in blocks of 8 or 4 bits, made from dense ones, dense again only
inside the forward pass.

`quantize(model, "nf4")` is the frozen half of QLoRA: Dettmers, Pagnoni, Holtzman,
Zettlemoyer, 2023, arXiv 2305.14314. Every 64 consecutive inputs of an output share
their largest magnitude as a scale:

    int8        w = scale / 127 * code                        8.5 bits a weight
    nf4         w = scale * level[code], 16 levels            4.5 bits a weight
    nf4_double  the same, the scales themselves in 8 bits     4.13 bits a weight
"""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.kernels.block_formats import int_block_encode, nf4_decode, nf4_encode
from fedjax_fm.models.quantized import Frozen

FORMATS = ("int8", "nf4", "nf4_double")
BLOCK = 64  # weights that share a scale
SCALE_BLOCK = 256  # scales that share one of their own, with "nf4_double"


def encode(
    weights: jax.Array, kind: str, block_size: int = BLOCK
) -> dict[str, jax.Array]:
    """The stored form of f32[out, in]; `decode` reads it.

    Returns:
      codes: int8[out, in / block, block], or uint8[out, in / block, block / 2]: the low
        halves of a block's bytes hold its first weights, the high halves its last.
      scales: f32[out, in / block]; for "nf4_double" instead scale_codes int8[n],
        scale_steps f32[ceil(n / 256)] and scale_mean f32[], n = out * in / block scales
        less their mean.
    """
    blocks = weights.astype(jnp.float32).reshape(weights.shape[0], -1, block_size)
    if kind == "int8":
        codes, scales = int_block_encode(blocks, 8)
        return {"codes": codes, "scales": scales}
    fours, scales = nf4_encode(blocks)
    stored = {
        "codes": fours[..., : block_size // 2] | fours[..., block_size // 2 :] << 4
    }
    if kind == "nf4":
        return {**stored, "scales": scales}
    flat, mean = scales.reshape(-1), scales.mean()
    padded = jnp.pad(flat - mean, (0, -flat.size % SCALE_BLOCK)).reshape(
        -1, SCALE_BLOCK
    )
    scale_codes, steps = int_block_encode(padded, 8)
    scale_codes = scale_codes.reshape(-1)[: flat.size]
    return {
        **stored,
        "scale_codes": scale_codes,
        "scale_steps": steps,
        "scale_mean": mean,
    }


def decode(stored: dict[str, jax.Array]) -> jax.Array:
    """f32[out, in] of what `encode` gave."""
    codes = stored["codes"]
    if "scale_codes" in stored:
        steps = jnp.repeat(stored["scale_steps"], SCALE_BLOCK)[
            : stored["scale_codes"].size
        ]
        scales = (stored["scale_codes"] * steps + stored["scale_mean"]).reshape(
            codes.shape[:2]
        )
    else:
        scales = stored["scales"]
    if codes.dtype == jnp.int8:
        blocks = codes * scales[..., None]
    else:
        blocks = nf4_decode(jnp.concatenate([codes & 15, codes >> 4], axis=-1), scales)
    return blocks.reshape(codes.shape[0], -1)


def _multiply(x: jax.Array, stored: dict[str, jax.Array]) -> jax.Array:
    return jnp.einsum("...i,oi->...o", x, decode(stored).astype(x.dtype))


class LowBitLinear(nnx.Module):
    """y = x W^T + b with W [out, in] in blocks, computed in x's dtype; `quantize` makes it.

    What is stored is that of `encode`, with the leading axis of a stack. LoRA and the
    other methods that sit beside a linear layer take it as they take `nnx.Linear`. The
    bias stays a dense parameter, the blocks are none: there is no gradient by them.
    """

    def __init__(self, stored: dict[str, jax.Array], bias: nnx.Param | None):
        self.stored = nnx.Dict({name: Frozen(array) for name, array in stored.items()})
        self.bias = bias

    @property
    def linear_shape(self) -> tuple[int, ...]:
        """(*stacked, in, out), the shape of the kernel that this stands for."""
        codes = self.stored["codes"]
        *stacked, n_out, n_blocks, width = codes.shape
        return (
            *stacked,
            n_blocks * width * (1 if codes.dtype == jnp.int8 else 2),
            n_out,
        )

    def kernel(self) -> jax.Array:
        """The dense weights f32[*stacked, in, out]."""

        def unpack(stored):
            return decode(stored).T

        for _ in self.linear_shape[:-2]:
            unpack = jax.vmap(unpack)
        return unpack(self._arrays())

    def _arrays(self) -> dict[str, jax.Array]:
        return {name: variable[...] for name, variable in self.stored.items()}

    def __call__(self, x: jax.Array) -> jax.Array:
        # Checkpointed for the reason given in `Q4Linear`: the backward pass unpacks
        # once more and keeps no dense W.
        y = jax.checkpoint(_multiply, prevent_cse=False)(x, self._arrays())
        return y if self.bias is None else (y + self.bias[...]).astype(y.dtype)


def quantize(
    model: nnx.Module, kind: str, *, targets: str | None = None, block_size: int = BLOCK
) -> nnx.Module:
    """A copy of a model with linear layers in blocks of 8 or 4 bits, for methods that
    leave them frozen.

    Args:
      kind: "int8", "nf4" or "nf4_double"; see the top of this file. For a bf16 backbone
        load it with dtype="bfloat16", which also is the dtype of all that stays dense
        here.
      targets: a regular expression, searched in dotted paths; None: every linear layer
        of the repeated layers. What lies outside stays dense: embeddings, norms,
        biases, poolers, projections, heads.
      block_size: inputs that share a scale; even, and a divisor of every target's.

    Raises:
      ValueError: an unknown kind, nothing to quantise, or inputs that make no whole blocks.
    """
    if kind not in FORMATS:
        raise ValueError(f"expected kind {', '.join(map(repr, FORMATS))}, got {kind!r}")
    if block_size < 2 or block_size % 2:
        raise ValueError(f"expected an even block_size >= 2, got {block_size}")
    model = nnx.clone(model)
    found = _linears(model, nnx.Linear, targets)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no dense linear layer to quantise, targets={targets!r}"
        )
    for path, (_, _, layer) in found.items():
        if layer.kernel.shape[-2] % block_size:
            raise ValueError(
                f"{path} has {layer.kernel.shape[-2]} inputs, no multiple of "
                f"block_size={block_size}; give another"
            )
    for owner, name, layer in found.values():
        _put(
            owner,
            name,
            LowBitLinear(_encode_all(layer.kernel[...], kind, block_size), layer.bias),
        )
    return model


@functools.partial(jax.jit, static_argnums=(1, 2))
def _encode_all(kernel: jax.Array, kind: str, block_size: int) -> dict[str, jax.Array]:
    """`encode` of [*stacked, in, out], one layer after the other."""
    *stacked, n_in, n_out = kernel.shape
    layers = kernel.reshape(math.prod(stacked), n_in, n_out)
    stored = jax.lax.map(lambda layer: encode(layer.T, kind, block_size), layers)
    return {
        name: array.reshape(*stacked, *array.shape[1:])
        for name, array in stored.items()
    }


def dequantize(model: nnx.Module, dtype: Any = jnp.float32) -> nnx.Module:
    """A copy with dense linear layers of the same values in place of those of
    `quantize`, to merge LoRA into or save.

    Rounded once more where `dtype` is bfloat16.
    """
    model = nnx.clone(model)
    for owner, name, layer in _linears(model, LowBitLinear, "").values():
        kernel = layer.kernel().astype(dtype)
        dense = nnx.Linear(1, 1, use_bias=False, param_dtype=dtype, rngs=nnx.Rngs(0))
        *_, dense.in_features, dense.out_features = kernel.shape
        dense.kernel, dense.use_bias, dense.bias = (
            nnx.Param(kernel),
            layer.bias is not None,
            layer.bias,
        )
        _put(owner, name, dense)
    return model


def _linears(
    model: nnx.Module, kind: type, targets: str | None
) -> dict[str, tuple[Any, Any, Any]]:
    """{dotted path: (owner, name, layer)} of the layers of `kind`; see `quantize` for `targets`."""
    modules = {path: module for path, module in nnx.iter_modules(model)}
    repeated = {
        p
        for p, m in modules.items()
        if hasattr(m, "stacked_layers") or p[-1:] == ("albert_layers",)
    }
    repeated |= {p for p in modules if p and isinstance(p[-1], int)}
    found = {}
    for path, module in modules.items():
        dotted = ".".join(map(str, path))
        inside = any(path[:n] in repeated for n in range(1, len(path) + 1))
        if (
            path
            and type(module) is kind
            and (inside if targets is None else re.search(targets, dotted))
        ):
            found[dotted] = (modules[path[:-1]], path[-1], module)
    return found


def _put(owner: Any, name: Any, module: nnx.Module) -> None:
    if isinstance(name, int):
        owner[name] = module
    else:
        setattr(owner, name, module)
