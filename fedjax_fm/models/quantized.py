"""Frozen linear layers whose weights stay in the 4-bit blocks of a GGUF file.

They become dense only inside the forward pass. The format is Q4_1 of llama.cpp: 32
consecutive weights of one output share a scale d and a minimum m,
w = d * code + m with code in 0..15. A block is 20 bytes: f16 d, f16 m, and 16 bytes
whose low halves hold weights 0..15 and whose high halves hold weights 16..31. That is 5
bits a weight, against 32 or 16. Q4_0, w = d * (code - 8) in blocks of 18 bytes, is the
case m = -8 d.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

BLOCK_SIZE = 32  # weights
BLOCK_BYTES = 20
Q4_0_BYTES = 18


class Frozen(nnx.Variable):
    """A stored array that is no parameter: nothing trains it, it has no gradient."""


def split_blocks(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The codes, scales and minima of a GGUF tensor as it lies in its file.

    Args:
      raw: uint8[..., out, in / 32 * 20].

    Returns:
      (codes uint8[..., out, in / 32, 16], scales f16[..., out, in / 32], minima of the
      same shape), as `Q4Linear` holds them.

    Raises:
      ValueError: another dtype, or rows that are no whole blocks.

    Example:
      >>> codes, scales, minima = split_blocks(np.zeros((4, 40), np.uint8))
      >>> codes.shape, scales.shape
      ((4, 2, 16), (4, 2))
    """
    if raw.dtype != np.uint8 or raw.shape[-1] % BLOCK_BYTES:
        raise ValueError(
            f"expected uint8 rows of {BLOCK_BYTES}-byte blocks, got "
            f"{raw.dtype}{list(raw.shape)}"
        )
    blocks = np.ascontiguousarray(raw.reshape(*raw.shape[:-1], -1, BLOCK_BYTES))
    halves = np.ascontiguousarray(blocks[..., :4]).view(np.float16)
    return blocks[..., 4:], halves[..., 0], halves[..., 1]


def split_q4_0(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The codes, scales and minima of a tensor in Q4_0 blocks.

    Args:
      raw: uint8[..., out, in / 32 * 18].

    Returns:
      As `split_blocks`, with minima -8 times the scales, which is exact.

    Raises:
      ValueError: another dtype, or rows that are no whole blocks.

    Example:
      >>> block = np.array([[0, 60] + [0x80] * 16], np.uint8)  # f16 1.0, codes 0 and 8
      >>> dequantize(*split_q4_0(block))[0, [0, 16]].tolist()
      [-8.0, 0.0]
    """
    if raw.dtype != np.uint8 or raw.shape[-1] % Q4_0_BYTES:
        raise ValueError(
            f"expected uint8 rows of {Q4_0_BYTES}-byte blocks, got "
            f"{raw.dtype}{list(raw.shape)}"
        )
    blocks = np.ascontiguousarray(raw.reshape(*raw.shape[:-1], -1, Q4_0_BYTES))
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    return blocks[..., 2:], scales, scales * np.float16(-8)


def dequantize(codes: jax.Array, scales: jax.Array, minima: jax.Array) -> jax.Array:
    """The dense weights of blocks.

    Args:
      codes: uint8[..., out, in / 32, 16].
      scales: f16[..., out, in / 32].
      minima: f16[..., out, in / 32].

    Returns:
      f32[..., out, in].
    """
    fours = jnp.concatenate([codes & 15, codes >> 4], axis=-1).astype(jnp.float32)
    scales, minima = scales.astype(jnp.float32), minima.astype(jnp.float32)
    weights = fours * scales[..., None] + minima[..., None]
    return weights.reshape(*weights.shape[:-2], -1)


def _multiply(
    x: jax.Array, codes: jax.Array, scales: jax.Array, minima: jax.Array
) -> jax.Array:
    """Multiplies x by the transpose of the dense W, in x's dtype."""
    weights = dequantize(codes, scales, minima)
    return jnp.einsum("...i,oi->...o", x, weights.astype(x.dtype))


class Q4Linear(nnx.Module):
    """A frozen linear layer y = x W^T + b with W [out, in] in Q4_1 blocks.

    It computes in x's dtype. codes uint8[..., out, in / 32, 16], scales and minima
    f16[..., out, in / 32]; a leading axis holds the layers of a stack. `lora` wraps it
    as it wraps `nnx.Linear`. It starts as zeros: the blocks come from a file. A bias
    stays a dense parameter.

    Args:
      in_features: inputs, a multiple of 32.
      out_features: outputs.
      bias: f[*stacked, out]; None: there is none.

    Raises:
      ValueError: inputs that make no whole blocks.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import models
      >>> models.Q4Linear(64, 3)(jnp.ones((2, 64))).shape
      (2, 3)
    """

    def __init__(
        self, in_features: int, out_features: int, bias: nnx.Param | None = None
    ):
        if in_features % BLOCK_SIZE:
            raise ValueError(
                f"Q4_1 needs in_features to be a multiple of {BLOCK_SIZE}, got "
                f"{in_features}"
            )
        shape = (out_features, in_features // BLOCK_SIZE)
        self.codes = Frozen(jnp.zeros((*shape, BLOCK_SIZE // 2), jnp.uint8))
        self.scales = Frozen(jnp.zeros(shape, jnp.float16))
        self.minima = Frozen(jnp.zeros(shape, jnp.float16))
        self.bias = bias

    @property
    def linear_shape(self) -> tuple[int, ...]:
        """The shape (*stacked, in, out) of the kernel that this stands for."""
        *stacked, n_out, n_blocks, _ = self.codes.shape
        return (*stacked, n_blocks * BLOCK_SIZE, n_out)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., out] of x [..., in], one layer of a stack."""
        # Checkpointed, because a gradient through x would otherwise keep W of every
        # layer in f32 for the backward pass: more memory than dense weights take. The
        # backward pass unpacks the blocks once more.
        multiply = jax.checkpoint(_multiply, prevent_cse=False)
        y = multiply(x, self.codes[...], self.scales[...], self.minima[...])
        return y if self.bias is None else (y + self.bias[...]).astype(y.dtype)
