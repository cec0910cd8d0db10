"""Two deltas of one method side by side in one model.

A shared and a private LoRA, mixed by a weight (FedDPA).

Yang, Long, Shen, Jiang, Blumenstein, 2024, arXiv 2403.19211. y = x W + (1 - a) s (x
A_g) B_g + a s (x A_p) B_p, a for a whole batch or for each row of it. A head that is
trained in full is mixed at its output: (1 - a) head_g(x) + a head_p(x).
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm.checks import choice, instance, real
from fedjax_fm.models.randomness import dropout
from fedjax_fm.peft.adapted import Adapted
from fedjax_fm.peft.lora import LoRALinear
from fedjax_fm.peft.targets import named_modules, replace_module
from fedjax_fm.types import Tree


def _beside(mix: jax.Array, x: jax.Array) -> jax.Array:
    """Mix f32[] or f32[B] in the rank of x [B, ...]."""
    return mix.reshape(*mix.shape, *[1] * (x.ndim - mix.ndim))


class DualLoRALinear(nnx.Module):
    """A linear layer with two low-rank updates.

    Factors as in `LoRALinear`, `mix` [*stacked] or [*stacked, B].

    Both read the same input of A: with dropout, one draw, that of the layer with either
    adapter alone.
    """

    def __init__(self, shared: LoRALinear, private: LoRALinear, mix: jax.Array):
        self.base, self.scaling, self.private_scaling = (
            shared.base,
            shared.scaling,
            private.scaling,
        )
        self.dropout, self.place = shared.dropout, shared.place
        self.shared_a, self.shared_b = shared.lora_a, shared.lora_b
        self.private_a, self.private_b = private.lora_a, private.lora_b
        self.mix = nnx.Variable(mix)

    def __call__(self, x: jax.Array) -> jax.Array:
        y, a = self.base(x), _beside(self.mix[...], x)
        x = dropout(x, self.dropout, self.place)
        shared = self.scaling * (
            ((1 - a) * (x @ self.shared_a[...])) @ self.shared_b[...]
        )
        private = self.private_scaling * (
            (a * (x @ self.private_a[...])) @ self.private_b[...]
        )
        return (y + shared + private).astype(y.dtype)


class DualLinear(nnx.Module):
    """Two linear layers, mixed at their outputs."""

    def __init__(self, shared: nnx.Linear, private: nnx.Linear, mix: jax.Array):
        self.shared, self.private, self.mix = shared, private, nnx.Variable(mix)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.shared(x)
        a = _beside(self.mix[...], y)
        return ((1 - a) * y + a * self.private(x)).astype(y.dtype)


def two_adapters(
    graphdef: nnx.GraphDef,
    shared: Tree,
    private: Tree,
    backbone: Tree,
    mix: jax.Array | float,
) -> nnx.Module:
    """The model with both deltas.

    Mix 0 is `nnx.merge(graphdef, shared, backbone)`, mix 1 the private one's.

    Args:
      graphdef, backbone: of `peft.apply` with `peft.lora`.
      shared, private: deltas of it: LoRA factors, and linear layers trained in full beside them.
      mix: what the private delta counts, f32[], or f32[B] for each row of the batch
        that the model is then given.

    To be called where the model is used, inside the loss: nothing is copied but references.

    Raises:
      ValueError: the delta holds something else than LoRA factors and linear layers.
    """
    if not isinstance(mix, jax.Array | np.ndarray):
        real("mix", mix)
    mix = jnp.asarray(mix, jnp.float32)
    if mix.ndim > 1:
        raise ValueError(f"expected a mix of shape [] or [B], got {list(mix.shape)}")
    model, other = (
        nnx.merge(graphdef, shared, backbone),
        nnx.merge(graphdef, private, backbone),
    )
    owners = sorted(
        {".".join(map(str, path[:-1])) for path, _ in nnx.to_flat_state(shared)}
    )
    modules, others = dict(named_modules(model)), dict(named_modules(other))
    for path in owners:
        module = modules[path]
        kinds = {
            LoRALinear: (DualLoRALinear, "lora_a"),
            nnx.Linear: (DualLinear, "kernel"),
        }
        if type(module) not in kinds:
            raise ValueError(
                f"two_adapters mixes LoRA and linear layers, but {path} is a "
                f"{type(module).__name__}"
            )
        kind, matrix = kinds[type(module)]
        stacked = getattr(module, matrix).shape[:-2]
        replace_module(
            model,
            path,
            kind(module, others[path], jnp.broadcast_to(mix, (*stacked, *mix.shape))),
        )
    return model


class Beside(NamedTuple):
    """An adapted model whose delta is two deltas side by side; made by `beside`."""

    adapted: Adapted

    def model(self, delta: Any, backbone: Tree) -> nnx.Module:
        """The model with both.

        Args:
          delta: with `shared`, `private` and `mix`, such as `algorithms.feddpa.Adapters`.
          backbone: of the adapted model.

        Returns:
          See `two_adapters`.
        """
        return two_adapters(
            self.adapted.graphdef, delta.shared, delta.private, backbone, delta.mix
        )


def beside(adapted: Adapted) -> Beside:
    """What a task is made from whose delta is a shared and a private adapter (FedDPA).

    Args:
      adapted: from `peft.apply` with `peft.lora`.

    Returns:
      For `tasks.classification` and its like in the place of `adapted`.
    """
    instance(
        "adapted", adapted, Adapted, "make it with peft.apply(model, peft.lora(...))"
    )
    return Beside(adapted)


def instance_mix(
    query: jax.Array,
    local: jax.Array,
    omega_max: float = 0.5,
    omega_weighs: Literal["private", "shared"] = "private",
) -> jax.Array:
    """The mix for each query.

    Omega = omega_max * mean over k of cos(query, local_k), and omega weighs one of the
    adapters.

    Args:
      query: f32[B, d], features of the inputs: hidden states under the private adapter
        (authors' code), see `pooled`.
      local: f32[k, d], of some training instances of the client (authors: 5).
      omega_weighs: "private" is the paper's prose, more of the private adapter for what
        resembles local data; "shared" the released script.

    Returns:
      f32[B], `Adapters.mix`. A vector of zeros resembles nothing: cosine 0. Negative
      cosines are kept, as in the script.
    """
    real("omega_max", omega_max, least=0, most=1)
    choice("omega_weighs", omega_weighs, ("private", "shared"))

    def unit(x):
        return x / jnp.maximum(
            jnp.linalg.norm(x, axis=-1, keepdims=True), jnp.finfo(x.dtype).tiny
        )

    omega = omega_max * jnp.mean(unit(query) @ unit(local).T, axis=-1)
    return omega if omega_weighs == "private" else 1 - omega


def pooled(
    hidden: jax.Array, attention_mask: jax.Array, by: Literal["last", "mean"] = "last"
) -> jax.Array:
    """Features of texts: the hidden state of the last real token, or the mean over real tokens.

    F32[B, T, d] -> f32[B, d].
    """
    choice("by", by, ("last", "mean"))
    is_real = attention_mask.astype(bool)
    if by == "last":
        last = hidden.shape[1] - 1 - jnp.argmax(is_real[:, ::-1], axis=1)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    total = jnp.sum(jnp.where(is_real[..., None], hidden, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(is_real, axis=1), 1)[:, None]
