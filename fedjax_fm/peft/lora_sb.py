"""LoRA-SB and LoRA-XS: a small square matrix is trained between two frozen factors.

    y = x W + s x A R B,   s = alpha / r,   R f32[r, r]

References:
  Ponkshe, Singhal, Gorbunov, Tumanov, Horvath, Vepakomma (2024). Initialization using
  Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank Fine-Tuning.
  arXiv 2411.19557 (LoRA-SB).
  Balazy, Banaei, Aberer, Tabor (2024). LoRA-XS: Low-Rank Adaptation with Extremely
  Small Number of Parameters. arXiv 2405.17604.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import checks, linalg
from fedjax_fm.peft.linear import linear_shape
from fedjax_fm.peft.lora import LoRALinear
from fedjax_fm.peft.method import Method, head_paths
from fedjax_fm.peft.patterns import HEADS, Targets, check_names, check_targets
from fedjax_fm.peft.places import find_linears
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import dotted, find_modules, replace_module

XS_DEVIATION = 1e-5  # of LoRA-XS' first R


class LoRASBLinear(LoRALinear):
    """A linear layer with the update s (x A) R B, of which only R is trained.

    Args:
      base: the linear layer.
      lora_a: A, f32[..., in, r].
      lora_r: R, f32[..., r, r].
      lora_b: B, f32[..., r, out].
      scaling: s.
    """

    def __init__(
        self,
        base: Any,
        lora_a: jax.Array,
        lora_r: jax.Array,
        lora_b: jax.Array,
        scaling: float,
    ):
        super().__init__(base, lora_a, lora_b, scaling)
        self.lora_r = nnx.Param(lora_r)

    def update(self, x: jax.Array) -> jax.Array:
        """Computes s (x A) R B.

        Args:
          x: [..., in].

        Returns:
          f32[..., out].
        """
        inside = (x @ self.lora_a[...]) @ self.lora_r[...]
        return self.scaling * (inside @ self.lora_b[...])

    def product(self) -> jax.Array:
        """The update as a matrix.

        Returns:
          s A R B, f32[..., in, out].
        """
        return self.scaling * (self.lora_a[...] @ self.lora_r[...] @ self.lora_b[...])


@refuses_pefts_words
def lora_sb(
    rank: int,
    alpha: float | None = None,
    *,
    targets: Targets,
    updates: Mapping[str, jax.Array] | None = None,
    start: Literal["singular values", "zero"] = "singular values",
    modules_to_save: Sequence[str] = HEADS,
) -> Method:
    """LoRA-SB: trains an r x r matrix, started from the first step of full fine-tuning.

        dW ~ U S V^T, the first r singular values;   A = U,   R = S / s,   B = V^T

    dW is the step that AdamW would take first with all of W, so training starts from
    W + U S V^T, its best approximation of rank r. A and B are frozen, with orthonormal
    columns and rows. A matrix has r^2 trained numbers.

    Args:
      rank: r, at most the smaller side of every target.
      alpha: of the scale s = alpha / r, above 0; None: s = 1, as in the paper's theory.
      targets: which linear layers, as for `lora`.
      updates: {dotted module path: f32[..., in, out]}, the step dW of each kernel in
        its true size, such as
        `first_updates(first_gradients(model, loss, targets=...), learning_rate)`.
      start: of R. "singular values" is the paper's. "zero" is not: it takes only the
        directions of `updates`, of any size (for example raw gradients), and leaves the
        model unchanged at first.
      modules_to_save: modules that are trained in full, as for `lora`.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense, or there are no updates; by
        `apply`, updates of another shape, not finite, or zero, for a target.

    References:
      Ponkshe, Singhal, Gorbunov, Tumanov, Horvath, Vepakomma (2024), arXiv 2411.19557.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(layer=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> def loss(model):
      ...     return (model.layer(jnp.ones((2, 4))) ** 2).mean()
      >>> gradients = peft.first_gradients(model, loss, targets=["layer"])
      >>> updates = peft.first_updates(gradients, learning_rate=1e-3)
      >>> method = lora_sb(2, targets=["layer"], updates=updates)
      >>> graphdef, delta, backbone = peft.apply(model, method)
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(delta))
      {'layer': {'lora_r': (2, 2)}}
    """
    checks.whole("rank", rank, least=1)
    checks.choice("start", start, ("singular values", "zero"))
    if updates is None:
        raise ValueError(
            "lora_sb starts from a first full update: give "
            "updates=first_updates(first_gradients(model, loss, targets=...), "
            "learning_rate); lora_xs needs no data"
        )
    check_targets("targets", targets)
    check_names("modules_to_save", modules_to_save)
    scaling = _scaling(rank, alpha)

    def adapted(base: Any, path: str, key: jax.Array) -> LoRASBLinear:
        matrix = _checked_update(updates, path, linear_shape(base))
        u, s, vt = _first_triplets(matrix, rank, path)
        squares = jnp.zeros_like(s) if start == "zero" else s / scaling
        lora_r = _diagonal(squares)
        return LoRASBLinear(base, u, lora_r, vt, scaling=scaling)

    return Method("lora_sb", _installs(adapted, targets, modules_to_save))


@refuses_pefts_words
def lora_xs(
    rank: int,
    alpha: float | None = None,
    *,
    targets: Targets,
    modules_to_save: Sequence[str] = HEADS,
) -> Method:
    """LoRA-XS: trains an r x r matrix between the kernel's own singular vectors.

        W ~ U S V^T, the first r singular values
        A = U S,   R ~ N(0, 1e-5^2),   B = V^T

    It needs no data. The model is almost unchanged at first. A matrix has r^2 trained
    numbers.

    Args:
      rank: r, at most the smaller side of every target.
      alpha: of the scale s = alpha / r, above 0; None: s = 1.
      targets: which linear layers, as for `lora`; their kernels must be dense.
      modules_to_save: modules that are trained in full, as for `lora`.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for names that the
        model does not have, or quantised kernels.

    References:
      Balazy, Banaei, Aberer, Tabor (2024), arXiv 2405.17604, section 3. The standard
      deviation of R is that of their code.

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(layer=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.lora_xs(2, targets=["layer"]))
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'layer': {'lora_r': (2, 2)}}
    """
    checks.whole("rank", rank, least=1)
    check_targets("targets", targets)
    check_names("modules_to_save", modules_to_save)
    scaling = _scaling(rank, alpha)

    def adapted(base: Any, path: str, key: jax.Array) -> LoRASBLinear:
        if not isinstance(base, nnx.Linear):
            raise ValueError(
                f"{path} has no dense kernel to take singular vectors of: load "
                "dense weights, or lora_sb"
            )
        kernel = jnp.asarray(base.kernel[...], jnp.float32)
        u, s, vt = _first_triplets(kernel, rank, path)
        lora_r = XS_DEVIATION * jax.random.normal(key, (*s.shape, rank))
        return LoRASBLinear(base, u * s[..., None, :], lora_r, vt, scaling=scaling)

    return Method("lora_xs", _installs(adapted, targets, modules_to_save))


def first_gradients(
    model: nnx.Module, loss: Callable[[nnx.Module], jax.Array], *, targets: Targets
) -> dict[str, jax.Array]:
    """Computes the gradients of a loss by the kernels of the targets.

    Gradients of several batches or clients can be added up by `jax.tree.map(jnp.add,
    one, another)`.

    Args:
      model: not adapted.
      loss: `f(model) -> f32[]`, over some examples.
      targets: which linear layers, as for `lora`.

    Returns:
      {dotted module path: f32[..., in, out]}.

    Raises:
      ValueError: names that the model does not have.

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(layer=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> def loss(model):
      ...     return (model.layer(jnp.ones((2, 4))) ** 2).mean()
      >>> gradients = peft.first_gradients(model, loss, targets=["layer"])
      >>> gradients["layer"].shape
      (4, 3)
    """
    paths = find_modules(model, targets, nnx.Linear)
    wanted = {f"{path}.kernel" for path in paths}
    graphdef, kernels, others = nnx.split(
        model, lambda path, _: dotted(path) in wanted, ...
    )

    def of_kernels(kernels: nnx.State) -> jax.Array:
        return loss(nnx.merge(graphdef, kernels, others))

    gradients = nnx.to_flat_state(jax.grad(of_kernels)(kernels))
    flat = {dotted(path): leaf for path, leaf in gradients}
    return {path: flat[f"{path}.kernel"][...] for path in paths}


def first_updates(
    gradients: Mapping[str, jax.Array], learning_rate: float
) -> dict[str, jax.Array]:
    """Computes the first step that AdamW would take with all weights.

        dW = -eta sign(sum_i grad L_i(W))

    Args:
      gradients: {dotted module path: f32[..., in, out]}, summed over examples. The
        paper takes 0.1 % of the training data, at least some dozens of examples.
      learning_rate: eta of the first step of full fine-tuning, above 0. The authors'
        code takes the learning rate of R divided by the number of warm-up steps, which
        is the rate of the first step of their linear warm-up.

    Returns:
      {dotted module path: f32[..., in, out]}, for `lora_sb(updates=...)`.

    Raises:
      TypeError, ValueError: a learning rate that is not above 0, or no gradients.

    Example:
      >>> gradients = {"layer": jnp.array([[3.0, -0.1]])}
      >>> first_updates(gradients, learning_rate=0.5)["layer"].tolist()
      [[-0.5, 0.5]]
    """
    checks.real("learning_rate", learning_rate, above=0)
    if not gradients:
        raise ValueError("expected gradients of at least one kernel, got none")
    found = {}
    for path, gradient in gradients.items():
        sign = jnp.sign(jnp.asarray(gradient, jnp.float32))
        found[path] = -learning_rate * sign
    return found


def _scaling(rank: int, alpha: float | None) -> float:
    """The scale s = alpha / r, or 1."""
    if alpha is None:
        return 1.0
    return float(checks.real("alpha", alpha, above=0)) / rank


def _installs(
    adapted: Callable[[Any, str, jax.Array], LoRASBLinear],
    targets: Targets,
    modules_to_save: Sequence[str],
) -> Callable[[nnx.Module, jax.Array], set[tuple]]:
    """A method's `install` that wraps every target and trains its R.

    `adapted(base, path, key)` makes the wrapper.
    """

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable = set()
        found = find_linears(model, targets, modules_to_save)
        for place, (path, base) in enumerate(sorted(found.items())):
            layer = adapted(base, path, jax.random.fold_in(key, place))
            replace_module(model, path, layer)
            trainable.add((*path.split("."), "lora_r"))
        return trainable | head_paths(model, modules_to_save)

    return install


def _checked_update(
    updates: Mapping[str, jax.Array], path: str, shape: tuple[int, ...]
) -> jax.Array:
    """The update of one target, f32[..., in, out]; refuses one without directions."""
    if path not in updates:
        raise ValueError(
            f"updates hold nothing for {path!r}; they hold {sorted(updates)}"
        )
    matrix = jnp.asarray(updates[path], jnp.float32)
    if matrix.shape != shape:
        raise ValueError(
            f"expected the update of {path!r} to be [..., in, out] = {shape}, got "
            f"{matrix.shape}"
        )
    numbers = np.asarray(matrix)
    if not np.isfinite(numbers).all():
        raise ValueError(f"the update of {path!r} is not finite")
    has_directions = numbers.any(axis=(-2, -1))
    if not has_directions.all():
        raise ValueError(
            f"the update of {path!r} is zero in a layer: it has no directions. "
            "Does the loss use it?"
        )
    return matrix


def _first_triplets(
    matrix: jax.Array, rank: int, path: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first r singular triplets: U [..., in, r], S [..., r], V^T [..., r, out]."""
    if rank > min(matrix.shape[-2:]):
        raise ValueError(
            f"rank={rank} exceeds the smaller side of {path} {matrix.shape[-2:]}"
        )
    u, s, vt = linalg.svd(matrix)
    return u[..., :rank], s[..., :rank], vt[..., :rank, :]


def _diagonal(values: jax.Array) -> jax.Array:
    """Diagonal matrices, [..., r] -> [..., r, r]."""
    return values[..., None] * jnp.eye(values.shape[-1])
