"""FedProx whose mu follows the loss.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, 2018, arXiv 1812.06127, section 5.3.2. mu goes
up by 0.1 in a round whose loss is above that of the round before, and down by 0.1 after
five rounds in a row whose losses were below.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import FedAvgState, fedavg
from fedjax_fm.algorithms.fedprox import Pull
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.types import Algorithm, ClientOutput, Task, Tree


class Adaptation(NamedTuple):
    """The pull, and what decides on it."""

    mu: jax.Array  # f32[]
    loss: jax.Array  # f32[], of the last round; infinity before the first
    falls: jax.Array  # i32[], rounds in a row that were below their last ones


class AdaptiveState(NamedTuple):
    """Server state."""

    averaging: FedAvgState
    adaptation: Adaptation

    @property
    def delta(self) -> Tree:
        """What is trained."""
        return self.averaging.delta


class Message(NamedTuple):
    """What a client is sent."""

    delta: Tree
    mu: jax.Array  # f32[]


class WithLoss(NamedTuple):
    """What a client sends."""

    change: Tree
    loss: jax.Array  # f32[], the mean over its local steps


def fedprox_adaptive(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    mu: float = 0.0,
    change: float = 0.1,
    patience: int = 5,
    implicit_rate: float | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """`fedprox` with a mu that grows when the loss rises and shrinks while it falls.

    The loss is the cohort's mean over its local steps, which costs no pass over the
    data.

    Sends: as `fedavg` and one number more each way, mu and the client's loss.

    Metrics: `mu` of the round.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`.
      mu: of the first round, at least 0.
      change: what mu goes up or down by, > 0.
      patience: rounds in a row with a falling loss after which mu goes down, >= 1.
      implicit_rate: as for `fedprox`.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `AdaptiveState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Li et al. 2018, arXiv 1812.06127, section 5.3.2.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> how = {"mu": 0.5, "patience": 2, "local_steps": 1, "batch_size": 1}
      >>> method = fedprox_adaptive(task, optax.sgd(0.1), **how)
      >>> population = ffm.Population.from_clients([{"x": jnp.array([2.0])}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 5)
      >>> [round(float(x), 1) for x in metrics["mu"]]  # losses fall all the time
      [0.5, 0.5, 0.5, 0.4, 0.4]
    """
    checks.real("mu", mu, least=0)
    checks.real("change", change, above=0)
    checks.whole("patience", patience, least=1)
    if implicit_rate is not None:
        checks.real("implicit_rate", implicit_rate, above=0)
    walk = {"epochs": epochs, "local_steps": local_steps, "batch_size": batch_size}
    local = local_training(task, client_optimizer, **walk)
    plain = fedavg(task, client_optimizer, server_optimizer, **walk)
    (exchange,) = plain.exchanges

    def client(backbone, message):
        def one(message, state, data, key):
            pull = Pull(local, message.mu, implicit_rate)
            trained, metrics = pull.train(message.delta, backbone, data, key)
            total, count = metrics["loss"]
            loss = total / jnp.where(count > 0, count, 1)
            return ClientOutput(
                upload=WithLoss(trees.subtract(message.delta, trained), loss),
                weight=local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    def server(state, aggregate, key):
        found, before = aggregate.value, state.adaptation
        own = aggregate._replace(value=found.change)
        averaging, _ = exchange.server(state.averaging, own, key)
        after = _adapted(before, found.loss, change, patience)
        after = trees.select(aggregate.n_clients > 0, after, before)
        return AdaptiveState(averaging, after), {"mu": before.mu}

    def init(delta, key, setting):
        first = Adaptation(jnp.float32(mu), jnp.float32(jnp.inf), jnp.int32(0))
        return AdaptiveState(plain.init(delta, key, setting), first)

    adaptive = exchange._replace(
        broadcast=lambda state: Message(state.delta, state.adaptation.mu),
        client=client,
        server=server,
    )
    return plain._replace(init=init, exchanges=(adaptive,))


def _adapted(
    before: Adaptation, loss: jax.Array, change: float, patience: int
) -> Adaptation:
    """The next mu, after a round with this loss."""
    rises, falls = loss > before.loss, loss < before.loss
    # the first round has nothing to be compared with
    in_a_row = jnp.where(falls & jnp.isfinite(before.loss), before.falls + 1, 0)
    is_due = in_a_row >= patience
    lower = jnp.maximum(before.mu - change, 0)
    mu = jnp.where(rises, before.mu + change, jnp.where(is_due, lower, before.mu))
    return Adaptation(mu=mu, loss=loss, falls=jnp.where(is_due, 0, in_a_row))
