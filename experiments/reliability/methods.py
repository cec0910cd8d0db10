"""Methods with each kind of state, on a small problem of which anything can be changed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import algorithms, channels, privacy
from fedjax_fm.population import IidPartitioner, samplers
from fedjax_fm.types import Tree

SIZES = (7, 1, 12, 5, 3, 9, 12, 4)  # examples of each client
FEATURES = 6
MOST_ROUNDS = 2000  # that a private method is accounted for


class Problem(NamedTuple):
    """What is trained, on whose data; every field may differ in a later session.

    Attributes:
      rank: of the two factors that are trained.
      width: of the hidden layer.
      rate: of the clients' SGD.
      seed: of the run.
      data_seed: of the clients' examples.
      empty: clients without examples, after the others.
      nan_client: whose data are NaN; None: nobody's.
      nobody_in: the round, from 0, in which no upload arrives; None: there is none.
      raises: whether the user's loss raises when it is traced.
      partition: parts into which the examples are dealt; None: as `SIZES` says.
    """

    rank: int = 2
    width: int = 4
    rate: float = 0.05
    seed: int = 5
    data_seed: int = 0
    empty: int = 0
    nan_client: int | None = None
    nobody_in: int | None = None
    raises: bool = False
    partition: int | None = None


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
    clients = _clients(problem)
    sampler = samplers.uniform(len(clients), 4)
    if method == DP:
        sampler = samplers.poisson(len(clients), 4 / len(clients))
    task = ffm.Task(_loss(problem.raises, tick))
    algorithm, wire = METHODS[method](task, problem.rate, sampler)
    delta, backbone = _trees(problem)
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


def _clients(problem: Problem) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(problem.data_seed)
    clients = []
    for size in (*SIZES, *[0] * problem.empty):
        x = rng.normal(size=(size, FEATURES)).astype(np.float32)
        clients.append({"x": x, "y": rng.normal(size=size).astype(np.float32)})
    if problem.partition is not None:
        rows = {name: np.concatenate([one[name] for one in clients]) for name in "xy"}
        dealt = IidPartitioner(problem.partition, seed=0).partition(rows)
        return [{name: rows[name][part] for name in "xy"} for part in dealt]
    if problem.nan_client is not None:
        clients[problem.nan_client]["x"][:] = np.nan
    return clients


def _trees(problem: Problem) -> tuple[Tree, Tree]:
    rng = np.random.default_rng(1)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32) / 2

    backbone = {"w": draw(FEATURES, problem.width), "v": draw(problem.width)}
    delta = {
        "a": draw(FEATURES, problem.rank),
        "b": np.zeros((problem.rank, problem.width), np.float32),
    }
    return delta, backbone


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
