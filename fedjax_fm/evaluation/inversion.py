"""What a gradient, or an upload, gives away of the texts that it was computed on.

Zhu, Liu, Han, 2019, "Deep Leakage from Gradients", arXiv 1906.08935 (DLG); Deng et al.,
2021, "TAG", arXiv 2103.06819; FedPETuning (Zhang et al. 2023) compares PEFT methods by
such attacks. The threat: a server that knows the model and sees one client's upload.

Two layers give their inputs away without a search:

    a table of embeddings   rows with a gradient are the tokens that occurred
    y = x W + b, one row    dW = x (dy)^T and db = dy, so that x = dW db / |db|^2

Otherwise `invert_gradient` searches for inputs whose gradient is the one that was seen.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm import checks
from fedjax_fm.types import Tree


class Inverted(NamedTuple):
    """What the search found."""

    inputs: Tree  # like the start
    distances: jax.Array  # f32[steps], of the gradients, before each step


def tokens_of_gradient(gradient: Any, threshold: float = 0.0) -> np.ndarray:
    """The tokens that occurred in a batch, by the gradient of the table of embeddings.

    Exact where embeddings are trained, untied from the output layer and without weight
    decay: a token that did not occur has no gradient. With noise on every row it names
    them all.

    Args:
      gradient: f32[V, d], or a change of the table after local steps.
      threshold: rows whose norm is at most this share of the largest count as none, 0
        <= threshold < 1.

    Returns:
      i64[n], numbers of rows, ascending.

    Raises:
      TypeError, ValueError: no matrix, or a threshold out of bounds.

    References:
      Melis et al. 2018, arXiv 1805.04049, section 5.

    Example:
      >>> import numpy as np
      >>> gradient = np.zeros((6, 2))
      >>> gradient[[1, 4]] = 0.5
      >>> tokens_of_gradient(gradient).tolist()
      [1, 4]
    """
    checks.real("threshold", threshold, least=0, below=1)
    rows = np.asarray(gradient)
    if rows.ndim != 2:
        raise ValueError(
            f"expected a gradient of a table [tokens, width], got shape {rows.shape}"
        )
    norms = np.linalg.norm(rows, axis=1)
    return np.flatnonzero(norms > threshold * norms.max(initial=0.0))


def input_of_gradient(of_kernel: Any, of_bias: Any) -> np.ndarray:
    """The input of a linear layer, from the gradients of its kernel and its bias.

    Exact for one row: dW = x (dy)^T and db = dy. Of several rows it is a mean of their
    inputs, weighted by the products of their dy with the sum of all.

    Args:
      of_kernel: f32[in, out].
      of_bias: f32[out], not all zero.

    Returns:
      f64[in].

    Raises:
      ValueError: shapes that do not fit, or a bias without a gradient.

    References:
      Phong et al. 2018, "Privacy-Preserving Deep Learning via Additively Homomorphic
      Encryption", section 3.

    Example:
      >>> import numpy as np
      >>> x, dy = np.array([2.0, -1.0]), np.array([0.5, 0.0, 0.25])
      >>> input_of_gradient(np.outer(x, dy), dy).tolist()
      [2.0, -1.0]
    """
    kernel, bias = np.asarray(of_kernel, np.float64), np.asarray(of_bias, np.float64)
    if kernel.ndim != 2 or bias.shape != kernel.shape[1:]:
        raise ValueError(
            "expected gradients of a kernel [in, out] and a bias [out], got shapes "
            f"{kernel.shape} and {bias.shape}"
        )
    size = bias @ bias
    if size == 0:
        raise ValueError("expected a bias with a gradient, got zeros")
    return kernel @ bias / size


def invert_gradient(
    gradient_of: Callable[[Tree], Tree],
    observed: Tree,
    start: Tree,
    *,
    steps: int = 1000,
    optimizer: optax.GradientTransformation | None = None,
    distance: Literal["squared", "cosine", "tag"] = "squared",
) -> Inverted:
    """Searches for inputs whose gradient is the one that was seen.

        squared:  |g(x) - g|^2                             (DLG)
        cosine:   1 - cos(g(x), g), over all numbers
        tag:      sum over leaves of |g(x) - g|^2 + 0.1 w |g(x) - g|_1, w falling from 1
                  to 0 from the first leaf to the last     (TAG)

    Args:
      gradient_of: `inputs -> gradient`, what the client would have sent; the labels may
        be known to it or be a part of the inputs, as logits. It must have a gradient
        itself.
      observed: what was seen, like the result of `gradient_of`.
      start: floating leaves, often embeddings drawn at random.
      steps: of the search, at least 1.
      optimizer: of the search; None means `optax.adam(0.1)`.
      distance: that is minimised.

    Returns:
      The inputs after the search, and the distances on the way; a distance that stays
      up has found nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Zhu, Liu, Han 2019, arXiv 1906.08935, algorithm 1; Deng et al. 2021, arXiv
      2103.06819, eq. (3).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w = jnp.array([1.0, 2.0])
      >>> gradient_of = jax.grad(lambda w, x: jnp.tanh(w @ x), argnums=0)
      >>> x = jnp.array([0.3, -0.2])
      >>> found = invert_gradient(
      ...     lambda guess: gradient_of(w, guess), gradient_of(w, x), jnp.zeros(2)
      ... )
      >>> found.inputs.round(2).tolist() == x.round(2).tolist()
      True
    """
    checks.whole("steps", steps, least=1)
    checks.choice("distance", distance, tuple(DISTANCES))
    chosen = optax.adam(0.1) if optimizer is None else optimizer
    if not isinstance(chosen, optax.GradientTransformation):
        raise TypeError(f"expected an optax optimizer, got optimizer={optimizer!r}")
    measured = DISTANCES[distance]

    def objective(inputs):
        leaves = jax.tree.leaves(gradient_of(inputs))
        return measured(leaves, jax.tree.leaves(observed))

    def step(carry, _):
        inputs, moments = carry
        value, gradients = jax.value_and_grad(objective)(inputs)
        updates, moments = chosen.update(gradients, moments, inputs)
        return (optax.apply_updates(inputs, updates), moments), value

    (inputs, _), distances = jax.lax.scan(
        step, (start, chosen.init(start)), length=steps
    )
    return Inverted(inputs, distances)


Leaves = Sequence[jax.Array]


def _squared(found: Leaves, seen: Leaves) -> jax.Array:
    """f32[]: of DLG."""
    parts = [jnp.sum((x - y) ** 2) for x, y in zip(found, seen, strict=True)]
    return jnp.sum(jnp.stack(parts))


def _cosine(found: Leaves, seen: Leaves) -> jax.Array:
    """f32[]: 1 - the cosine of all numbers together."""

    def inner(a: Leaves, b: Leaves) -> jax.Array:
        parts = [jnp.sum(x * y) for x, y in zip(a, b, strict=True)]
        return jnp.sum(jnp.stack(parts))

    sizes = inner(found, found) * inner(seen, seen)
    is_defined = sizes > 0
    root = jnp.sqrt(jnp.where(is_defined, sizes, 1.0))
    return 1 - jnp.where(is_defined, inner(found, seen) / root, 0.0)


def _tag(found: Leaves, seen: Leaves) -> jax.Array:
    """f32[]: of TAG, whose first layers count more."""
    weights = jnp.linspace(1.0, 0.0, len(found))
    parts = [
        jnp.sum((x - y) ** 2) + 0.1 * weight * jnp.sum(jnp.abs(x - y))
        for weight, x, y in zip(weights, found, seen, strict=True)
    ]
    return jnp.sum(jnp.stack(parts))


DISTANCES = {"squared": _squared, "cosine": _cosine, "tag": _tag}


def nearest_tokens(embeddings: Any, table: Any) -> np.ndarray:
    """The tokens whose embeddings lie next to the found ones, by the cosine.

    Args:
      embeddings: f32[..., d].
      table: f32[V, d].

    Returns:
      i64[...].

    Example:
      >>> import numpy as np
      >>> nearest_tokens(np.array([[0.1, 2.0]]), np.eye(2)).tolist()
      [1]
    """

    def unit(x: Any) -> np.ndarray:
        rows = np.asarray(x, np.float64)
        norms = np.linalg.norm(rows, axis=-1, keepdims=True)
        return rows / np.where(norms > 0, norms, 1.0)

    return (unit(embeddings) @ unit(table).T).argmax(axis=-1)


def token_f1(found: Sequence[int], truth: Sequence[int]) -> float:
    """How much of a text was recovered, as bags of tokens.

        F1 = 2 |found and truth| / (|found| + |truth|), repetitions counted

    Args:
      found: tokens in any order.
      truth: the text's, without padding.

    Returns:
      From 0, nothing, to 1, all and nothing else; 0 where both are empty.

    References:
      Zhang et al. 2023, FedPETuning, section 4.4.

    Example:
      >>> token_f1([1, 2, 3], [3, 1, 1])  # two of three
      0.6666666666666666
    """
    left = [int(token) for token in truth]
    n_tokens = len(left) + len(found)
    n_common = 0
    for token in found:
        if int(token) in left:
            left.remove(int(token))
            n_common += 1
    return 2 * n_common / n_tokens if n_tokens else 0.0
