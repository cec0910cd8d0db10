"""Frozen linear layers whose weights stay in 4-bit blocks and become dense only inside
the forward pass.

Q4_1 of llama.cpp: 32 consecutive weights of one output share a scale d and a minimum m,
w = d * code + m with
code in 0..15. A block is 20 bytes: f16 d, f16 m, and 16 bytes whose low halves hold
weights 0..15 and whose high halves hold weights 16..31. That is 5 bits a weight,
against 32 or 16.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

BLOCK_SIZE = 32  # weights
BLOCK_BYTES = 20


class Frozen(nnx.Variable):
    """A stored array that is no parameter: it has no gradient and no method may train it."""


def split_blocks(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8[..., out, in / 32 * 20], as a GGUF tensor lies in its file -> (codes,
    scales, minima) of `Q4Linear`.
    """
    if raw.dtype != np.uint8 or raw.shape[-1] % BLOCK_BYTES:
        raise ValueError(
            f"expected uint8 rows of {BLOCK_BYTES}-byte blocks, got {raw.dtype}{list(raw.shape)}"
        )
    blocks = np.ascontiguousarray(raw.reshape(*raw.shape[:-1], -1, BLOCK_BYTES))
    halves = np.ascontiguousarray(blocks[..., :4]).view(np.float16)
    return blocks[..., 4:], halves[..., 0], halves[..., 1]


def dequantize(codes: jax.Array, scales: jax.Array, minima: jax.Array) -> jax.Array:
    """f32[..., out, in] from uint8[..., out, in / 32, 16], f16[..., out, in / 32],
    f16[..., out, in / 32].
    """
    fours = jnp.concatenate([codes & 15, codes >> 4], axis=-1).astype(jnp.float32)
    weights = fours * scales[..., None].astype(jnp.float32) + minima[..., None].astype(
        jnp.float32
    )
    return weights.reshape(*weights.shape[:-2], -1)


def _multiply(
    x: jax.Array, codes: jax.Array, scales: jax.Array, minima: jax.Array
) -> jax.Array:
    return jnp.einsum(
        "...i,oi->...o", x, dequantize(codes, scales, minima).astype(x.dtype)
    )


class Q4Linear(nnx.Module):
    """y = x W^T with W [out, in] in Q4_1 blocks, computed in x's dtype; no bias.

    codes uint8[..., out, in / 32, 16], scales and minima f16[..., out, in / 32]; a
    leading axis holds the layers of a stack. `lora` wraps it as it wraps `nnx.Linear`.
    It starts as zeros: the blocks come from a file.
    """

    def __init__(self, in_features: int, out_features: int):
        if in_features % BLOCK_SIZE:
            raise ValueError(
                f"Q4_1 needs in_features to be a multiple of {BLOCK_SIZE}, got {in_features}"
            )
        shape = (out_features, in_features // BLOCK_SIZE)
        self.codes = Frozen(jnp.zeros((*shape, BLOCK_SIZE // 2), jnp.uint8))
        self.scales = Frozen(jnp.zeros(shape, jnp.float16))
        self.minima = Frozen(jnp.zeros(shape, jnp.float16))

    @property
    def linear_shape(self) -> tuple[int, ...]:
        """(*stacked, in, out), the shape of the kernel that this stands for; `lora` asks for it."""
        *stacked, n_out, n_blocks, _ = self.codes.shape
        return (*stacked, n_blocks * BLOCK_SIZE, n_out)

    def __call__(self, x: jax.Array) -> jax.Array:
        # Checkpointed, because a gradient through x would otherwise keep W of every
        # layer in f32 for the backward pass: more memory than dense weights take. The
        # backward pass unpacks the blocks once more.
        multiply = jax.checkpoint(_multiply, prevent_cse=False)
        return multiply(x, self.codes[...], self.scales[...], self.minima[...])
