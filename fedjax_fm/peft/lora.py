"""LoRA: Low-Rank Adaptation of Large Language Models.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, 2021, arXiv 2106.09685. y = x W +
(alpha / r) (x A) B, with W frozen, A random and B = 0, so that the model is unchanged
at first. rsLoRA: alpha / sqrt(r) (Kalajdzievski, 2023, arXiv 2312.03732). FFA-LoRA
trains B only (Sun et al., 2024, arXiv 2403.12313).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.checks import flag, real, whole
from fedjax_fm.kernels import dense
from fedjax_fm.models.randomness import dropout
from fedjax_fm.models.stacked import Shared
from fedjax_fm.peft.linear import linear_shape
from fedjax_fm.peft.method import Method, head_paths
from fedjax_fm.peft.patterns import HEADS, Targets, check_names, check_targets
from fedjax_fm.peft.places import (
    Place,
    cut_by_choice,
    of_pattern,
    places,
    refuse_unused,
    selected,
)
from fedjax_fm.peft.spelling import refuses_pefts_words
from fedjax_fm.peft.targets import Wrapper, get_module, replace_module
from fedjax_fm.peft.tokens import TokenIndices, check_token_indices, install_tokens


class LoRALinear(Wrapper):
    """A linear layer with a low-rank update beside it.

    `lora_a` [..., in, r] and `lora_b` [..., r, out] keep the leading layer axis of a
    stacked kernel; a `Shared` lora_a has none. The update is never added to the kernel:
    W + A B would make one copy of W per client.
    """

    def __init__(
        self,
        base: Any,
        lora_a: jax.Array | Shared,
        lora_b: jax.Array,
        scaling: float,
        *,
        use_rslora: bool = False,
        dropout: float = 0.0,
        place: int = 0,
    ):
        self.base = base
        self.lora_a = lora_a if isinstance(lora_a, Shared) else nnx.Param(lora_a)
        self.lora_b = nnx.Param(lora_b)
        self.scaling, self.use_rslora = scaling, use_rslora
        self.dropout, self.place = dropout, place

    @property
    def alpha(self) -> float:
        """The alpha that `scaling` came from."""
        rank = self.lora_b.shape[-2]
        return self.scaling * (math.sqrt(rank) if self.use_rslora else rank)

    def update(self, x: jax.Array) -> jax.Array:
        """What is added to base(x)."""
        return self.of_dropped(self.dropped(x))

    def dropped(self, x: jax.Array) -> jax.Array:
        """What the factors read: x with entries zeroed by dropout; x itself where there is none."""
        return dropout(x, self.dropout, self.place)

    def of_dropped(self, x: jax.Array) -> jax.Array:
        """Scaling (x A) B."""
        return dense(self.scaling * dense(x, self.lora_a[...]), self.lora_b[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.base(x)
        # The factors are f32; beside a bf16 backbone the sum returns to bf16, or the
        # layers' scan would change dtype.
        return (y + self.update(x)).astype(y.dtype)

    def product(self) -> jax.Array:
        """Scaling A B, [..., in, out]."""
        return self.scaling * (self.lora_a[...] @ self.lora_b[...])

    def fold(
        self, kernel: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        return (kernel + self.product()).astype(kernel.dtype), bias

    def unfold(
        self, kernel: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        return (kernel - self.product()).astype(kernel.dtype), bias


class Factors(NamedTuple):
    """What one adapted layer has: the rank of its factors and the alpha of their scale."""

    rank: int
    alpha: float


class Setup(NamedTuple):
    """What all adapted layers of a model have in common."""

    use_rslora: bool = False
    dropout: float = 0.0
    freeze_a: bool = False
    share_a: bool = False
    kind: type["LoRALinear"] = LoRALinear


@refuses_pefts_words
def lora(
    rank: int,
    alpha: float | None = None,
    *,
    targets: Targets,
    exclude_modules: Targets | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    trainable_token_indices: TokenIndices | None = None,
    use_rslora: bool = False,
    dropout: float = 0.0,
    freeze_a: bool = False,
    share_a: bool = False,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
    kind: type[LoRALinear] = LoRALinear,
) -> Method:
    """LoRA on the linear layers that `targets` names.

    Args:
      rank: r, at most the smaller side of every target.
      alpha: scale; None means alpha = rank of each layer, a factor of one.
      targets: a regular expression on the dotted module path, or a list of path
        endings; or "all-linear", every linear layer but the head. Layers may also be
        named as PEFT does, with their numbers: an ending or a whole name
        ("model.layers.0.self_attn.q_proj"). Each entry of a list and each alternative
        of an expression must be found.
      exclude_modules: as `targets`, layers that stay as they are.
      rank_pattern, alpha_pattern: {ending of a layer's name, an expression: its rank or
        alpha}, as in PEFT; the first key that fits counts. Where layers of one stack
        differ, the stack is cut into runs of equal layers.
      trainable_token_indices: tokens whose embeddings are trained, too: ids of the
        input embedding, or {ending of an embedding's path: ids}. A tied head reads the
        trained rows.
      use_rslora: scale by alpha / sqrt(r).
      dropout: rate on the input of A; acts only where the model is called with a key.
      freeze_a: A stays at its random start (the same for all who know the key) and B
        alone is trained: FFA-LoRA.
      share_a: one A for all layers of a stack.
      modules_to_save: modules that are trained in full beside it, and not adapted; by
        default the classification head where the model has one, as PEFT does for
        sequence classification. Each name that is given must be found.
      kind: what is put around a target; `dora` gives its own.

    Trains r (in + out) numbers a matrix, r out with `freeze_a`, and d a token. A ~
    U(-1/sqrt(in), 1/sqrt(in)), B = 0 (PEFT's initial values).

    Raises:
      TypeError, ValueError: at once, for values that make no sense; by `apply`, for
        names that the model does not have.
    """
    whole("rank", rank, least=1)
    check_shape(alpha, dropout, use_rslora)
    check_selection(targets, exclude_modules, modules_to_save)
    flag("freeze_a", freeze_a)
    flag("share_a", share_a)
    check_token_indices(trainable_token_indices)
    ranks = _checked_pattern(
        "rank_pattern", rank_pattern, lambda name, value: whole(name, value, least=1)
    )
    alphas = _checked_pattern(
        "alpha_pattern", alpha_pattern, lambda name, value: real(name, value, above=0)
    )

    def choose(model: nnx.Module) -> dict[Place, Factors]:
        chosen = selected(model, targets, exclude_modules, modules_to_save)
        refuse_unused("rank_pattern", ranks, chosen)
        refuse_unused("alpha_pattern", alphas, chosen)
        return {place: _factors(place, rank, alpha, ranks, alphas) for place in chosen}

    setup = Setup(
        use_rslora=use_rslora,
        dropout=dropout,
        freeze_a=freeze_a,
        share_a=share_a,
        kind=kind,
    )
    return chosen_lora(choose, setup, modules_to_save, trainable_token_indices)


def check_shape(alpha: float | None, dropout: float, use_rslora: bool) -> None:
    """Refuses an alpha, a rate or a flag that makes no sense."""
    if alpha is not None:
        real("alpha", alpha, above=0)
    real("dropout", dropout, least=0, below=1)
    flag("use_rslora", use_rslora)


def check_selection(
    targets: Targets, exclude_modules: Targets | None, modules_to_save: Sequence[str]
) -> None:
    """Refuses what is no choice of modules."""
    check_targets("targets", targets)
    if exclude_modules is not None:
        check_targets("exclude_modules", exclude_modules)
    check_names("modules_to_save", modules_to_save)


def _checked_pattern(
    name: str, pattern: Mapping[str, Any] | None, check: Callable[[str, Any], Any]
) -> dict[str, Any]:
    if pattern is None:
        return {}
    if not isinstance(pattern, Mapping):
        raise TypeError(
            f"expected {name} {{ending of a layer's name: number}}, got {name}={pattern!r}"
        )
    for key in pattern:
        check_targets(name, key)
    return {key: check(name, value) for key, value in pattern.items()}


def _factors(
    place: Place,
    rank: int,
    alpha: float | None,
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
) -> Factors:
    own_rank = int(of_pattern(ranks, place, rank))
    own_alpha = of_pattern(alphas, place, own_rank if alpha is None else alpha)
    return Factors(rank=own_rank, alpha=float(own_alpha))


def chosen_lora(
    choose: Callable[[nnx.Module], Mapping[Place, Factors]],
    setup: Setup,
    modules_to_save: Sequence[str],
    tokens: TokenIndices | None,
) -> Method:
    """LoRA where `choose(model)` says, with the factors that it says."""

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable = set() if tokens is None else install_tokens(model, tokens)
        n_modules = len({place.path for place in places(model)})
        factors = cut_by_choice(model, choose(model))
        if setup.share_a and n_modules != len({place.path for place in places(model)}):
            raise ValueError(
                "share_a=True shares A among all layers of a stack, but what is "
                "chosen differs among them"
            )
        for number, (path, own) in enumerate(sorted(factors.items())):
            layer = _adapted(
                get_module(model, path),
                path,
                number,
                own,
                setup,
                jax.random.fold_in(key, number),
            )
            replace_module(model, path, layer)
            trained = {
                str(name)
                for (name, *_), _ in nnx.to_flat_state(nnx.state(layer, nnx.Param))
            } - {"base"}
            trained -= {"lora_a"} if setup.freeze_a else set()
            trainable |= {(*path.split("."), name) for name in trained}
        whole_modules = head_paths(model, modules_to_save)
        _refuse_rows_in(whole_modules)
        return trainable | whole_modules

    return Method("lora", install)


def _refuse_rows_in(whole_modules: set[tuple]) -> None:
    both = sorted(".".join(path[:-1]) for path in whole_modules if path[-1] == "rows")
    if both:
        raise ValueError(
            f"{both[0]} is trained in full by modules_to_save and in rows by "
            "trainable_token_indices"
        )


def _adapted(
    base: Any, path: str, place: int, own: Factors, setup: Setup, key: jax.Array
) -> LoRALinear:
    *stacked, n_in, n_out = linear_shape(base)
    rank = own.rank
    if rank > min(n_in, n_out):
        raise ValueError(
            f"rank={rank} exceeds the smaller side of {path} ({n_in} x {n_out})"
        )
    if setup.share_a and not stacked:
        raise ValueError(
            f"share_a=True shares A among the layers of a stack, but {path} is not stacked"
        )
    bound = 1 / math.sqrt(n_in)
    shape = (n_in, rank) if setup.share_a else (*stacked, n_in, rank)
    lora_a = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
    return setup.kind(
        base,
        Shared(server=lora_a) if setup.share_a else lora_a,
        jnp.zeros((*stacked, rank, n_out)),
        own.alpha / (math.sqrt(rank) if setup.use_rslora else rank),
        use_rslora=setup.use_rslora,
        dropout=setup.dropout,
        place=place,
    )
