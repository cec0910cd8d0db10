"""What a server receives of a cohort, and what it rejects at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.algorithms.lora_rules.factors import along_rows, as_arrays
from fedjax_fm.algorithms.reduce import stack
from fedjax_fm.robust.rule import Uploads
from fedjax_fm.trees import all_finite, select
from fedjax_fm.types import ClientOutput, Reduce, Setting, Stack

REJECTED = -1.0  # the weight of an upload that is not finite


class AllReceived(NamedTuple):
    """What the wrapper's reduction gives.

    Attributes:
      stack: of (uploads, weights), as they came.
      setting: for the method's own reduction.
    """

    stack: Stack
    setting: Setting


def all_received() -> Reduce:
    """Keeps every upload and judges none; the value is `AllReceived`."""
    # There is no sum in which the engine would look for NaN: `received` does.
    return stack(_as_received)._replace(shows_nan=True)


def is_all_received(reduce: Reduce) -> bool:
    """Whether the reduction keeps every upload as it came, for a rule.

    Args:
      reduce: of an exchange.
    """
    return reduce.finish is _as_received


def _as_received(found: Stack, setting: Setting) -> AllReceived:
    return AllReceived(found, setting)


class Received(NamedTuple):
    """A cohort's uploads and what was found out about them.

    Attributes:
      uploads: those that are accepted.
      metrics: `rejected`, how many uploads were not finite; `rejected_client`, the
        smallest id among them, -1 where there is none.
    """

    uploads: Uploads
    metrics: dict[str, jax.Array]


def screened(output: ClientOutput) -> ClientOutput:
    """A client's output that stops no round, whatever is in it.

    The engine gives up a round with NaN or infinity. An upload or a weight with one
    becomes zeros of the weight `REJECTED`, which a server would find out by looking at
    it; such metrics are left out.

    Args:
      output: of one client.

    Returns:
      An output that is finite.
    """
    is_fine = all_finite((output.upload, output.weight)) & (output.weight >= 0)
    zeros = jax.tree.map(jnp.zeros_like, output.upload)
    metrics = {}
    for name, (total, count) in output.metrics.items():
        is_number = jnp.isfinite(total) & jnp.isfinite(count)
        kept = jnp.where(is_number, total, 0), jnp.where(is_number, count, 0)
        metrics[name] = kept
    return output._replace(
        upload=select(is_fine, output.upload, zeros),
        weight=jnp.where(is_fine, output.weight, REJECTED),
        metrics=metrics,
    )


def received(found: Stack, most_weight: float | None) -> Received:
    """The accepted uploads of a stack of (upload, weight).

    A client whose weight is 0 has no example and takes no part.

    Args:
      found: of the cohort.
      most_weight: what a client counts at most; None: all count the same.

    Returns:
      Uploads and counts.
    """
    sent, weights = found.values
    values = jax.tree.map(lambda x: x.astype(jnp.float32), as_arrays(sent))
    came = found.active & (weights != 0)
    accepted = came & (weights > 0) & jax.vmap(all_finite)(values)
    is_bad = came & ~accepted
    own = 1.0 if most_weight is None else jnp.minimum(weights, most_weight)

    def shown(x: jax.Array) -> jax.Array:
        return jnp.where(along_rows(accepted, x), x, 0.0)

    nobody = jnp.iinfo(jnp.int32).max
    smallest = jnp.min(jnp.where(is_bad, found.ids, nobody))
    any_bad = jnp.any(is_bad)
    metrics = {
        "rejected": jnp.sum(is_bad).astype(jnp.float32),
        "rejected_client": jnp.where(any_bad, smallest, -1).astype(jnp.float32),
    }
    shown_values = jax.tree.map(shown, values)
    uploads = Uploads(shown_values, accepted, jnp.where(accepted, own, 0.0))
    return Received(uploads, metrics)
