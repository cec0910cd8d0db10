"""q-FedAvg: Fair Resource Allocation in Federated Learning.

Li, Sanjabi, Beirami, Smith, 2019, arXiv 1905.10497, algorithm 2. It lowers the sum of
p_k F_k^(q+1) / (q+1): the larger q, the more the clients with a large loss count.

    client:  F_k = loss at w of all its data;  w_k <- local steps;  D_k = L (w - w_k)
             sends Delta_k = F_k^q D_k  and  h_k = q F_k^(q-1) ||D_k||^2 + L F_k^q
    server:  w <- w - sum_k Delta_k / sum_k h_k
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import (
    ClientOptimizer,
    LocalTraining,
    local_training,
    optimizer_of,
)
from fedjax_fm.algorithms.parts import DeltaState, Stream, stream
from fedjax_fm.algorithms.passes import loss_over
from fedjax_fm.algorithms.reach import reach_of
from fedjax_fm.algorithms.reduce import total
from fedjax_fm.types import (
    Algorithm,
    ClientData,
    ClientOutput,
    Exchange,
    Task,
    Tree,
)

LEAST_LOSS = 1e-10  # is added to F_k, as in the authors' code


class Weighed(NamedTuple):
    """What a client sends."""

    change: Tree  # Delta_k
    size: jax.Array  # f32[], h_k


class _Fair(NamedTuple):
    """The hyper-parameters, checked."""

    local: LocalTraining
    q: float
    lipschitz: float | None

    def inverse_rate(self, delta: Tree, round_index: jax.Array) -> Any:
        """L, given or one over the first step of the client's optimizer."""
        if self.lipschitz is not None:
            return self.lipschitz
        optimizer = optimizer_of(self.local.optimizer, round_index)
        return 1 / reach_of(optimizer, delta, 1)


def qfedavg(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    q: float = 0.2,
    lipschitz: float | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averaging in which clients with a larger loss count more.

        w <- w - sum_k F_k^q D_k / sum_k (q F_k^(q-1) ||D_k||^2 + L F_k^q)

    With q = 0 it is the plain mean of the clients' models, FedAvg with equal weights.
    Sums are unweighted, as in the authors' code; with clients drawn in proportion to
    their examples they have the paper's weights. Losses are to be at least 0. F_k^q that
    are all below 1e-38 make w NaN, at which the next round stops.

    Sends: down w, up a tree of its size and one number. An uplink that is lossy for a
    whole message is so for that number, too: `channels.per_leaf(("size",
    channels.identity()), otherwise=...)` spares it. Clients go once more over their
    data.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      q: at least 0; 0.001 to 15 in the paper.
      lipschitz: L > 0, 1 / eta; None takes eta from the optimizer's first step under a
        gradient of ones, the rate of SGD. Give it for optimizers that clip.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `DeltaState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Li et al. 2019, arXiv 1905.10497, algorithm 2.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> clients = [{"x": jnp.array([x])} for x in (-2.0, 1.0, 1.0)]
      >>> population = ffm.Population.from_clients(clients)
      >>> for q in (0.0, 5.0):
      ...     method = qfedavg(task, optax.sgd(0.1), q=q, local_steps=1, batch_size=1)
      ...     simulator = ffm.Simulator(method, population, cohort_size=3)
      ...     state, metrics = simulator.run(simulator.init(jnp.float32(0)), 200)
      ...     print(round(float(state.delta), 1))  # towards the middle of the extremes
      0.0
      -0.5
    """
    checks.real("q", q, least=0)
    if lipschitz is not None:
        checks.real("lipschitz", lipschitz, above=0)
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )

    method = _Fair(local, q, lipschitz)

    def client(backbone, message):
        def one(start, state, data, key):
            return _client(method, start, state, backbone, data=data, key=key)

        return one

    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=client,
        server=_server,
        reduce=total()._replace(shows_nan=True),
        batches=local.batches,
    )

    def init(delta, key, setting):
        return DeltaState(delta)

    return Algorithm(init=init, exchanges=(exchange,))


def _client(
    method: _Fair,
    start: Tree,
    state: Any,
    backbone: Tree,
    *,
    data: ClientData,
    key: jax.Array,
) -> ClientOutput:
    """F_k of all its data first, then FedAvg's local steps."""
    local, whole = method.local, stream(key, Stream.WHOLE_PASS)
    loss, count = loss_over(local.task, start, backbone, data, whole)["loss"]
    trained, metrics = local.run(start, backbone, data, key)
    rate = method.inverse_rate(start, data.round)
    change = trees.subtract(start, trained)
    steps = jax.tree.map(lambda d: rate * d, change)
    return ClientOutput(
        upload=_weighed(method.q, rate, loss / count, steps),
        weight=jnp.float32(1),
        state=state,
        metrics=metrics,
    )


def _weighed(q, rate, loss: jax.Array, steps: Tree) -> Weighed:
    """Delta_k and h_k; powers in logarithms, so that a loss of 0 has one for any q."""
    log_loss = jnp.log(loss + LEAST_LOSS)
    weight = jnp.exp(q * log_loss)
    slope = q * jnp.exp((q - 1) * log_loss)
    square = optax.tree.norm(steps, squared=True)
    change = jax.tree.map(lambda d: (weight * d).astype(d.dtype), steps)
    return Weighed(change=change, size=slope * square + rate * weight)


def _server(state: DeltaState, aggregate, key):
    """Moves w against sum Delta / sum h; 0 / 0 of clients that arrived is to be NaN."""
    summed, _ = aggregate.value
    arrived = aggregate.n_clients > 0

    def step(d):
        return jnp.where(arrived, -d / summed.size, 0)

    steps = jax.tree.map(step, summed.change)
    return DeltaState(optax.apply_updates(state.delta, steps)), {}
