"""The network of `lora_problem` with RAVAN's heads, and its training by hand in numpy.

Heads side by side are one square with blocks on its diagonal, as Fed-SB trains it.
"""

import jax
import jax.numpy as jnp
import lora_problem
import numpy as np
from lora_problem import LAYERS, RATE, STEPS, in_numpy

N_HEADS, RANK = 2, 2


def make_trees(n_heads=N_HEADS):
    """(delta with lora_h and lora_s, backbone), from no particular start."""
    squares, backbone = lora_problem.make_trees(rank=n_heads * RANK, squares=True)
    delta = {"head": squares["head"]}
    for name in LAYERS:
        whole = squares[name]["lora_r"]
        blocks = whole.reshape(*whole.shape[:-2], n_heads, RANK, n_heads, RANK)
        heads = np.einsum("...iaib->...iab", blocks)
        scales = np.ones(heads.shape[:-2], np.float32)
        delta[name] = {"lora_h": np.array(heads), "lora_s": scales}
    return delta, backbone


def as_squares(delta):
    """The same update with one square a matrix: s_i H_i on the diagonal."""
    whole = {"head": delta["head"]}
    for name in LAYERS:
        heads = delta[name]["lora_s"][..., None, None] * delta[name]["lora_h"]
        n_heads, rank, _ = heads.shape[-3:]
        blocks = jnp if isinstance(heads, jax.Array) else np
        square = blocks.einsum("...iab,ij->...iajb", heads, np.eye(n_heads))
        side = n_heads * rank
        whole[name] = {"lora_r": square.reshape(*heads.shape[:-3], side, side)}
    return whole


def loss(delta, backbone, batch, key):
    """(squared errors [B], {})."""
    return lora_problem.loss(as_squares(delta), backbone, batch, key)


def effective(delta, backbone):
    """{layer: kernel and update, "head"}, in f64."""
    return lora_problem.effective(as_squares(in_numpy(delta)), backbone)


def train(delta, backbone, client, chosen=None):
    """Gradient descent on the heads of `chosen`, {layer: numbers}; then s_i in H_i.

    By the chain rule: of H_i it is s_i times the block of the square's gradient, of s_i
    the block's product with H_i.
    """
    delta, backbone, client = in_numpy(delta), in_numpy(backbone), in_numpy(client)
    for _ in range(STEPS):
        of_squares = lora_problem.gradients(
            as_squares(delta), backbone, client["x"], client["y"]
        )
        after = {"head": delta["head"] - RATE * of_squares["head"]}
        for name in LAYERS:
            heads, scales = delta[name]["lora_h"], delta[name]["lora_s"]
            n_heads, rank, _ = heads.shape[-3:]
            whole = of_squares[name]["lora_r"]
            whole = whole.reshape(*whole.shape[:-2], n_heads, rank, n_heads, rank)
            blocks = np.einsum("...iaib->...iab", whole)
            is_chosen = np.ones(n_heads)
            if chosen is not None:
                is_chosen = np.isin(np.arange(n_heads), chosen[name])
            of_heads = is_chosen[:, None, None] * scales[..., None, None] * blocks
            of_scales = is_chosen * np.sum(blocks * heads, axis=(-2, -1))
            after[name] = {
                "lora_h": heads - RATE * of_heads,
                "lora_s": scales - RATE * of_scales,
            }
        delta = after
    for name in LAYERS:
        heads, scales = delta[name]["lora_h"], delta[name]["lora_s"]
        delta[name] = {
            "lora_h": scales[..., None, None] * heads,
            "lora_s": np.ones_like(scales),
        }
    return delta
