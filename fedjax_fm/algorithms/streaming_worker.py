"""The worker of streaming DiLoCo, between two exchanges."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import trees
from fedjax_fm.algorithms.fragments import fragment, with_fragment
from fedjax_fm.algorithms.local import LocalTraining
from fedjax_fm.types import ClientData, ClientOutput, Tree


class Worker(NamedTuple):
    """What a worker keeps."""

    delta: Tree  # w
    anchor: Tree  # W, each fragment as it came last
    optimizer: Any  # the inner one's state


class Streaming(NamedTuple):
    """The hyper-parameters, checked."""

    local: LocalTraining  # of one fragment's steps
    outer: optax.GradientTransformation
    fragments: int  # P
    alpha: float
    delay: int


def worker_steps(
    method: Streaming,
    p: int,
    part: list,
    worker: Worker,
    backbone: Tree,
    *,
    data: ClientData,
    key: jax.Array,
) -> ClientOutput:
    """Inner steps until fragment p is due; `part` arrives `delay` steps into them.

    Args:
      method: the hyper-parameters.
      p: 0 to P - 1.
      part: the fragment before p, as the server has it by now.
      worker: what the worker keeps.
      backbone: what is frozen.
      data: the worker's.
      key: the worker's.

    Returns:
      Its fragment p, as a difference, and what it keeps.
    """
    n = method.fragments
    each = method.local.batches.steps or 0
    early = jnp.minimum(method.delay, data.n_steps)
    first = _shifted(data, p * each, early)
    rest = _shifted(data, p * each + method.delay, data.n_steps - early)
    carry = (worker.delta, worker.optimizer)
    carry, metrics = method.local.walk(carry, backbone, first, key)
    carry = (_taken_up(method, carry[0], part, p), carry[1])
    key = jax.random.fold_in(key, each)  # no step's own number
    (delta, moments), more = method.local.walk(carry, backbone, rest, key)
    anchor = with_fragment(worker.anchor, part, (p - 1) % n, n)
    own = fragment(delta, p, n)
    return ClientOutput(
        upload=trees.subtract(fragment(anchor, p, n), own),
        weight=method.local.weight(data),
        state=Worker(delta=delta, anchor=anchor, optimizer=moments),
        metrics=trees.add(metrics, more),
    )


def _shifted(data: ClientData, start: int, n_steps: jax.Array) -> ClientData:
    """The same data from batch `start` on."""

    def batch(i):
        return data.batch(i + start)

    return data._replace(batch=batch, n_steps=n_steps)


def _taken_up(method: Streaming, delta: Tree, part: list, p: int) -> Tree:
    """The worker's parameters with the fragment before p mixed in."""
    n, alpha = method.fragments, method.alpha
    before = (p - 1) % n
    own = fragment(delta, before, n)
    mixed = jax.tree.map(lambda w, s: alpha * w + (1 - alpha) * s, own, part)
    return with_fragment(delta, mixed, before, n)
