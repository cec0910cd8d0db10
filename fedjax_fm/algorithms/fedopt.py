"""FedAvgM, FedAdagrad, FedYogi and FedAdam: FedAvg with the server step of each paper.

Hsu, Qi, Brown, 2019, arXiv 1909.06335 (FedAvgM); Reddi, Charles, Zaheer, Garrett, Rush,
Konecny, Kumar, McMahan, 2020, arXiv 2003.00295, algorithm 2 (the others).

    client:  as FedAvg's, sends -Delta_k = w - w_k
    server:  Delta = mean of Delta_k, then one step of `server_optimizers`

Presets: each is `fedavg` with a server optimizer that has a name in the literature.
"""

from typing import Any

import jax.numpy as jnp
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms import server_optimizers
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import ClientOptimizer, local_training, sends_update
from fedjax_fm.types import Algorithm, Batches, Task

__all__ = ["fedadagrad", "fedadam", "fedavgm", "fedyogi"]


def fedavgm(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    server_learning_rate: float = 1.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAvg with momentum at the server.

        v <- beta v + sum_k p_k (w - w_k),   w <- w - eta_s v

    Rates compare at equal eta_s / (1 - beta), the length of a long run's step.

    Sends: as `fedavg`.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      server_learning_rate: eta_s > 0, or an optax schedule of the number of updates.
      momentum: beta, 0 <= beta < 1; with 0 and a rate of 1 this is FedAvg.
      nesterov: whether the step looks ahead along v, as some re-implementations do.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedAvgState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Hsu et al. 2019, arXiv 1909.06335, section 4.3.

    Example:
      >>> import jax, fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: (w * batch["x"], {}))
      >>> method = fedavgm(task, optax.sgd(1.0), local_steps=1, batch_size=1)
      >>> population = ffm.Population.from_clients([{"x": jnp.array([1.0])}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 2)
      >>> round(float(state.delta), 4)  # -(1 + 1.9)
      -2.9
    """
    if not callable(server_learning_rate):
        checks.real("server_learning_rate", server_learning_rate, above=0)
    checks.real("momentum", momentum, least=0, below=1)
    checks.flag("nesterov", nesterov)
    optimizer = optax.sgd(server_learning_rate, momentum=momentum, nesterov=nesterov)
    return fedavg(
        task,
        client_optimizer,
        optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )


def fedadagrad(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    server_learning_rate: float = 0.1,
    b1: float = 0.0,
    tau: float = 1e-3,
    initial: float | None = None,
    weighted: bool = False,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAdagrad: `server_optimizers.adagrad` on the plain mean of the clients' changes.

    Sends: as `fedavg`.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      server_learning_rate: eta > 0, or an optax schedule of the number of updates.
      b1: of the first moment, 0 <= b1 < 1.
      tau: > 0, the degree of adaptivity; the smaller, the more.
      initial: v_{-1}, at least 0; None is the paper's least, tau^2.
      weighted: whether clients count by their examples, as in `fedavg`; the paper's
        listing counts each client as one.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedAvgState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Reddi et al. 2020, arXiv 2003.00295, algorithm 2.

    Example:
      >>> import jax, fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: (w * batch["x"], {}))
      >>> method = fedadagrad(task, optax.sgd(1.0), local_steps=1, batch_size=1)
      >>> population = ffm.Population.from_clients([{"x": jnp.array([1.0])}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> round(float(state.delta), 4)  # -0.1 / (sqrt(1 + 1e-6) + 1e-3)
      -0.0999
    """
    how = {"b1": b1, "tau": tau, "initial": initial}
    optimizer = _named(server_optimizers.adagrad, server_learning_rate, how)
    batches = Batches(batch_size, epochs, local_steps)
    return _adaptive(task, client_optimizer, optimizer, weighted, batches=batches)


def fedyogi(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    server_learning_rate: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    initial: float | None = None,
    weighted: bool = False,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedYogi: `server_optimizers.yogi` on the plain mean of the clients' changes.

    Sends: as `fedavg`.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      server_learning_rate: eta > 0, or an optax schedule of the number of updates.
      b1: of the first moment, 0 <= b1 < 1.
      b2: of the second moment, 0 <= b2 < 1.
      tau: > 0, the degree of adaptivity; the smaller, the more.
      initial: v_{-1}, at least 0; None is the paper's least, tau^2.
      weighted: whether clients count by their examples, as in `fedavg`; the paper's
        listing counts each client as one.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedAvgState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Reddi et al. 2020, arXiv 2003.00295, algorithm 2.

    Example:
      >>> import jax, fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: (w * batch["x"], {}))
      >>> method = fedyogi(task, optax.sgd(1.0), b1=0.0, local_steps=1, batch_size=1)
      >>> population = ffm.Population.from_clients([{"x": jnp.array([1.0])}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> round(float(state.delta), 2)  # -0.1 / (0.1 + 1e-3)
      -0.99
    """
    how = {"b1": b1, "b2": b2, "tau": tau, "initial": initial}
    optimizer = _named(server_optimizers.yogi, server_learning_rate, how)
    batches = Batches(batch_size, epochs, local_steps)
    return _adaptive(task, client_optimizer, optimizer, weighted, batches=batches)


def fedadam(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    server_learning_rate: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    initial: float | None = None,
    weighted: bool = False,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAdam: `server_optimizers.adam` on the plain mean of the clients' changes.

    Sends: as `fedavg`. There is no bias correction, as in the paper; for optax's Adam
    give it to `fedavg`.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      server_learning_rate: eta > 0, or an optax schedule of the number of updates.
      b1: of the first moment, 0 <= b1 < 1.
      b2: of the second moment, 0 <= b2 < 1.
      tau: > 0, the degree of adaptivity; the smaller, the more.
      initial: v_{-1}, at least 0; None is the paper's least, tau^2.
      weighted: whether clients count by their examples, as in `fedavg`; the paper's
        listing counts each client as one.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedAvgState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Reddi et al. 2020, arXiv 2003.00295, algorithm 2.

    Example:
      >>> import jax, fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: (w * batch["x"], {}))
      >>> method = fedadam(task, optax.sgd(1.0), local_steps=1, batch_size=1)
      >>> population = ffm.Population.from_clients([{"x": jnp.array([1.0])}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> round(float(state.delta), 4)  # -0.1 * 0.1 / (sqrt(0.01 + 0.99e-6) + 0.001)
      -0.099
    """
    how = {"b1": b1, "b2": b2, "tau": tau, "initial": initial}
    optimizer = _named(server_optimizers.adam, server_learning_rate, how)
    batches = Batches(batch_size, epochs, local_steps)
    return _adaptive(task, client_optimizer, optimizer, weighted, batches=batches)


def _named(make: Any, rate: Any, how: dict) -> optax.GradientTransformation:
    """A server optimizer; errors name the rate as these methods do."""
    if not callable(rate):
        checks.real("server_learning_rate", rate, above=0)
    return make(rate, **how)


def _adaptive(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation,
    weighted: bool,
    *,
    batches: Batches,
) -> Algorithm:
    """FedAvg with this step, on the plain mean over the cohort unless `weighted`."""
    checks.flag("weighted", weighted)
    walk = {
        "epochs": batches.epochs,
        "local_steps": batches.steps,
        "batch_size": batches.batch_size,
    }
    averaging = fedavg(task, client_optimizer, server_optimizer, **walk)
    if weighted:
        return averaging
    local = local_training(task, client_optimizer, **walk)
    (exchange,) = averaging.exchanges

    def as_one(data):
        return jnp.float32(1)

    counted = exchange._replace(client=sends_update(local, weight=as_one))
    return averaging._replace(exchanges=(counted,))
