"""FedNova: Tackling the Objective Inconsistency Problem in Heterogeneous FL.

Wang, Liu, Liang, Joshi, Poor, 2020, arXiv 2007.07481. A client's change is a sum of its
gradients, w - w_k = eta sum_i a_i g_i, longer the more steps it makes:

    client:  d_k = (w - w_k) / (eta ||a_k||_1);  sends d_k and eta ||a_k||_1
    server:  w <- w - (sum_k p_k eta ||a_k||_1) (sum_k p_k d_k)

With mu > 0 the authors' code goes further: sum_k p_k eta tau_k, the numbers of steps.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import FedAvgState, fedavg
from fedjax_fm.algorithms.fedprox import Pull
from fedjax_fm.algorithms.local import ClientOptimizer, local_training, optimizer_of
from fedjax_fm.algorithms.parts import in_f32
from fedjax_fm.algorithms.reach import reach_of
from fedjax_fm.types import Algorithm, ClientOutput, Task, Tree

Effective = Literal["norms", "steps"]


class Normalised(NamedTuple):
    """What a client sends."""

    direction: Tree  # d_k
    reach: jax.Array  # f32[], eta ||a_k||_1, or eta tau_k


def fednova(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    mu: float = 0.0,
    effective: Effective = "norms",
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAvg of directions: clients count by p_k, however many steps they make.

        w <- w - tau_eff sum_k p_k d_k,   tau_eff = sum_k p_k eta ||a_k||_1

    With equal work it is FedAvg. eta ||a_k||_1 is how far the client's own optimizer goes
    under gradients that are all one, which is the paper's for SGD with and without
    momentum and the proximal term (tau eta for SGD), follows schedules, and is an
    approximation for optimizers that are not linear in the gradients.

    Sends: down w, up a tree of its size and one number more. An uplink that is lossy for
    a whole message is so for that number, too: `channels.per_leaf(("reach",
    channels.identity()), otherwise=...)` spares it.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`.
      mu: of FedProx's pull towards w, at least 0.
      effective: what tau_eff is the mean of: "norms", the paper's ||a_k||_1, or with mu
        > 0 "steps", the tau_k of the authors' code, where the pull shortens the way
        less: it goes 1 / (1 - (tau - 1) eta mu / 2 + ...) times as far. eta is that of
        the client's first step.
      epochs: full passes over a client's data, more steps for larger clients; give this
        or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedAvgState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds;
        effective="steps" without mu, where both are the same.

    References:
      Wang et al. 2020, arXiv 2007.07481, equations (3) and (6); the authors' code,
      github.com/JYWa/FedNova.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: (w * batch["x"], {}))
      >>> method = fednova(task, optax.sgd(1.0), epochs=1, batch_size=1)
      >>> clients = [{"x": jnp.array([-1.0])}, {"x": jnp.array([1.0, 1.0, 1.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> # tau_eff = 1/4 * 1 + 3/4 * 3 = 2.5, the mean direction is 1/2
      >>> float(state.delta)
      -1.25
    """
    checks.real("mu", mu, least=0)
    checks.choice("effective", effective, ("norms", "steps"))
    if effective == "steps" and not isinstance(mu, Tracer) and mu == 0:
        raise ValueError(
            "effective='steps' is what the authors' code does with a pull: expected "
            "mu > 0, got mu=0; leave effective='norms'"
        )
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    plain = fedavg(
        task,
        client_optimizer,
        server_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    optimizer = server_optimizer or optax.sgd(1.0)
    (exchange,) = plain.exchanges
    near = Pull(local, mu, implicit_rate=None)

    def client(backbone, message):
        def one(start, state, data, key):
            trained, metrics = near.train(start, backbone, data, key)
            tried = optimizer_of(client_optimizer, data.round)
            reach = reach_of(tried, start, data.n_steps, lambda g, w: g + mu * w)
            direction = _divided(trees.subtract(start, trained), reach)
            if effective == "steps":
                reach = data.n_steps * reach_of(tried, start, 1)
            return ClientOutput(
                upload=Normalised(direction, reach),
                weight=local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    def server(state, aggregate, key):
        direction, effective = aggregate.value
        step = jax.tree.map(lambda d: effective * d, direction)
        updates, moments = optimizer.update(step, state.optimizer, in_f32(state.delta))
        return FedAvgState(optax.apply_updates(state.delta, updates), moments), {}

    normalised = exchange._replace(client=client, server=server)
    return plain._replace(exchanges=(normalised,))


def _divided(change: Tree, reach: jax.Array) -> Tree:
    """The change for each unit of reach; an optimizer that stands still has none."""
    divisor = jnp.where(reach == 0, 1, reach)
    return jax.tree.map(lambda x: (x / divisor).astype(x.dtype), change)
