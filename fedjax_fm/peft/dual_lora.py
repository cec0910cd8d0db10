"""A shared and a private LoRA in one model, mixed by a weight (FedDPA).

References:
  Yang, Long, Shen, Jiang, Blumenstein (2024). Dual-Personalizing Adapter for Federated
  Foundation Models. arXiv 2403.19211.
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
from fedjax_fm.peft.targets import dotted, named_modules, replace_module
from fedjax_fm.types import Tree


def _beside(mix: jax.Array, x: jax.Array) -> jax.Array:
    """The mix, f32[] or f32[B], with as many axes as x [B, ...]."""
    missing = [1] * (x.ndim - mix.ndim)
    return mix.reshape(*mix.shape, *missing)


class DualLoRALinear(nnx.Module):
    """A linear layer with two low-rank updates, mixed by a weight.

        y = x W + (1 - a) s (x A_g) B_g + a s (x A_p) B_p

    Dropout is drawn once: both updates have the same input, as the layer with either
    adapter alone would have it.

    Args:
      shared: the layer with A_g and B_g.
      private: the layer with A_p and B_p, and the same base.
      mix: a, f32[*stacked] or f32[*stacked, B].
    """

    def __init__(self, shared: LoRALinear, private: LoRALinear, mix: jax.Array):
        self.base = shared.base
        self.scaling, self.private_scaling = shared.scaling, private.scaling
        self.dropout, self.place = shared.dropout, shared.place
        self.shared_a, self.shared_b = shared.lora_a, shared.lora_b
        self.private_a, self.private_b = private.lora_a, private.lora_b
        self.mix = nnx.Variable(mix)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., in] -> [B, ..., out]."""
        y, a = self.base(x), _beside(self.mix[...], x)
        x = dropout(x, self.dropout, self.place)
        shared = ((1 - a) * (x @ self.shared_a[...])) @ self.shared_b[...]
        private = (a * (x @ self.private_a[...])) @ self.private_b[...]
        update = y + self.scaling * shared + self.private_scaling * private
        return update.astype(y.dtype)


