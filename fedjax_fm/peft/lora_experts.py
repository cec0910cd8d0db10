"""LoRA experts behind a router: each input takes some of them, its own more often.

    y = x W + s sum_j g_j(x) x A_j B_j,   j = 0..M-1, of which 0 is the client's own

    p = softmax(x R), 2 M - 1 numbers: p_0..p_{M-1} of the experts, the others of the
    own one again; the M largest stay, divided by their sum
    g_0 = p_0 + p_M + ... + p_{2M-2},   g_j = p_j

So an input may use one expert or up to M.

References:
  Wang et al. (2025). Adaptive LoRA Experts Allocation and Selection for Federated
  Fine-Tuning (FedLEASE).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.peft.linear import linear_shape
from fedjax_fm.peft.method import Method, head_paths
from fedjax_fm.peft.patterns import HEADS, Targets, check_names, check_targets
from fedjax_fm.peft.places import find_linears
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import Wrapper, replace_module


class LoRAExpertsLinear(Wrapper):
    """A linear layer with low-rank experts and a router.

    Args:
      base: the linear layer, frozen.
      expert_a: A_j, f32[..., M, in, r].
      expert_b: B_j, f32[..., M, r, out].
      router: R, f32[..., in, 2 M - 1].
      scaling: s.
    """

    def __init__(
        self,
        base: Any,
        expert_a: jax.Array,
        expert_b: jax.Array,
        router: jax.Array,
        scaling: float,
    ):
        self.base = base
        self.expert_a, self.expert_b = nnx.Param(expert_a), nnx.Param(expert_b)
        self.router = nnx.Param(router)
        self.scaling = scaling

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        y = self.base(x)
        shares = expert_shares(x @ self.router[...])
        inside = jnp.einsum("...i,mir->...mr", x, self.expert_a[...])
        weighted = shares[..., None] * inside
        update = jnp.einsum("...mr,mro->...o", weighted, self.expert_b[...])
        return (y + self.scaling * update).astype(y.dtype)


def expert_shares(logits: jax.Array) -> jax.Array:
    """What each expert counts, g.

    Args:
      logits: f32[..., 2 M - 1].

    Returns:
      f32[..., M], not negative, with the sum 1.

    Example:
      >>> logits = jnp.log(jnp.array([0.1, 0.3, 0.6]))  # M = 2; the last is the own one
      >>> [round(float(x), 3) for x in expert_shares(logits)]  # 0.6 and 0.3 stay
      [0.667, 0.333]
    """
    n_experts = (logits.shape[-1] + 1) // 2
    p = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    _, places = jax.lax.top_k(p, n_experts)
    is_kept = jnp.sum(jax.nn.one_hot(places, p.shape[-1]), axis=-2)
    kept = p * is_kept
    kept = kept / jnp.sum(kept, axis=-1, keepdims=True)
    own_again = jnp.sum(kept[..., n_experts:], axis=-1)
    return kept[..., :n_experts].at[..., 0].add(own_again)


@refuses_pefts_words
def lora_experts(
    rank: int,
    alpha: float | None = None,
    *,
    experts: int,
    targets: Targets,
    modules_to_save: Sequence[str] = HEADS,
) -> Method:
    """Trains several LoRA experts and a router in every target, as FedLEASE has them.

    All A start alike, as PEFT draws them, all B at zero; `lora_rules.expert_start` puts
    the clusters' adapters in their place. The router is drawn from U(-1/sqrt(d_in),
    1/sqrt(d_in)). A matrix has M r (d_in + d_out) + (2 M - 1) d_in trained numbers.

    Args:
      rank: r of every expert.
      alpha: of the scale s = alpha / r, above 0; None: s = 1.
      experts: M; with 1 it is LoRA.
      targets: which linear layers, as for `lora`.
      modules_to_save: modules that are trained in full, as for `lora`.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for names that the
        model does not have.

    References:
      Wang et al. (2025), FedLEASE; github.com/lei-wang-link/FedLEASE.

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(layer=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.lora_experts(2, experts=3, targets=["layer"]))
      >>> shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      >>> shapes["layer"]["expert_a"], shapes["layer"]["router"]
      ((3, 4, 2), (4, 5))
    """
    checks.whole("rank", rank, least=1)
    checks.whole("experts", experts, least=1)
    check_targets("targets", targets)
    check_names("modules_to_save", modules_to_save)
    scaling = 1.0
    if alpha is not None:
        scaling = float(checks.real("alpha", alpha, above=0)) / rank

    def adapted(base: Any, key: jax.Array) -> LoRAExpertsLinear:
        *stacked, n_in, n_out = linear_shape(base)
        bound = n_in**-0.5
        key_a, key_router = jax.random.split(key)

        def draw(own: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(own, shape, minval=-bound, maxval=bound)

        a = draw(key_a, (*stacked, 1, n_in, rank))
        return LoRAExpertsLinear(
            base,
            expert_a=jnp.repeat(a, experts, axis=-3),
            expert_b=jnp.zeros((*stacked, experts, rank, n_out)),
            router=draw(key_router, (*stacked, n_in, 2 * experts - 1)),
            scaling=scaling,
        )

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable = set()
        found = find_linears(model, targets, modules_to_save)
        for place, (path, base) in enumerate(sorted(found.items())):
            layer = adapted(base, jax.random.fold_in(key, place))
            replace_module(model, path, layer)
            names = path.split(".")
            leaves = ("expert_a", "expert_b", "router")
            trainable |= {(*names, leaf) for leaf in leaves}
        return trainable | head_paths(model, modules_to_save)

    return Method("lora_experts", install)
