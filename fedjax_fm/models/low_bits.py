"""Frozen linear layers in blocks of 8 or 4 bits, made from dense ones.

They are dense again only inside the forward pass. `quantize(model, "nf4")` is the
frozen half of QLoRA. Every 64 consecutive inputs of an output share their largest
magnitude as a scale:

    int8        w = scale / 127 * code                        8.5 bits a weight
    nf4         w = scale * level[code], 16 levels            4.5 bits a weight
    nf4_double  the same, the scales themselves in 8 bits     4.13 bits a weight

References:
  Dettmers, Pagnoni, Holtzman, Zettlemoyer, 2023, arXiv 2305.14314, section 3.
"""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.kernels.block_formats import int_block_encode, nf4_decode, nf4_encode
from fedjax_fm.models.modules import put
from fedjax_fm.models.quantized import Frozen

FORMATS = ("int8", "nf4", "nf4_double")
BLOCK = 64  # weights that share a scale
SCALE_BLOCK = 256  # scales that share one of their own, with "nf4_double"


def encode(
    weights: jax.Array, kind: str, block_size: int = BLOCK
) -> dict[str, jax.Array]:
    """The stored form of a matrix; `decode` reads it.

    Args:
      weights: f32[out, in].
      kind: "int8", "nf4" or "nf4_double".
      block_size: weights of a block, a divisor of in; even for four bits.

    Returns:
      A dict with
      codes, int8[out, in / block, block], or uint8[out, in / block, block / 2]: the low
      halves of a block's bytes hold its first weights, the high halves its last;
      scales, f32[out, in / block]; for "nf4_double" instead scale_codes int8[n],
      scale_steps f32[ceil(n / 256)] and scale_mean f32[], of n = out * in / block
      scales less their mean.

    References:
      Dettmers et al., 2023, arXiv 2305.14314, section 3 and equation 6.

    Example:
      >>> stored = encode(jnp.ones((2, 128)), "nf4")
      >>> stored["codes"].shape, stored["scales"].shape
      ((2, 2, 32), (2, 2))
    """
    blocks = weights.astype(jnp.float32).reshape(weights.shape[0], -1, block_size)
    if kind == "int8":
        codes, scales = int_block_encode(blocks, 8)
        return {"codes": codes, "scales": scales}
    fours, scales = nf4_encode(blocks)
    half = block_size // 2
    stored = {"codes": fours[..., :half] | fours[..., half:] << 4}
    if kind == "nf4":
        return {**stored, "scales": scales}
    flat, mean = scales.reshape(-1), scales.mean()
    padded = jnp.pad(flat - mean, (0, -flat.size % SCALE_BLOCK))
    scale_codes, steps = int_block_encode(padded.reshape(-1, SCALE_BLOCK), 8)
    scale_codes = scale_codes.reshape(-1)[: flat.size]
    return {
        **stored,
        "scale_codes": scale_codes,
        "scale_steps": steps,
        "scale_mean": mean,
    }


def decode(stored: dict[str, jax.Array]) -> jax.Array:
    """The dense matrix of what `encode` gave.

    Args:
      stored: of `encode`.

    Returns:
      f32[out, in].

    Example:
      >>> decode(encode(jnp.full((2, 128), 3.0), "nf4"))[0, :2].tolist()
      [3.0, 3.0]
    """
    codes = stored["codes"]
    if "scale_codes" in stored:
        scale_codes = stored["scale_codes"]
        steps = jnp.repeat(stored["scale_steps"], SCALE_BLOCK)[: scale_codes.size]
        scales = scale_codes * steps + stored["scale_mean"]
        scales = scales.reshape(codes.shape[:2])
    else:
        scales = stored["scales"]
    if codes.dtype == jnp.int8:
        blocks = codes * scales[..., None]
    else:
        fours = jnp.concatenate([codes & 15, codes >> 4], axis=-1)
        blocks = nf4_decode(fours, scales)
    return blocks.reshape(codes.shape[0], -1)


