"""LoRA: Low-Rank Adaptation of Large Language Models.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, 2021, arXiv 2106.09685. y = x W + (alpha / r) (x A) B, with W
frozen, A random and B = 0, so that the model is unchanged at first. rsLoRA: alpha / sqrt(r) (Kalajdzievski, 2023,
arXiv 2312.03732). FFA-LoRA trains B only (Sun et al., 2024, arXiv 2403.12313).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.kernels import dense
from fedjax_fm.models.randomness import dropout
from fedjax_fm.models.stacked import Shared
from fedjax_fm.peft.linear import LinearLayer, linear_shape
from fedjax_fm.peft.method import Method, head_paths
from fedjax_fm.peft.targets import Targets, Wrapper, find_modules, replace_module

HEADS = ("classifier", "pre_classifier", "score", "classification_head")  # as Hugging Face names them


class LoRALinear(Wrapper):
    """A linear layer with a low-rank update beside it.

    `lora_a` [..., in, r] and `lora_b` [..., r, out] keep the leading layer axis of a stacked kernel; a `Shared` lora_a
    has none. The update is never added to the kernel: W + A B would make one copy of W per client.
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
        x = dropout(x, self.dropout, self.place)
        return dense(self.scaling * dense(x, self.lora_a[...]), self.lora_b[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.base(x)
        # The factors are f32; beside a bf16 backbone the sum returns to bf16, or the layers' scan would change dtype.
        return (y + self.update(x)).astype(y.dtype)

    def product(self) -> jax.Array:
        """scaling A B, [..., in, out]."""
        return self.scaling * (self.lora_a[...] @ self.lora_b[...])

    def fold(self, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        return (kernel + self.product()).astype(kernel.dtype), bias

    def unfold(self, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        return (kernel - self.product()).astype(kernel.dtype), bias


def lora(
    rank: int,
    alpha: float | None = None,
    *,
    targets: Targets,
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
      alpha: scale; None means alpha = rank, a factor of one.
      targets: a regular expression on the dotted module path, or a list of path endings.
      use_rslora: scale by alpha / sqrt(r).
      dropout: rate on the input of A; acts only where the model is called with a key.
      freeze_a: A stays at its random start (the same for all who know the key) and B alone is trained: FFA-LoRA.
      share_a: one A for all layers of a stack.
      modules_to_save: modules that are trained in full beside it, where the model has them; by default the
        classification head, as PEFT does for sequence classification.
      kind: what is put around a target; `dora` gives its own.

    Trains r (in + out) numbers a matrix, r out with `freeze_a`. A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0 (PEFT's initial
    values).
    """
    alpha = float(rank if alpha is None else alpha)
    if rank < 1:
        raise ValueError(f"expected rank >= 1, got rank={rank}")
    if not 0 <= dropout < 1:
        raise ValueError(f"expected 0 <= dropout < 1, got dropout={dropout}")
    scaling = alpha / (math.sqrt(rank) if use_rslora else rank)

    def adapted(base: Any, path: str, place: int, key: jax.Array) -> LoRALinear:
        *stacked, n_in, n_out = linear_shape(base)
        if rank > min(n_in, n_out):
            raise ValueError(f"rank={rank} exceeds the smaller side of {path} ({n_in} x {n_out})")
        if share_a and not stacked:
            raise ValueError(f"share_a=True shares A among the layers of a stack, but {path} is not stacked")
        bound = 1 / math.sqrt(n_in)
        shape = (n_in, rank) if share_a else (*stacked, n_in, rank)
        lora_a = jax.random.uniform(jax.random.fold_in(key, place), shape, jnp.float32, -bound, bound)
        return kind(
            base,
            Shared(lora_a) if share_a else lora_a,
            jnp.zeros((*stacked, rank, n_out)),
            scaling,
            use_rslora=use_rslora,
            dropout=dropout,
            place=place,
        )

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        trainable = set()
        for place, (path, base) in enumerate(sorted(find_modules(model, targets, LinearLayer).items())):
            layer = adapted(base, path, place, key)
            replace_module(model, path, layer)
            own = [str(name) for (name, *_), _ in nnx.to_flat_state(nnx.state(layer, nnx.Param)) if name != "base"]
            trainable |= {(*path.split("."), name) for name in own if not (freeze_a and name == "lora_a")}
        return trainable | head_paths(model, modules_to_save)

    return Method("lora", install)
