"""Layers stacked on a leading axis: compile time does not grow with depth."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.randomness import in_layer, key_for
from fedjax_fm.models.remat import checkpointed
from fedjax_fm.models.rows import gathered, in_rows


class Shared(nnx.Param):
    """A parameter inside a stacked module that is the same in all layers.

    It has no leading axis and is not scanned.
    """


class Segments(nnx.Module):
    """A stack cut into runs of layers, each stacked by itself.

    So one run may be trained and another frozen.

    Args:
      parts: the runs in order.
    """

    def __init__(self, parts: list[Any]):
        self.parts = nnx.List(parts)


def stack(make: Callable[[nnx.Rngs], nnx.Module], n_layers: int, rngs: nnx.Rngs) -> Any:
    """One module whose every parameter has a leading axis of `n_layers`.

    Its attribute `stacked_layers` says how many.

    Args:
      make: makes one layer.
      n_layers: at least 1.
      rngs: split into one for each layer.

    Raises:
      ValueError: fewer than one layer.

    Example:
      >>> def make(rngs):
      ...     return nnx.Linear(2, 2, rngs=rngs)
      >>> layers = nnx.eval_shape(lambda: stack(make, 3, nnx.Rngs(0)))
      >>> layers.kernel.shape
      (3, 2, 2)
    """
    if n_layers < 1:
        raise ValueError(f"expected at least one layer, got {n_layers}")
    make_all = nnx.vmap(make, in_axes=0, out_axes=0)
    layers = make_all(rngs.split(n_layers))
    layers.stacked_layers = n_layers  # pyright: ignore[reportAttributeAccessIssue]
    return layers


def scan_layers(
    layers: Any,
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
):
    """Runs `carry, y = step(layer, carry, x)` for one layer after the other.

    `nnx.scan` fails when some parameters are batched by an outer `vmap` and others are
    not (a delta over a shared backbone), so the scan runs over the split state and
    merges inside its body.

    Args:
      layers: of `stack`, or `Segments` of such.
      step: `(layer, carry, x) -> (carry, y)`.
      carry: what passes from layer to layer.
      xs: arrays whose leading axis is all layers; None where the step needs nothing of
        its own.

    Returns:
      (carry, ys), as `jax.lax.scan`.
    """
    parts = layers.parts if isinstance(layers, Segments) else [layers]
    start, outputs = 0, []
    for part in parts:
        graphdef, shared, state = nnx.split(part, Shared, ...)
        n_layers = jax.tree.leaves(state)[0].shape[0]
        here = (
            xs
            if len(parts) == 1
            else jax.tree.map(lambda x, a=start, n=n_layers: x[a : a + n], xs)
        )
        numbers = None if key_for(0) is None else start + jnp.arange(n_layers)

        def body(carry, scanned, graphdef=graphdef, shared=shared):
            layer_state, number, x = scanned
            if number is None:
                return step(nnx.merge(graphdef, shared, layer_state), carry, x)
            with in_layer(number):
                return step(nnx.merge(graphdef, shared, layer_state), carry, x)

        with jax.named_scope("layers"):
            carry, ys = jax.lax.scan(body, carry, (state, numbers, here))
        start += n_layers
        outputs.append(ys)
    if len(outputs) == 1:
        return carry, outputs[0]
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def run_stacked(
    layers: Any, hidden: jax.Array, *context: Any, each: Any = None
) -> jax.Array:
    """Applies layers one after the other: hidden = layer(hidden, *context).

    The backward pass keeps what matrix products with weights gave and computes the rest
    again (norms, activations, attention): that is less work than writing it to memory
    and reading it back. `tasks.remat` chooses otherwise.

    Args:
      layers: of `stack`, or `Segments` of such.
      hidden: [B, T, d].
      *context: what every layer is given.
      each: arrays whose leading axis is the layers; a layer's own part comes behind the
        context.

    Returns:
      [B, T, d].

    Example:
      >>> def make(rngs):
      ...     return nnx.Linear(2, 2, rngs=rngs)
      >>> def run(hidden):
      ...     return run_stacked(stack(make, 3, nnx.Rngs(0)), hidden)
      >>> jax.eval_shape(run, jnp.ones((1, 4, 2))).shape
      (1, 4, 2)
    """

    def step(layer, hidden, own):
        graphdef, state = nnx.split(layer)
        given = context if own is None else (*context, own)

        def apply(state: nnx.State, hidden: jax.Array) -> jax.Array:
            layer = nnx.merge(graphdef, gathered(state))
            return in_rows(layer(in_rows(hidden), *given))

        return checkpointed(apply)(state, hidden), None

    return scan_layers(layers, step, hidden, each)[0]