def _multiply(x: jax.Array, stored: dict[str, jax.Array]) -> jax.Array:
    """Multiplies x by the transpose of the dense W, in x's dtype."""
    weights = decode(stored)
    return jnp.einsum("...i,oi->...o", x, weights.astype(x.dtype))


class LowBitLinear(nnx.Module):
    """A frozen linear layer y = x W^T + b with W [out, in] in blocks.

    `quantize` makes it. It computes in x's dtype. LoRA and the other methods that sit
    beside a linear layer take it as they take `nnx.Linear`. The bias stays a dense
    parameter, the blocks are none: there is no gradient with respect to them.

    Args:
      stored: of `encode`, each array with the leading axis of a stack.
      bias: f32[*stacked, out], or None.

    References:
      Dettmers et al., 2023, arXiv 2305.14314, equation 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import models
      >>> from fedjax_fm.models.low_bits import encode
      >>> layer = models.LowBitLinear(encode(jnp.ones((2, 64)), "int8"), bias=None)
      >>> layer(jnp.ones((1, 64))).round(3).tolist()
      [[64.0, 64.0]]
    """

    def __init__(self, stored: dict[str, jax.Array], bias: nnx.Param | None):
        frozen = {name: Frozen(array) for name, array in stored.items()}
        self.stored = nnx.Dict(frozen)
        self.bias = bias

    @property
    def linear_shape(self) -> tuple[int, ...]:
        """The shape (*stacked, in, out) of the kernel that this stands for."""
        codes = self.stored["codes"]
        *stacked, n_out, n_blocks, width = codes.shape
        in_one_code = 1 if codes.dtype == jnp.int8 else 2
        return (*stacked, n_blocks * width * in_one_code, n_out)

    def kernel(self) -> jax.Array:
        """The dense weights f32[*stacked, in, out]."""

        def unpack(stored):
            return decode(stored).T

        for _ in self.linear_shape[:-2]:
            unpack = jax.vmap(unpack)
        return unpack(self._arrays())

    def _arrays(self) -> dict[str, jax.Array]:
        """The stored arrays by name."""
        return {name: variable[...] for name, variable in self.stored.items()}

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., out] of x [..., in], one layer of a stack."""
        # Checkpointed for the reason given in `Q4Linear`: the backward pass unpacks
        # once more and keeps no dense W.
        multiply = jax.checkpoint(_multiply, prevent_cse=False)
        y = multiply(x, self._arrays())
        return y if self.bias is None else (y + self.bias[...]).astype(y.dtype)


def quantize(
    model: nnx.Module, kind: str, *, targets: str | None = None, block_size: int = BLOCK
) -> nnx.Module:
    """A copy of a model with linear layers in blocks of 8 or 4 bits.

    It is for methods that leave these layers frozen.

    Args:
      model: with `nnx.Linear` layers; it stays as it is.
      kind: "int8", "nf4" or "nf4_double", of 8.5, 4.5 and 4.13 bits a weight. For a
        bf16 backbone load it with dtype="bfloat16", which also is the dtype of all that
        stays dense here.
      targets: a regular expression, searched in dotted paths; None: every linear layer
        of the repeated layers. What lies outside stays dense: embeddings, norms,
        biases, poolers, projections, heads.
      block_size: inputs that share a scale; even, and a divisor of every target's.

    Returns:
      The copy, with `LowBitLinear` in the place of the layers found.

    Raises:
      ValueError: an unknown kind, nothing to quantise, or inputs that make no whole
        blocks.

    References:
      Dettmers et al., 2023, arXiv 2305.14314, section 3.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> class Model(nnx.Module):
      ...     def __init__(self):
      ...         self.dense = nnx.Linear(64, 2, rngs=nnx.Rngs(0))
      >>> small = models.quantize(Model(), "nf4", targets="dense")
      >>> type(small.dense).__name__, small.dense.linear_shape
      ('LowBitLinear', (64, 2))
    """
    if kind not in FORMATS:
        known = ", ".join(map(repr, FORMATS))
        raise ValueError(f"expected kind {known}, got {kind!r}")
    if block_size < 2 or block_size % 2:
        raise ValueError(f"expected an even block_size >= 2, got {block_size}")
    model = nnx.clone(model)
    found = linears(model, nnx.Linear, targets)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no dense linear layer to quantise, "
            f"targets={targets!r}"
        )
    for path, (_, _, layer) in found.items():
        if layer.kernel.shape[-2] % block_size:
            raise ValueError(
                f"{path} has {layer.kernel.shape[-2]} inputs, no multiple of "
                f"block_size={block_size}; give another"
            )
    for owner, name, layer in found.values():
        stored = _encode_all(layer.kernel[...], kind, block_size)
        put(owner, name, LowBitLinear(stored, layer.bias))
    return model


@functools.partial(jax.jit, static_argnums=(1, 2))
def _encode_all(kernel: jax.Array, kind: str, block_size: int) -> dict[str, jax.Array]:
    """The stored form of [*stacked, in, out], one layer after the other."""
    *stacked, n_in, n_out = kernel.shape
    layers = kernel.reshape(math.prod(stacked), n_in, n_out)
    stored = jax.lax.map(lambda layer: encode(layer.T, kind, block_size), layers)
    return {
        name: array.reshape(*stacked, *array.shape[1:])
        for name, array in stored.items()
    }


def dequantize(model: nnx.Module, dtype: Any = jnp.float32) -> nnx.Module:
    """A copy with dense linear layers of the same values in the place of `quantize`'s.

    It can have LoRA merged into it, or be saved.

    Args:
      model: of `quantize`; it stays as it is.
      dtype: of the dense weights; where it is bfloat16 they are rounded once more.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> class Model(nnx.Module):
      ...     def __init__(self):
      ...         self.dense = nnx.Linear(64, 2, rngs=nnx.Rngs(0))
      >>> small = models.quantize(Model(), "int8", targets="dense")
      >>> models.dequantize(small).dense.kernel.shape
      (64, 2)
    """
    model = nnx.clone(model)
    for owner, name, layer in linears(model, LowBitLinear, "").values():
        kernel = layer.kernel().astype(dtype)
        dense = nnx.Linear(1, 1, use_bias=False, param_dtype=dtype, rngs=nnx.Rngs(0))
        *_, dense.in_features, dense.out_features = kernel.shape
        dense.kernel = nnx.Param(kernel)
        dense.use_bias, dense.bias = layer.bias is not None, layer.bias
        put(owner, name, dense)
    return model


def linears(
    model: nnx.Module, kind: type, targets: str | None
) -> dict[str, tuple[Any, Any, Any]]:
    """The layers of a kind inside a model.

    Args:
      model: any.
      kind: their class.
      targets: see `quantize`.

    Returns:
      {dotted path: (owner, name, layer)}.
    """
    modules = dict(nnx.iter_modules(model))
    found = {}
    for path, module in modules.items():
        if not path or type(module) is not kind:
            continue
        dotted = ".".join(map(str, path))
        if targets is None:
            above = [path[:n] for n in range(1, len(path) + 1)]
            wanted = any(p in modules and _is_repeated(p, modules[p]) for p in above)
        else:
            wanted = re.search(targets, dotted) is not None
        if wanted:
            found[dotted] = (modules[path[:-1]], path[-1], module)
    return found


def _is_repeated(path: tuple[Any, ...], module: Any) -> bool:
    """Whether a module is a stack, ALBERT's shared layer or an entry of a list."""
    in_list = isinstance(path[-1], int)
    return hasattr(module, "stacked_layers") or path[-1] == "albert_layers" or in_list
