"""RAVAN: several small square matrices are trained, each between frozen factors.

    y = x W + s sum_i s_i x A_i H_i B_i,   H_i f32[r, r],  i = 1..h heads

References:
  Raje, Askin, Jhunjhunwala, Joshi (2025). Ravan: Multi-Head Low-Rank Adaptation for
  Federated Fine-Tuning. arXiv 2506.05568.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm import checks, linalg
from fedjax_fm.peft.linear import linear_shape
from fedjax_fm.peft.lora import LoRALinear
from fedjax_fm.peft.method import Method, head_paths
from fedjax_fm.peft.patterns import HEADS, Targets, check_names, check_targets
from fedjax_fm.peft.places import find_linears
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import replace_module


class RavanLinear(LoRALinear):
    """A linear layer with the update s sum_i s_i (x A_i) H_i B_i.

    H and s_i are trained, A and B are not.

    Args:
      base: the linear layer.
      lora_a: all A_i side by side, f32[..., in, h r].
      lora_h: H, f32[..., h, r, r].
      lora_s: s_i, f32[..., h].
      lora_b: all B_i one below the other, f32[..., h r, out].
      scaling: s.
    """

    def __init__(
        self,
        base: Any,
        lora_a: jax.Array,
        lora_h: jax.Array,
        lora_s: jax.Array,
        lora_b: jax.Array,
        scaling: float,
    ):
        super().__init__(base, lora_a, lora_b, scaling)
        self.lora_h = nnx.Param(lora_h)
        self.lora_s = nnx.Param(lora_s)

    def update(self, x: jax.Array) -> jax.Array:
        """Computes s sum_i s_i (x A_i) H_i B_i.

        Args:
          x: [..., in].

        Returns:
          f32[..., out].
        """
        squares = self._scaled_squares()
        inside = x @ self.lora_a[...]
        heads = inside.reshape(*x.shape[:-1], *squares.shape[:-1])
        turned = jnp.einsum("...hr,hrs->...hs", heads, squares)
        return self.scaling * (turned.reshape(inside.shape) @ self.lora_b[...])

    def product(self) -> jax.Array:
        """The update as a matrix.

        Returns:
          s sum_i s_i A_i H_i B_i, f32[..., in, out].
        """
        squares, a, b = self._scaled_squares(), self.lora_a[...], self.lora_b[...]
        n_heads, rank, _ = squares.shape[-3:]
        a = a.reshape(*a.shape[:-1], n_heads, rank)
        b = b.reshape(*b.shape[:-2], n_heads, rank, b.shape[-1])
        whole = jnp.einsum("...ihr,...hrs,...hso->...io", a, squares, b)
        return self.scaling * whole

    def _scaled_squares(self) -> jax.Array:
        """s_i H_i, f32[..., h, r, r]."""
        return self.lora_s[...][..., None, None] * self.lora_h[...]


@refuses_pefts_words
def ravan(
    rank: int,
    alpha: float | None = None,
    *,
    heads: int = 4,
    basis: Literal["orthonormal", "gaussian"] = "orthonormal",
    targets: Targets,
    modules_to_save: Sequence[str] = HEADS,
) -> Method:
    """RAVAN: trains h squares r x r and their scales between random frozen factors.

    H = 0 and s_i = 1, so the model is unchanged at first, and s_i has no gradient until
    H has moved. With an orthonormal basis the heads do not overlap: the update has rank
    sum_i rank H_i and the norm of all s_i H_i together. A matrix has h (r^2 + 1)
    trained numbers, of which `algorithms.lora_rules.ravan` sends h r^2.

    Args:
      rank: r of every head.
      alpha: of the scale s = alpha / r, above 0; None: s = 1.
      heads: h.
      basis: of all A_i together, and of all B_i: "orthonormal", by QR of Gaussian
        numbers, for which h r is at most the smaller side of every target; "gaussian":
        columns of A and rows of B of length 1 on average.
      targets: which linear layers, as for `lora`.
      modules_to_save: modules that are trained in full, as for `lora`.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for names that the
        model does not have, or more than the basis can hold.

    References:
      Raje, Askin, Jhunjhunwala, Joshi (2025), arXiv 2506.05568.

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(layer=nnx.Linear(8, 6, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.ravan(2, heads=3, targets=["layer"]))
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'layer': {'lora_h': (3, 2, 2), 'lora_s': (3,)}}
    """
    checks.whole("rank", rank, least=1)
    checks.whole("heads", heads, least=1)
    checks.choice("basis", basis, ("orthonormal", "gaussian"))
    check_targets("targets", targets)
    check_names("modules_to_save", modules_to_save)
    scaling = 1.0
    if alpha is not None:
        scaling = float(checks.real("alpha", alpha, above=0)) / rank

    def adapted(base: Any, path: str, key: jax.Array) -> RavanLinear:
        *stacked, n_in, n_out = linear_shape(base)
        width = heads * rank
        if basis == "orthonormal" and width > min(n_in, n_out):
            raise ValueError(
                f"expected heads times rank to be at most {min(n_in, n_out)}, the "
                f"smaller side of {path}, for an orthonormal basis, got heads={heads}, "
                f"rank={rank}; basis='gaussian' has no such bound"
            )
        draw = _orthonormal if basis == "orthonormal" else _gaussian
        key_a, key_b = jax.random.split(key)
        return RavanLinear(
            base,
            lora_a=draw(key_a, (*stacked, n_in, width)),
            lora_h=jnp.zeros((*stacked, heads, rank, rank)),
            lora_s=jnp.ones((*stacked, heads)),
            lora_b=jnp.swapaxes(draw(key_b, (*stacked, n_out, width)), -1, -2),
            scaling=scaling,
        )

    return Method("ravan", _installs(adapted, targets, modules_to_save))


def _orthonormal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Columns of length 1, orthogonal to each other."""
    q, _ = linalg.qr(jax.random.normal(key, shape))
    return q


def _gaussian(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Columns of length 1 on average."""
    return jax.random.normal(key, shape) * shape[-2] ** -0.5


def _installs(
    adapted: Callable[[Any, str, jax.Array], RavanLinear],
    targets: Targets,
    modules_to_save: Sequence[str],
) -> Callable[[nnx.Module, jax.Array], set[tuple]]:
    """A method's `install` that wraps every target and trains its squares and scales."""

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable = set()
        found = find_linears(model, targets, modules_to_save)
        for place, (path, base) in enumerate(sorted(found.items())):
            layer = adapted(base, path, jax.random.fold_in(key, place))
            replace_module(model, path, layer)
            names = path.split(".")
            trainable |= {(*names, "lora_h"), (*names, "lora_s")}
        return trainable | head_paths(model, modules_to_save)

    return install
