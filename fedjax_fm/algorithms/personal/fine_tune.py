"""Clients that train by themselves from a finished model: the end of several methods."""

from collections.abc import Callable

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.local_only import local_only
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.algorithms.personal.leaves import personal_part, put
from fedjax_fm.engine.simulator import Simulator
from fedjax_fm.peft.patterns import Targets
from fedjax_fm.population.population import Population
from fedjax_fm.types import Task, Tree

Models = Callable[[int], tuple[Tree, Tree]]


def fine_tune(
    task: Task,
    client_optimizer: ClientOptimizer,
    model: tuple[Tree, Tree],
    population: Population,
    *,
    personal: Targets | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
    seed: int = 0,
) -> Models:
    """Every client trains the same model by itself, on its own examples.

    FedBABU and Per-FedAvg end with it, FedAvg with it is their baseline, and it is how
    clients that were never seen adapt. Nothing is sent but the model, once.

    Args:
      task: the loss.
      client_optimizer: of every client; a function of the round is given round 0.
      model: (delta, backbone), where all start: `simulator.model(state)`.
      population: the clients, those that trained or others.
      personal: names the leaves that are trained, as for `fedper`; None: all.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.
      seed: of the shuffles.

    Returns:
      `client -> (delta, backbone)`, like `simulator.model`; of a client without examples
      the model that it was given.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds, or
        `personal` names no leaf of the delta.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> own = fine_tune(task, optax.sgd(0.5), (jnp.float32(3), ()), population, **how)
      >>> [float(own(k)[0]) for k in range(2)]
      [2.5, 3.5]
    """
    hint = "make one with Population.from_clients(...)"
    checks.instance("population", population, Population, hint)
    delta, backbone = model
    leaves, whole_task = delta, checked(task)
    if personal is not None:
        part = personal_part(personal)
        part.check(delta, all_may_be=True)
        leaves, whole_task = part.own(delta), _of_leaves(whole_task)
    method = local_only(
        whole_task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    simulator = Simulator(
        method,
        population,
        backbone=backbone if personal is None else (backbone, delta),
        cohort_size=population.n_clients,
        seed=seed,
    )
    state, _ = simulator.run(simulator.init(leaves), 1)

    def own(client: int) -> tuple[Tree, Tree]:
        trained, _ = simulator.model(state, client)
        return (trained if personal is None else put(delta, trained)), backbone

    return own


def _of_leaves(task: Task) -> Task:
    """The task of some leaves, with the whole delta beside the backbone."""

    def loss(leaves, frozen, batch, key):
        backbone, delta = frozen
        return task.loss(put(delta, leaves), backbone, batch, key)

    return Task(loss, task.weight)
