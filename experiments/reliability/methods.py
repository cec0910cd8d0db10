"""Methods with each kind of state, on a small problem."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedjax_fm as ffm
from fedjax_fm import algorithms, channels, privacy
from fedjax_fm.experiments.reliability.problem import Problem, clients_of, trees_of
from fedjax_fm.population import samplers
from fedjax_fm.types import Tree

MOST_ROUNDS = 2000  # that a private method is accounted for


def simulator(
    method: str, problem: Problem, *, devices: int | None, tick: Callable | None = None
) -> tuple[ffm.Simulator, Tree]:
    """A simulator of one of `METHODS`, and what its training starts from.

    Args:
      method: its name.
      problem: data, model and settings.
      devices: of the layout; None: chosen by the engine.
      tick: called on the host in every local step; None: nothing is called.
    """
    clients = clients_of(problem)
    sampler = samplers.uniform(len(clients), 4)
    if method == DP:
        sampler = samplers.poisson(len(clients), 4 / len(clients))
    task = ffm.Task(_loss(problem.raises, tick))
    algorithm, wire = METHODS[method](task, problem.rate, sampler)
    delta, backbone = trees_of(problem)
    made = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(clients),
        backbone=backbone,
        cohort_size=4,
        sampler=sampler,
        seed=problem.seed,
        devices=devices,
        behaviour=_behaviour(problem),
        **wire,
    )
    return made, delta


def _fedavg(task: ffm.Task, rate: float, sampler: ffm.Sampler) -> tuple:
    optimizer = optax.sgd(rate, momentum=0.9)
    return ffm.fedavg(task, optimizer, local_steps=2, batch_size=4), {}


def _scaffold(task: ffm.Task, rate: float, sampler: ffm.Sampler) -> tuple:
    optimizer = optax.sgd(rate)
    return algorithms.scaffold(task, optimizer, local_steps=2, batch_size=4), {}


def _fed_back(task: ffm.Task, rate: float, sampler: ffm.Sampler) -> tuple:
    lossy = channels.chain(channels.top_k(0.3), channels.quantize(4))
    wire = {
        "uplink": channels.error_feedback(lossy),
        "downlink": channels.anchored(channels.identity(), lossy, every=3),
    }
    return _fedavg(task, rate, sampler)[0], wire


def _private(task: ffm.Task, rate: float, sampler: ffm.Sampler) -> tuple:
    algorithm = algorithms.dp_fedavg(
        task,
        optax.sgd(rate),
        noise=privacy.independent(),
        noise_multiplier=1.0,
        clip_norm=0.5,
        accounting=privacy.Accounting(sampler, rounds=MOST_ROUNDS, delta=1e-3),
        local_steps=2,
        batch_size=4,
    )
    return algorithm, {}


DP = "DP-FedAvg, accounted for"
METHODS = {
    "FedAvg": _fedavg,
    "SCAFFOLD": _scaffold,
    "FedAvg, error feedback": _fed_back,
    DP: _private,
}


def _loss(raises: bool, tick: Callable | None) -> Callable:
    """Squared error of a hidden layer with a low-rank change."""

    def loss(delta: Tree, backbone: Tree, batch: Tree, key: jax.Array) -> Any:
        if raises:
            raise KeyError("a column that is not there")
        if tick is not None:
            jax.debug.callback(tick)
        low_rank = (batch["x"] @ delta["a"]) @ delta["b"]
        hidden = jnp.tanh(batch["x"] @ backbone["w"] + low_rank)
        return (hidden @ backbone["v"] - batch["y"]) ** 2, {}

    return loss


def _behaviour(problem: Problem) -> ffm.Behaviour | None:
    without = problem.nobody_in
    if without is None:
        return None
    return ffm.Behaviour(drops=lambda client, round_index, key: round_index == without)
