"""FedALA: Adaptive Local Aggregation for Personalized Federated Learning.

Zhang, Hua, Wang, Song, Xue, Ma, Guan, 2022, arXiv 2212.01197. In the leaves that
`personal` names, a client starts between its last local model l_k and the received w:

    start    =  l_k + (w - l_k) * W_k                  all others start at w
    W_k     <-  clip(W_k - weight_rate grad f_k(start) * (w - l_k), 0, 1)
                on a share of its examples; then
    client:  w_k <- local steps from start;  sends w - w_k, keeps l_k = w_k and W_k
    server:  w <- w - server_optimizer(sum_k p_k (w - w_k))
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.personal.leaves import personal_part, put
from fedjax_fm.algorithms.personal.weighing import (
    WeighedLeaves,
    Weighing,
    ends_of,
    learn,
)
from fedjax_fm.peft.patterns import Targets
from fedjax_fm.types import Algorithm, ClientOutput, Task, Tree


def fedala(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    personal: Targets,
    weight_rate: float = 1.0,
    share: float = 0.8,
    first_passes: int = 20,
    tolerance: float = 0.1,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAvg whose clients learn how much of the shared model they start from.

    Sends: w down, w - w_k up, as `fedavg`. Learning the weights costs a gradient a
    batch and pass beside the local steps, which `examples_processed` does not count;
    the metric `weight_passes` does.

    Args:
      task: the loss.
      client_optimizer: of the local steps, starts afresh each round.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`.
      personal: names the leaves that are weighed, the upper layers in the paper: a
        regular expression that is searched in a leaf's dotted path, a list of endings
        of paths, or a function of the path. It may name all.
      weight_rate: eta of the weights; 0 lets them stay at 1, which is FedAvg.
      share: of the rows of every batch, drawn once a round, on which weights are
        learned.
      first_passes: at most, when a client learns weights for the first time, in its
        second round. It stops when the standard deviation of ten passes' losses is
        below `tolerance`. In later rounds it makes one pass; in its first none, as it
        has no local model yet.
      tolerance: see `first_passes`.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is FedAvg's. A client's state is `WeighedLeaves`;
      its `model` is the start that its weights make of the server's w, and w itself
      before its first round.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        `personal` names no leaf of the delta.

    References:
      Zhang et al. 2022, arXiv 2212.01197, algorithm 1, equations 4 to 6.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(
      ...     lambda w, backbone, batch, key: ((w["v"] - batch["x"]) ** 2 / 2, {})
      ... )
      >>> how = {"personal": "v", "local_steps": 4, "batch_size": 1}
      >>> method = fedala(task, optax.sgd(0.5), **how)
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init({"v": jnp.float32(0)}), 4)
      >>> models = [simulator.model(state, client=k)[0]["v"] for k in range(2)]
      >>> round(float(state.delta["v"]), 1), [round(float(v), 1) for v in models]
      (3.0, [2.0, 4.0])
    """
    checks.real("weight_rate", weight_rate, least=0)
    checks.real("share", share, above=0, most=1)
    checks.whole("first_passes", first_passes, least=1)
    checks.real("tolerance", tolerance, least=0)
    walk: dict[str, Any] = {
        "epochs": epochs,
        "local_steps": local_steps,
        "batch_size": batch_size,
    }
    method = Weighing(
        local=local_training(task, client_optimizer, **walk),
        part=personal_part(personal),
        rate=weight_rate,
        share=share,
        first_passes=first_passes,
        tolerance=tolerance,
    )
    plain = fedavg(task, client_optimizer, server_optimizer, **walk)
    (exchange,) = plain.exchanges

    def init(delta, key, setting):
        method.part.check(delta, all_may_be=True)
        return plain.init(delta, key, setting)

    return plain._replace(
        init=init,
        exchanges=(exchange._replace(client=partial(_client, method)),),
        client_init=partial(_client_init, method),
        model=partial(_model, method),
    )


def _client_init(method: Weighing, delta: Tree, key: jax.Array) -> WeighedLeaves:
    """No local model yet, and weights of 1: all of the shared one."""
    last = method.part.own(delta)
    weights = jax.tree.map(jnp.ones_like, last)
    return WeighedLeaves(last=last, weights=weights, rounds=jnp.int32(0))


def _model(method: Weighing, server, own: WeighedLeaves | None, backbone):
    """`Algorithm.model`: where the client would start now."""
    if own is None:
        return server.delta, backbone
    ends = ends_of(method.part, server.delta, own)
    return put(server.delta, ends.start(own.weights)), backbone


def _client(method: Weighing, backbone: Tree, message: Tree):
    """`Exchange.client`: weights, then local steps."""
    part, local = method.part, method.local

    def one(received, own, data, key):
        learned = learn(method, received, own, backbone, data, key=key)
        weights = learned.weights
        start = ends_of(part, received, own).start(weights)
        trained, metrics = local.run(put(received, start), backbone, data, key)
        passes = learned.passes.astype(jnp.float32)
        return ClientOutput(
            upload=trees.subtract(received, trained),
            weight=local.weight(data),
            state=WeighedLeaves(part.own(trained), weights, own.rounds + 1),
            metrics={**metrics, "weight_passes": (passes, jnp.float32(1))},
        )

    return one
