"""LoRA-SB: Initialization using Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank Fine-Tuning.

Ponkshe, Singhal, Gorbunov, Tumanov, Horvath, Vepakomma, 2024, arXiv 2411.19557, after LoRA-XS (Balazy et al., 2024,
arXiv 2405.17604). y = x W + (alpha / r) x A R B with A and B frozen and only the square R trained, from R = 0.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.checks import real, whole
from fedjax_fm.peft.lora import LoRALinear
from fedjax_fm.peft.method import Method, head_paths
from fedjax_fm.peft.patterns import HEADS, Targets, check_names, check_targets
from fedjax_fm.peft.places import find_linears
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import find_modules, replace_module


class LoRASBLinear(LoRALinear):
    """A linear layer beside `lora_a` [..., in, r], `lora_r` [..., r, r], `lora_b` [..., r, out]."""

    def __init__(self, base: Any, lora_a: jax.Array, lora_b: jax.Array, scaling: float):
        super().__init__(base, lora_a, lora_b, scaling)
        rank = lora_a.shape[-1]
        self.lora_r = nnx.Param(jnp.zeros((*lora_a.shape[:-2], rank, rank), jnp.float32))

    def update(self, x: jax.Array) -> jax.Array:
        return self.scaling * (((x @ self.lora_a[...]) @ self.lora_r[...]) @ self.lora_b[...])

    def product(self) -> jax.Array:
        """scaling A R B, [..., in, out]."""
        return self.scaling * (self.lora_a[...] @ self.lora_r[...] @ self.lora_b[...])


@refuses_pefts_words
def lora_sb(
    rank: int,
    alpha: float | None = None,
    *,
    targets: Targets,
    updates: Mapping[str, jax.Array] | None = None,
    modules_to_save: Sequence[str] = HEADS,
) -> Method:
    """Trains an r x r matrix inside every target.

    Args:
      rank: r, at most the smaller side of every target.
      alpha: scale; None means alpha = rank, a factor of one.
      targets, modules_to_save: as in `lora`.
      updates: {dotted module path: [..., in, out]}, what a full update of each kernel would be, up to its size, for
        example `first_gradients`; A and B are its first singular vectors. None takes the kernels themselves (LoRA-XS).

    Trains r^2 numbers a matrix. A and B have orthonormal columns and rows; the model is unchanged at first.
    """
    whole("rank", rank, least=1)
    if alpha is not None:
        real("alpha", alpha, above=0)
    check_targets("targets", targets)
    check_names("modules_to_save", modules_to_save)
    scaling = float(rank if alpha is None else alpha) / rank

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable = set()
        for path, base in sorted(find_linears(model, targets, modules_to_save).items()):
            if updates is not None and path not in updates:
                raise ValueError(f"updates hold nothing for {path!r}; they hold {sorted(updates)}")
            if updates is None and not isinstance(base, nnx.Linear):
                raise ValueError(f"{path} has no dense kernel to take singular vectors of: give updates=")
            matrix = jnp.asarray(base.kernel[...] if updates is None else updates[path], jnp.float32)
            if rank > min(matrix.shape[-2:]):
                raise ValueError(f"rank={rank} exceeds the smaller side of {path} {matrix.shape[-2:]}")
            u, _, vt = jnp.linalg.svd(matrix, full_matrices=False)
            replace_module(model, path, LoRASBLinear(base, u[..., :rank], vt[..., :rank, :], scaling))
            trainable.add((*path.split("."), "lora_r"))
        return trainable | head_paths(model, modules_to_save)

    return Method("lora_sb", install)


def first_gradients(
    model: nnx.Module, loss: Callable[[nnx.Module], jax.Array], *, targets: Targets
) -> dict[str, jax.Array]:
    """{dotted module path: [..., in, out]}: gradients of `loss(model) -> f32[]` by the targets' kernels, the direction
    of a first full update, for `lora_sb(updates=...)`."""
    paths = find_modules(model, targets, nnx.Linear)
    wanted = {(*path.split("."), "kernel") for path in paths}
    graphdef, kernels, others = nnx.split(model, lambda path, _: tuple(map(str, path)) in wanted, ...)
    gradients = jax.grad(lambda kernels: loss(nnx.merge(graphdef, kernels, others)))(kernels)
    flat = {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(gradients)}
    return {path: flat[(*path.split("."), "kernel")][...] for path in paths}
