"""LoRA-SB: Initialization using Update Approximation is a Silver Bullet for Extremely
Efficient Low-Rank Fine-Tuning.

Ponkshe, Singhal, Gorbunov, Tumanov, Horvath, Vepakomma, 2024, arXiv 2411.19557, on the
form of LoRA-XS (Balazy, Banaei, Aberer, Tabor, 2024, arXiv 2405.17604): y = x W + s x A
R B, s = alpha / r, where A and B are frozen and only the square R is trained.

    dW = -eta sign(sum_i grad L_i(W));   dW ~ U S V^T, the first r;   A = U,  R = S / s,  B = V^T

so that training starts from W + U S V^T, the best approximation of rank r of the first
step that AdamW would take with all of W.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.peft.linear import linear_shape
from fedjax_fm.peft.lora import LoRALinear
from fedjax_fm.peft.method import Method, head_paths
from fedjax_fm.peft.patterns import HEADS, Targets, check_names, check_targets
from fedjax_fm.peft.places import find_linears
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import find_modules, replace_module

XS_DEVIATION = 1e-5  # of LoRA-XS' first R


class LoRASBLinear(LoRALinear):
    """A linear layer beside `lora_a` [..., in, r], `lora_r` [..., r, r], `lora_b` [..., r, out]."""

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
        inside = (x @ self.lora_a[...]) @ self.lora_r[...]
        return self.scaling * (inside @ self.lora_b[...])

    def product(self) -> jax.Array:
        """Scaling A R B, [..., in, out]."""
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
    """Trains an r x r matrix inside every target, from an approximation of the first full step.

    Args:
      rank: r, at most the smaller side of every target.
      alpha: scale above 0; None means alpha = rank, a factor of one. The paper's theory
        has a factor of one.
      targets, modules_to_save: as in `lora`.
      updates: {dotted module path: [..., in, out]}, the step that full fine-tuning
        would add to each kernel, of its true size:
        `first_updates(first_gradients(model, loss, targets=...), learning_rate)`.
      start: of R. "singular values" is the paper's: the model starts moved by the best
        approximation of `updates`. "zero" is not the paper's: only the directions of
        `updates` are taken, whatever their size (raw gradients, say), and the model is
        unchanged at first.

    Returns:
      The method; it trains r^2 numbers a matrix. A and B have orthonormal columns and rows.

    Raises:
      ValueError: no updates, or updates of another shape, not finite, or zero, for a target.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(layer=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> loss = lambda model: (model.layer(jnp.ones((2, 4))) ** 2).mean()
      >>> gradients = peft.first_gradients(model, loss, targets=["layer"])
      >>> updates = peft.first_updates(gradients, learning_rate=1e-3)
      >>> method = peft.lora_sb(2, targets=["layer"], updates=updates)
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
        return LoRASBLinear(base, u, _diagonal(squares), vt, scaling)

    return Method("lora_sb", _installs(adapted, targets, modules_to_save))


@refuses_pefts_words
def lora_xs(
    rank: int,
    alpha: float | None = None,
    *,
    targets: Targets,
    modules_to_save: Sequence[str] = HEADS,
) -> Method:
    """LoRA-XS: trains an r x r matrix between the principal directions of the kernel itself.

    It needs no data.

        W ~ U S V^T, the first r;   A = U S,  R ~ N(0, 1e-5^2),  B = V^T

    Args:
      rank, alpha, targets, modules_to_save: as in `lora_sb`; targets need dense kernels.

    Returns:
      The method; it trains r^2 numbers a matrix, and the model is all but unchanged at first.

    References:
      Balazy, Banaei, Aberer, Tabor, 2024, arXiv 2405.17604, section 3; the deviation is
      their code's.
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
        u, s, vt = _first_triplets(
            jnp.asarray(base.kernel[...], jnp.float32), rank, path
        )
        lora_r = XS_DEVIATION * jax.random.normal(key, (*s.shape, rank))
        return LoRASBLinear(base, u * s[..., None, :], lora_r, vt, scaling)

    return Method("lora_xs", _installs(adapted, targets, modules_to_save))


def first_gradients(
    model: nnx.Module, loss: Callable[[nnx.Module], jax.Array], *, targets: Targets
) -> dict[str, jax.Array]:
    """{dotted module path: [..., in, out]}.

    Gradients of `loss(model) -> f32[]` by the targets' kernels.

    Gradients of several batches, or clients, are added up: `jax.tree.map(jnp.add, one, another)`.
    """
    paths = find_modules(model, targets, nnx.Linear)
    wanted = {(*path.split("."), "kernel") for path in paths}
    graphdef, kernels, others = nnx.split(
        model, lambda path, _: tuple(map(str, path)) in wanted, ...
    )
    gradients = jax.grad(lambda kernels: loss(nnx.merge(graphdef, kernels, others)))(
        kernels
    )
    flat = {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(gradients)}
    return {path: flat[(*path.split("."), "kernel")][...] for path in paths}


def first_updates(
    gradients: Mapping[str, jax.Array], learning_rate: float
) -> dict[str, jax.Array]:
    """-learning_rate * sign(gradients), the first step of AdamW with all weights, for
    `lora_sb(updates=...)`.

    Args:
      gradients: {dotted module path: [..., in, out]}, summed over the examples, of
        which the paper takes 0.1 % of the training data (at least some dozens).
      learning_rate: eta, of full fine-tuning's first step. The authors' code takes the
        rate that it trains R with, over the steps of its linear warm-up: what the first
        step of that schedule has.
    """
    checks.real("learning_rate", learning_rate, above=0)
    if not gradients:
        raise ValueError("expected gradients of at least one kernel, got none")
    return {
        path: -learning_rate * jnp.sign(jnp.asarray(g, jnp.float32))
        for path, g in gradients.items()
    }


def _scaling(rank: int, alpha: float | None) -> float:
    return 1.0 if alpha is None else float(checks.real("alpha", alpha, above=0)) / rank


def _installs(
    adapted: Callable[[Any, str, jax.Array], LoRASBLinear],
    targets: Targets,
    modules_to_save: Sequence[str],
) -> Callable[[nnx.Module, jax.Array], set[tuple]]:
    """What a `Method` does.

    Puts `adapted(base, path, key)` around every target and trains its R.
    """

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable = set()
        for place, (path, base) in enumerate(
            sorted(find_linears(model, targets, modules_to_save).items())
        ):
            layer = adapted(base, path, jax.random.fold_in(key, place))
            replace_module(model, path, layer)
            trainable.add((*path.split("."), "lora_r"))
        return trainable | head_paths(model, modules_to_save)

    return install


def _checked_update(
    updates: Mapping[str, jax.Array], path: str, shape: tuple[int, ...]
) -> jax.Array:
    """f32[..., in, out], the update of one target."""
    if path not in updates:
        raise ValueError(
            f"updates hold nothing for {path!r}; they hold {sorted(updates)}"
        )
    matrix = jnp.asarray(updates[path], jnp.float32)
    if matrix.shape != shape:
        raise ValueError(
            f"expected the update of {path!r} to be [..., in, out] = {shape}, got {matrix.shape}"
        )
    numbers = np.asarray(matrix)
    if not np.isfinite(numbers).all():
        raise ValueError(f"the update of {path!r} is not finite")
    if not numbers.any(axis=(-2, -1)).all():
        raise ValueError(
            f"the update of {path!r} is zero in a layer: it has no directions. "
            "Does the loss use it?"
        )
    return matrix


def _first_triplets(
    matrix: jax.Array, rank: int, path: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """U [..., in, r], S [..., r], V^T [..., r, out]."""
    if rank > min(matrix.shape[-2:]):
        raise ValueError(
            f"rank={rank} exceeds the smaller side of {path} {matrix.shape[-2:]}"
        )
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u[..., :rank], s[..., :rank], vt[..., :rank, :]


def _diagonal(values: jax.Array) -> jax.Array:
    """[..., r] -> [..., r, r]."""
    return values[..., None] * jnp.eye(values.shape[-1])
