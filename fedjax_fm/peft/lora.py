"""LoRA: low-rank updates beside frozen linear layers.

References:
  Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen (2021). LoRA: Low-Rank Adaptation of
  Large Language Models. arXiv 2106.09685.
  Kalajdzievski (2023). A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA.
  arXiv 2312.03732.
  Sun, Li, Li, Ding (2024). Improving LoRA in Privacy-preserving Federated Learning.
  arXiv 2403.12313 (FFA-LoRA).
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
from fedjax_fm.peft.method import Method, head_paths, parameter_paths
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
    """A linear layer with a low-rank update: base(x) + s (x A) B.

    The update is never added to the kernel: W + s A B would make a copy of W for every
    client.

    Args:
      base: the linear layer, frozen.
      lora_a: A, f32[..., in, r], with the leading layer axis of a stacked kernel. A
        `Shared` one has no such axis: all layers share it.
      lora_b: B, f32[..., r, out].
      scaling: s.
      use_rslora: whether s = alpha / sqrt(r), to recover alpha from s.
      dropout: rate on the input of A.
      place: number of the layer; different places draw different dropout.
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
        """The alpha from which `scaling` was computed."""
        rank = self.lora_b.shape[-2]
        return self.scaling * (math.sqrt(rank) if self.use_rslora else rank)

    def update(self, x: jax.Array) -> jax.Array:
        """Computes what is added to base(x).

        Args:
          x: [..., in].

        Returns:
          f32[..., out].
        """
        return self.of_dropped(self.dropped(x))

    def dropped(self, x: jax.Array) -> jax.Array:
        """Applies dropout to the input of the factors.

        Args:
          x: [..., in].

        Returns:
          x with entries zeroed; x itself without dropout.
        """
        return dropout(x, self.dropout, self.place)

    def of_dropped(self, x: jax.Array) -> jax.Array:
        """Computes s (x A) B.

        Args:
          x: [..., in], after dropout.

        Returns:
          f32[..., out].
        """
        inside = dense(x, self.lora_a[...])
        return dense(self.scaling * inside, self.lora_b[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        y = self.base(x)
        # The factors are f32; beside a bf16 backbone the sum returns to bf16, or the
        # layers' scan would change dtype.
        return (y + self.update(x)).astype(y.dtype)

    def product(self) -> jax.Array:
        """The update as a matrix.

        Returns:
          s A B, f32[..., in, out].
        """
        return self.scaling * (self.lora_a[...] @ self.lora_b[...])

    def fold(
        self, kernel: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Adds the update to a kernel.

        Args:
          kernel: [..., in, out].
          bias: [..., out], or None.

        Returns:
          (the sum in the kernel's dtype, the bias as it is).
        """
        return (kernel + self.product()).astype(kernel.dtype), bias

    def unfold(
        self, kernel: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Subtracts the update from a kernel, the inverse of `fold`.

        Args:
          kernel: [..., in, out], after `fold`.
          bias: [..., out], or None.

        Returns:
          (the difference in the kernel's dtype, the bias as it is).
        """
        return (kernel - self.product()).astype(kernel.dtype), bias


class Factors(NamedTuple):
    """The sizes of one adapted layer.

    Attributes:
      rank: r of its factors.
      alpha: of the scale alpha / r.
    """

    rank: int
    alpha: float


class Setup(NamedTuple):
    """What all adapted layers of a model have in common; see `lora`.

    Attributes:
      use_rslora: scale by alpha / sqrt(r).
      dropout: rate on the input of A.
      freeze_a: A is not trained.
      share_a: one A for all layers of a stack.
      kind: the class of the adapted layers.
    """

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
    """LoRA: trains a low-rank update beside each chosen linear layer.

        y = x W + s (x A) B,   s = alpha / r,   A ~ U(-1/sqrt(in), 1/sqrt(in)),   B = 0

    W is frozen, and the model is unchanged at first. The initial values are PEFT's. A
    matrix has r (in + out) trained numbers, r out with `freeze_a`; a token has d.

    Args:
      rank: r, at most the smaller side of every target.
      alpha: of the scale s; None: the rank of each layer, so that s = 1.
      targets: a regular expression on the dotted module path; or a list of path
        endings; or "all-linear", every linear layer except the head. Layers can also be
        named as in PEFT, with their numbers: an ending or a whole name such as
        "model.layers.0.self_attn.q_proj". The model must have each entry of a list and
        each alternative of an expression.
      exclude_modules: layers that stay as they are, named like `targets`.
      rank_pattern: {ending of a layer's name, an expression: rank}, as in PEFT; the
        first key that matches counts. Where layers of one stack differ, the stack is
        cut into runs of equal layers.
      alpha_pattern: likewise, {ending: alpha}.
      trainable_token_indices: tokens whose embeddings are trained, too: ids of the
        input embedding, or {ending of an embedding's path: ids}. A tied head reads the
        trained rows.
      use_rslora: rsLoRA, s = alpha / sqrt(r).
      dropout: rate on the input of A; acts only where the model is called with a key.
      freeze_a: FFA-LoRA: A stays at its random start, which follows from the key, and
        only B is trained.
      share_a: one A for all layers of a stack.
      modules_to_save: modules that are trained in full and not adapted. The default is
        the classification head where the model has one, as in PEFT for sequence
        classification. The model must have each name of any other list.
      kind: the class of the adapted layers, `LoRALinear` or a subclass; `dora` has its
        own.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: at once, for arguments that make no sense; by `apply`, for
        names that the model does not have, or a rank that is too large.

    References:
      Hu et al. (2021), arXiv 2106.09685, section 4.1. Kalajdzievski (2023), arXiv
      2312.03732 (rsLoRA). Sun, Li, Li, Ding (2024), arXiv 2403.12313 (FFA-LoRA).

    Example:
      >>> from fedjax_fm import peft
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Dict(
      ...     query=nnx.Linear(4, 6, rngs=rngs), value=nnx.Linear(4, 6, rngs=rngs)
      ... )
      >>> method = lora(2, alpha=4, targets="query|value", rank_pattern={"value": 1})
      >>> adapted = peft.apply(model, method)
      >>> shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      >>> shapes["query"], shapes["value"]
      ({'lora_a': (4, 2), 'lora_b': (2, 6)}, {'lora_a': (4, 1), 'lora_b': (1, 6)})
      >>> adapted.model().query.scaling
      2.0
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
        return {
            place: _factors(place, rank, alpha, ranks=ranks, alphas=alphas)
            for place in chosen
        }

    setup = Setup(
        use_rslora=use_rslora,
        dropout=dropout,
        freeze_a=freeze_a,
        share_a=share_a,
        kind=kind,
    )
    return chosen_lora(choose, setup, modules_to_save, trainable_token_indices)


def check_shape(alpha: float | None, dropout: float, use_rslora: bool) -> None:
    """Refuses an alpha, a rate or a flag that makes no sense.

    Args:
      alpha: None, or above 0.
      dropout: a rate in [0, 1).
      use_rslora: a bool.

    Raises:
      TypeError, ValueError: one of them is something else.
    """
    if alpha is not None:
        real("alpha", alpha, above=0)
    real("dropout", dropout, least=0, below=1)
    flag("use_rslora", use_rslora)


def check_selection(
    targets: Targets, exclude_modules: Targets | None, modules_to_save: Sequence[str]
) -> None:
    """Refuses arguments that cannot name modules.

    Args:
      targets: see `lora`.
      exclude_modules: see `lora`.
      modules_to_save: see `lora`.

    Raises:
      TypeError, ValueError: one of them is no expression, list of names or function.
    """
    check_targets("targets", targets)
    if exclude_modules is not None:
        check_targets("exclude_modules", exclude_modules)
    check_names("modules_to_save", modules_to_save)


def _checked_pattern(
    name: str, pattern: Mapping[str, Any] | None, check: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """A pattern whose keys name layers and whose values pass the check."""
    if pattern is None:
        return {}
    if not isinstance(pattern, Mapping):
        raise TypeError(
            f"expected {name} {{ending of a layer's name: number}}, got "
            f"{name}={pattern!r}"
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
    """Rank and alpha of one layer, by the patterns."""
    own_rank = int(of_pattern(ranks, place, rank))
    own_alpha = of_pattern(alphas, place, own_rank if alpha is None else alpha)
    return Factors(rank=own_rank, alpha=float(own_alpha))


def chosen_lora(
    choose: Callable[[nnx.Module], Mapping[Place, Factors]],
    setup: Setup,
    modules_to_save: Sequence[str],
    tokens: TokenIndices | None,
) -> Method:
    """LoRA on layers that a function of the model chooses.

    Args:
      choose: `f(model) -> {layer: rank and alpha}`.
      setup: what all layers have in common.
      modules_to_save: modules that are trained in full.
      tokens: as `trainable_token_indices` of `lora`.

    Returns:
      The method.
    """

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable = set() if tokens is None else install_tokens(model, tokens)
        before = {place.path for place in places(model)}
        factors = cut_by_choice(model, choose(model))
        after = {place.path for place in places(model)}
        if setup.share_a and len(before) != len(after):
            raise ValueError(
                "share_a=True shares A among all layers of a stack, but what is "
                "chosen differs among them"
            )
        for number, (path, own) in enumerate(sorted(factors.items())):
            layer = _adapted(
                get_module(model, path),
                path=path,
                place=number,
                own=own,
                setup=setup,
                key=jax.random.fold_in(key, number),
            )
            replace_module(model, path, layer)
            trained = {name for name, *_ in parameter_paths(layer)} - {"base"}
            if setup.freeze_a:
                trained -= {"lora_a"}
            trainable |= {(*path.split("."), name) for name in trained}
        whole_modules = head_paths(model, modules_to_save)
        _refuse_rows_in(whole_modules)
        return trainable | whole_modules

    return Method("lora", install)


def _refuse_rows_in(whole_modules: set[tuple]) -> None:
    """Raises ValueError for an embedding that is trained in full and in rows."""
    both = sorted(".".join(path[:-1]) for path in whole_modules if path[-1] == "rows")
    if both:
        raise ValueError(
            f"{both[0]} is trained in full by modules_to_save and in rows by "
            "trainable_token_indices"
        )


def _adapted(
    base: Any, *, path: str, place: int, own: Factors, setup: Setup, key: jax.Array
) -> LoRALinear:
    """One linear layer with fresh factors beside it."""
    *stacked, n_in, n_out = linear_shape(base)
    rank = own.rank
    if rank > min(n_in, n_out):
        raise ValueError(
            f"rank={rank} exceeds the smaller side of {path} ({n_in} x {n_out})"
        )
    if setup.share_a and not stacked:
        raise ValueError(
            f"share_a=True shares A among the layers of a stack, but {path} is not "
            "stacked"
        )
    bound = 1 / math.sqrt(n_in)
    shape = (n_in, rank) if setup.share_a else (*stacked, n_in, rank)
    lora_a = jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound)
    divisor = math.sqrt(rank) if setup.use_rslora else rank
    return setup.kind(
        base,
        Shared(lora_a) if setup.share_a else lora_a,
        jnp.zeros((*stacked, rank, n_out)),
        own.alpha / divisor,
        use_rslora=setup.use_rslora,
        dropout=setup.dropout,
        place=place,
    )
