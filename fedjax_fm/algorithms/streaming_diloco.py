"""Streaming DiLoCo with overlapping communication.

Douillard, Donchev, Rush, Kale, Charles, Garrett, Teston, Lacey, McIlroy, Shen, Rame,
Szlam, Ranzato, Barham, 2025, arXiv 2501.18512, algorithm 2. The parameters are cut into P
fragments; every H / P inner steps the next fragment p is exchanged, each every H steps:

    worker:  takes up what has come of fragment p - 1, `delay` steps into its H / P:
             w_q <- alpha w_q + (1 - alpha) W_q,  the rest of w goes on as it is
             sends W_p - w_p, W_p as it came last
    server:  W_p <- an outer Nesterov step with the mean of W_p - w_p
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.fragments import fragment, with_fragment
from fedjax_fm.algorithms.local import ClientOptimizer, local_training, optimizer_of
from fedjax_fm.algorithms.parts import in_f32
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.algorithms.streaming_worker import Streaming, Worker, worker_steps
from fedjax_fm.types import Algorithm, Exchange, Task, Tree


class StreamingState(NamedTuple):
    """Server state."""

    delta: Tree  # W
    optimizers: tuple  # the outer one's state of each fragment


def streaming_diloco(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    fragments: int,
    alpha: float = 0.5,
    delay: int = 0,
    local_steps: int,
    batch_size: int,
) -> Algorithm:
    """DiLoCo that exchanges one fragment of the parameters after the other.

    A round is H inner steps and P exchanges. Fragment p is rows p, p + P, ... of every
    leaf with at least P rows, so of layers that are stacked every P-th; smaller leaves go
    to the fragments in turn. With fragments=1, alpha=0 and delay=0 it is `diloco`.

    Sends: a round the size of delta each way, like `diloco`, in P parts: the peak is a
    P-th of it. The paper sends floats of 4 bits, which are an uplink,
    such as `channels.nf4`. Memory: a worker keeps its parameters, what came of the
    server's and its moments.

    It is meant for workers that take part in every round: one that was away goes on with
    its own parameters, and takes up fragments as they come.

    Args:
      task: the loss.
      client_optimizer: the inner one, such as `optax.adamw(4e-4)`.
      server_optimizer: the outer one, on the mean of W_p - w_p; None means
        `optax.sgd(0.4, momentum=0.9, nesterov=True)`.
      fragments: P, at least 1, a divisor of `local_steps`.
      alpha: 0 to 1, what a worker keeps of its own when a fragment arrives; with 1 the
        server's never counts.
      delay: inner steps until a fragment has arrived, 0 to local_steps / fragments.
      local_steps: H, of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `StreamingState`; a client's state is `Worker`.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later, a
        fragment without a parameter.

    References:
      Douillard et al. 2025, arXiv 2501.18512, algorithm 2.

    Example:
      >>> import fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return jnp.sum((w - batch["x"]) ** 2, axis=1) / 2, {}
      >>> how = {"fragments": 2, "alpha": 0.0, "local_steps": 2, "batch_size": 1}
      >>> method = streaming_diloco(Task(loss), optax.sgd(0.5), optax.sgd(1.0), **how)
      >>> population = ffm.Population.from_clients([{"x": jnp.ones((1, 2))}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.zeros(2)), 1)
      >>> state.delta.tolist()  # the first was sent after one step, the second after two
      [0.5, 0.75]
    """
    checks.whole("fragments", fragments, least=1)
    checks.whole("local_steps", local_steps, least=1)
    if local_steps % fragments:
        raise ValueError(
            f"expected local_steps to be a multiple of fragments={fragments}, "
            f"got local_steps={local_steps}; the exchanges are equally far apart"
        )
    each = local_steps // fragments
    checks.real("alpha", alpha, least=0, most=1)
    checks.whole("delay", delay, least=0, most=each)
    checks.server_optimizer("server_optimizer", server_optimizer)
    local = local_training(
        task, client_optimizer, local_steps=each, batch_size=batch_size
    )
    method = Streaming(
        local=local,
        outer=server_optimizer or optax.sgd(0.4, momentum=0.9, nesterov=True),
        fragments=fragments,
        alpha=alpha,
        delay=delay,
    )
    exchanges = tuple(_exchange(method, p) for p in range(fragments))
    return Algorithm(
        init=partial(_init, method),
        exchanges=exchanges,
        client_init=partial(_client_init, method),
    )


def _init(method: Streaming, delta, key, setting) -> StreamingState:
    """The outer optimizer begins on each fragment by itself."""
    parts = [fragment(delta, p, method.fragments) for p in range(method.fragments)]
    for p, part in enumerate(parts):
        if not part:
            raise ValueError(
                f"fragment {p} of {method.fragments} has no parameter; give "
                "fewer fragments"
            )
    outer = [method.outer.init(in_f32(part)) for part in parts]
    return StreamingState(delta, tuple(outer))


def _client_init(method: Streaming, delta, key) -> Worker:
    """Workers begin where the server does."""
    inner = optimizer_of(method.local.optimizer, jnp.int32(0))
    return Worker(delta=delta, anchor=delta, optimizer=inner.init(delta))


def _exchange(method: Streaming, p: int) -> Exchange:
    """The exchange of fragment p, which brings what became of the one before it."""
    n = method.fragments
    before = (p - 1) % n

    def client(backbone, message):
        def one(part, worker, data, key):
            return worker_steps(method, p, part, worker, backbone, data=data, key=key)

        return one

    def server(state, aggregate, key):
        own = fragment(state.delta, p, n)
        updates, moments = method.outer.update(
            aggregate.value, state.optimizers[p], in_f32(own)
        )
        moved: Any = optax.apply_updates(own, updates)
        others = state.optimizers
        return StreamingState(
            delta=with_fragment(state.delta, moved, p, n),
            optimizers=(*others[:p], moments, *others[p + 1 :]),
        ), {}

    return Exchange(
        broadcast=lambda state: fragment(state.delta, before, n),
        client=client,
        server=server,
        reduce=weighted_mean(),
        batches=method.local.batches,
    )
