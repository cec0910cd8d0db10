"""Which tokens a server reads off one client's upload, by the span of its gradients.

    dW = sum_t x_t d_t^T:  what a trained matrix read of the client's tokens, x_t, lies
    in the span of its gradient

The attacker knows the model, how many tokens the client has, and a pool of texts among
which the client's are: it takes the tokens whose x_t lie nearest to the leading singular
vectors, added up over all matrices of the upload. Vectors alone (biases, prefixes) give
it nothing to go by, and it guesses.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fedjax_fm import peft
from fedjax_fm.evaluation import token_f1
from fedjax_fm.evaluation.leaks import span_residuals
from fedjax_fm.experiments.privacy_peft.clients import Arrays
from fedjax_fm.peft.targets import Wrapper, get_module, replace_module
from fedjax_fm.types import Tree

DIGITS = 5  # of residuals; what differs behind them is rounding
SMALLEST = 1e-12  # square of a singular value, as a share of the largest
# What a matrix of a module reads, of the input of the module.
READS: dict[str, Callable[[Any, jax.Array], jax.Array]] = {
    "kernel": lambda module, x: x,
    "lora_a": lambda module, x: x,
    "lora_b": lambda module, x: x @ module.lora_a[...],
    "lora_r": lambda module, x: x @ module.lora_a[...],
    "down": lambda module, x: x,
}


class Tap(Wrapper):
    """A module that tells what it is called with.

    Args:
      base: the module.
      tell: is called with the input.
    """

    def __init__(self, base: Any, tell: Callable[[jax.Array], None]):
        self.base, self.tell = base, tell

    def __call__(self, x: jax.Array, *more: Any) -> jax.Array:
        """As the module."""
        self.tell(x)
        return self.base(x, *more)


def matrices_of(gradient: Tree) -> dict[tuple[str, str], np.ndarray]:
    """The matrices of an upload whose inputs an attacker can compute.

    Args:
      gradient: nnx state of one client's upload.

    Returns:
      {(dotted path of the module, name): f32[in, out]}.
    """
    found = {}
    for path, leaf in nnx.to_flat_state(gradient):
        *module, name = map(str, path)
        if name in READS and leaf.ndim == 2:
            found[".".join(module), name] = np.asarray(leaf[...])
    return found


def inputs_of(
    adapted: peft.Adapted, names: list[tuple[str, str]], rows: Arrays
) -> dict[tuple[str, str], np.ndarray]:
    """What matrices read of some rows.

    Args:
      adapted: the model, whose layer is in no stack.
      names: of `matrices_of`.
      rows: {"hidden", "attention_mask"}, [n, T, ...].

    Returns:
      {name: f32[n, T, in]}.
    """
    model, seen = adapted.model(), {}
    owners = {module for module, _ in names}
    modules = {module: get_module(model, module) for module in owners}
    for module in owners:
        tap = Tap(modules[module], functools.partial(seen.__setitem__, module))
        replace_module(model, module, tap)
    model(jnp.asarray(rows["hidden"]), jnp.asarray(rows["attention_mask"]))
    return {
        (module, name): np.asarray(READS[name](modules[module], seen[module]))
        for module, name in names
    }


def leading(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The leading left singular vectors of a matrix, each times its singular value.

    By the smaller of its two products with itself, which costs less than its SVD.

    Args:
      matrix: f32[in, out].
      rank: how many, at most; vectors of a singular value of zero are left out.

    Returns:
      f64[in, rank or less].
    """
    wide = matrix.astype(np.float64)
    n_in, n_out = wide.shape
    if n_in <= n_out:
        squares, vectors = np.linalg.eigh(wide @ wide.T)
        found = vectors * np.sqrt(np.maximum(squares, 0.0))
    else:
        squares, vectors = np.linalg.eigh(wide.T @ wide)
        found = wide @ vectors
    is_some = squares > SMALLEST * squares.max(initial=0.0)
    return found[:, is_some][:, -rank:]


def residuals(vectors: np.ndarray, inputs: np.ndarray) -> Any:
    """How far inputs lie from the span of some vectors, f64[n], 0 to 1.

    Args:
      vectors: f64[in, rank], of `leading`; of no vector all inputs lie apart.
      inputs: f32[n, in].
    """
    if not vectors.size:
        return np.ones(len(inputs))
    return span_residuals(vectors, inputs, tolerance=SMALLEST**0.5)


def recovered(
    adapted: peft.Adapted, upload: Tree, own: Arrays, others: Arrays, seed: int
) -> float:
    """How many of a client's tokens are told from those of others, as F1.

    Args:
      adapted: the model that the client was sent.
      upload: the gradient that it sends, with or without noise.
      own: the client's rows.
      others: rows of the pool beside them.
      seed: of guesses, where nothing tells tokens apart.

    Returns:
      From 0 to 1; guessing gives the share of the client's tokens in the pool.
    """
    pool = {
        name: np.concatenate([own[name], others[name]])
        for name in ("hidden", "attention_mask")
    }
    is_real = pool["attention_mask"] == 1
    n_tokens, n_pool = int((own["attention_mask"] == 1).sum()), int(is_real.sum())
    total, matrices = np.zeros(n_pool), matrices_of(upload)
    for name, inputs in inputs_of(adapted, list(matrices), pool).items():
        part = leading(matrices[name], n_tokens)
        total += residuals(part, inputs[is_real])
    guess = np.random.default_rng(seed).permutation(n_pool)
    nearest = np.lexsort((guess, total.round(DIGITS)))[:n_tokens]
    return token_f1(nearest.tolist(), list(range(n_tokens)))


def noisy(upload: Tree, clip: float, multiplier: float, key: jax.Array) -> Tree:
    """An upload as it is clipped, with the noise that a round adds to the sum.

    Args:
      upload: of one client.
      clip: the largest norm.
      multiplier: deviation of the noise in clip norms; 0 for none.
      key: of the noise.
    """
    scale = jnp.minimum(1.0, clip / optax.tree.norm(upload))
    leaves, structure = jax.tree.flatten(upload)
    keys = jax.random.split(key, len(leaves))
    made = [
        scale * leaf + multiplier * clip * jax.random.normal(own, leaf.shape)
        for leaf, own in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, made)
