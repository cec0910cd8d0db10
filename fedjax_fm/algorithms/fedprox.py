"""FedProx: Federated Optimization in Heterogeneous Networks.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, 2018, arXiv 1812.06127, algorithm 2.

    client:  w_k <- local steps on f_k(w) + mu/2 ||w - w_t||^2, from w_t
    server:  w <- sum_k p_k w_k

Partial work of stragglers, the paper's other half, is `Behaviour(most_steps=...)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import (
    ClientOptimizer,
    LocalTraining,
    local_training,
)
from fedjax_fm.types import Algorithm, ClientData, ClientOutput, Task, Tree


class Pull(NamedTuple):
    """Local training with one of the two steps."""

    local: LocalTraining
    mu: float
    implicit_rate: float | None

    def train(self, start: Tree, backbone: Tree, data: ClientData, key: jax.Array):
        """(w_k, metrics), as `LocalTraining.run`."""
        if self.implicit_rate is None:
            return self.local.run(
                start, backbone, data, key, correct=self._towards(start)
            )
        strength = self.implicit_rate * self.mu

        def with_pull(optimizer):
            return optax.chain(optimizer, _pull_to(start, strength))

        return self.local.with_optimizer(with_pull).run(start, backbone, data, key)

    def _towards(self, start: Tree) -> Callable[[Tree, Tree], Tree]:
        """The explicit step's gradient."""

        def pulled(g, w, s):
            return jnp.asarray(g + self.mu * (w - s), g.dtype)

        def correct(gradients, w):
            return jax.tree.map(pulled, gradients, w, start)

        return correct


def fedprox(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    mu: float = 0.01,
    implicit_rate: float | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAvg whose clients are pulled back to where they start.

        g <- grad f_k(w) + mu (w - w_t)                                      explicit
        w <- (w' + eta mu w_t) / (1 + eta mu),  w' after an optimizer's step  implicit

    The explicit step diverges for eta mu > 2, the implicit one is stable for any mu; both
    rest at the same point. Reported losses are the task's, without the penalty.

    Sends: as `fedavg`.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`.
      mu: strength of the pull, at least 0; 0 is FedAvg, and 0.001 to 1 is usual.
      implicit_rate: eta of the client's optimizer, for the implicit step; None takes the
        explicit one.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedAvgState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Li et al. 2018, arXiv 1812.06127, algorithm 2.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> method = fedprox(task, optax.sgd(0.5), mu=1.0, local_steps=9, batch_size=1)
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> round(float(state.delta), 4)  # half way: clients rest at (x_k + mu w) / (1 + mu)
      1.5
    """
    checks.real("mu", mu, least=0)
    if implicit_rate is not None:
        checks.real("implicit_rate", implicit_rate, above=0)
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
    (exchange,) = plain.exchanges

    how = Pull(local, mu, implicit_rate)

    def client(backbone, message):
        def one(start, state, data, key):
            trained, metrics = how.train(start, backbone, data, key)
            return ClientOutput(
                upload=trees.subtract(start, trained),
                weight=local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    return plain._replace(exchanges=(exchange._replace(client=client),))


def _pull_to(start: Tree, strength: Any) -> optax.GradientTransformation:
    """Behind an optimizer's step, the proximal one: its minimum in closed form."""
    share = 1 / (1 + strength)

    def update(updates, state, params=None):
        def pulled(step, w, s):
            # a product with a share of 0 to 1 cannot overflow, whatever mu
            return jnp.asarray(share * (w + step) + (1 - share) * s - w, w.dtype)

        return jax.tree.map(pulled, updates, params, start), state

    return optax.GradientTransformation(lambda params: (), update)