class DualLinear(nnx.Module):
    """Two linear layers, mixed at their outputs: (1 - a) shared(x) + a private(x).

    Args:
      shared: a linear layer.
      private: one of the same shape.
      mix: a, f32[*stacked] or f32[*stacked, B].
    """

    def __init__(self, shared: nnx.Linear, private: nnx.Linear, mix: jax.Array):
        self.shared, self.private, self.mix = shared, private, nnx.Variable(mix)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., in] -> [B, ..., out]."""
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
    """Makes a model with two deltas, mixed by a weight.

        y = x W + (1 - a) s (x A_g) B_g + a s (x A_p) B_p

    Linear layers that are trained in full, such as a head, are mixed at their outputs.
    Mix 0 is `nnx.merge(graphdef, shared, backbone)`, and mix 1 is the same with
    `private`. Call it inside of the loss: no array is copied.

    Args:
      graphdef: of `peft.apply` with `peft.lora`.
      shared: the first delta: LoRA factors, and linear layers that are trained in full.
      private: the second delta, of the same structure.
      backbone: of `peft.apply`.
      mix: a, the weight of the private delta: f32[], or f32[B] for the rows of the
        batch that the model is called with.

    Returns:
      The model.

    Raises:
      TypeError, ValueError: a mix of another shape, or a delta with something other
        than LoRA factors and linear layers.

    References:
      Yang, Long, Shen, Jiang, Blumenstein (2024), arXiv 2403.19211.

    Example:
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(layer=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> graphdef, delta, backbone = peft.apply(model, peft.lora(2, targets=["layer"]))
      >>> mix = jnp.array([0.0, 0.5])  # of two examples
      >>> both = two_adapters(graphdef, delta, delta, backbone, mix)
      >>> both.layer(jnp.ones((2, 4))).shape
      (2, 3)
    """
    if not isinstance(mix, jax.Array | np.ndarray):
        real("mix", mix)
    weights: jax.Array = jnp.asarray(mix, jnp.float32)
    if weights.ndim > 1:
        shape = list(weights.shape)
        raise ValueError(f"expected a mix of shape [] or [B], got {shape}")
    model = nnx.merge(graphdef, shared, backbone)
    other = nnx.merge(graphdef, private, backbone)
    owners = {dotted(path[:-1]) for path, _ in nnx.to_flat_state(shared)}
    modules, others = dict(named_modules(model)), dict(named_modules(other))
    kinds = {
        LoRALinear: (DualLoRALinear, "lora_a"),
        nnx.Linear: (DualLinear, "kernel"),
    }
    for path in sorted(owners):
        module = modules[path]
        if type(module) not in kinds:
            raise ValueError(
                f"two_adapters mixes LoRA and linear layers, but {path} is a "
                f"{type(module).__name__}"
            )
        kind, matrix = kinds[type(module)]
        stacked = getattr(module, matrix).shape[:-2]
        own_mix = jnp.broadcast_to(weights, (*stacked, *weights.shape))
        dual = kind(module, others[path], own_mix)
        replace_module(model, path, dual)
    return model


class Beside(NamedTuple):
    """An adapted model that takes two deltas; made by `beside`.

    Attributes:
      adapted: from `peft.apply` with `peft.lora`.
    """

    adapted: Adapted

    def model(self, delta: Any, backbone: Tree) -> nnx.Module:
        """Makes the model with both deltas.

        Args:
          delta: with `shared`, `private` and `mix`, such as
            `algorithms.feddpa.Adapters`.
          backbone: of the adapted model.

        Returns:
          The model, see `two_adapters`.
        """
        graphdef = self.adapted.graphdef
        return two_adapters(
            graphdef,
            shared=delta.shared,
            private=delta.private,
            backbone=backbone,
            mix=delta.mix,
        )


def beside(adapted: Adapted) -> Beside:
    """Lets a task have a shared and a private adapter, as FedDPA needs it.

    Args:
      adapted: from `peft.apply` with `peft.lora`.

    Returns:
      What takes the place of `adapted` in `tasks.classification` and other tasks.

    Raises:
      TypeError: `adapted` is not from `peft.apply`.

    Example:
      >>> from fedjax_fm import peft, tasks
      >>> model = nnx.Dict(score=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.head())
      >>> task = tasks.classification(peft.beside(adapted))
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
    """Computes how much of the private adapter each query gets (FedDPA).

        omega = omega_max * mean over k of cos(query, local_k)

    Args:
      query: f32[B, d], features of the inputs. In the authors' code they are hidden
        states under the private adapter, see `pooled`.
      local: f32[k, d], features of some training examples of the client; k = 5 in the
        authors' code.
      omega_max: in [0, 1].
      omega_weighs: "private" is what the paper says: inputs that resemble local data
        get more of the private adapter, mix = omega. "shared" is what the released
        script does: mix = 1 - omega.

    Returns:
      f32[B], for `Adapters.mix`. The cosine of a vector of zeros is 0. Negative cosines
      are kept, as in the script.

    Raises:
      TypeError, ValueError: `omega_max` or `omega_weighs` makes no sense.

    References:
      Yang, Long, Shen, Jiang, Blumenstein (2024), arXiv 2403.19211.

    Example:
      >>> query = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> local = jnp.array([[3.0, 0.0]])
      >>> instance_mix(query, local).tolist()
      [0.5, 0.0]
    """
    real("omega_max", omega_max, least=0, most=1)
    choice("omega_weighs", omega_weighs, ("private", "shared"))

    def unit(x: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
        return x / jnp.maximum(norm, jnp.finfo(x.dtype).tiny)

    omega = omega_max * jnp.mean(unit(query) @ unit(local).T, axis=-1)
    return omega if omega_weighs == "private" else 1 - omega


def pooled(
    hidden: jax.Array, attention_mask: jax.Array, by: Literal["last", "mean"] = "last"
) -> jax.Array:
    """Computes features of texts from hidden states.

    Args:
      hidden: f32[B, T, d].
      attention_mask: i32[B, T]; not 0 for real tokens.
      by: "last" takes the hidden state of the last real token, "mean" the mean over all
        real tokens.

    Returns:
      f32[B, d].

    Raises:
      ValueError: another `by`.

    Example:
      >>> hidden = jnp.arange(6.0).reshape(1, 3, 2)
      >>> mask = jnp.array([[1, 1, 0]])
      >>> pooled(hidden, mask).tolist(), pooled(hidden, mask, by="mean").tolist()
      ([[2.0, 3.0]], [[1.0, 2.0]])
    """
    choice("by", by, ("last", "mean"))
    is_real = attention_mask.astype(bool)
    if by == "last":
        last = hidden.shape[1] - 1 - jnp.argmax(is_real[:, ::-1], axis=1)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    total = jnp.sum(jnp.where(is_real[..., None], hidden, 0.0), axis=1)
    n_tokens = jnp.sum(is_real, axis=1)
    return total / jnp.maximum(n_tokens, 1)[:, None]
