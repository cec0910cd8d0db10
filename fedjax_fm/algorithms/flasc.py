"""FLASC: Federated LoRA with Sparse Communication.

Kuo, Raje, Rajesh, Smith, 2024, arXiv 2406.05233, algorithm 1. T(x) keeps the entries of
largest magnitude of all of x, a share of its own each way:

    server:  sends T_down(w)
    client:  w_k <- T_down(w);  local steps on all entries;
             sends T_up(T_down(w) - w_k)                              `_client`
    server:  w <- w - server_optimizer(sum_k p_k T_up(T_down(w) - w_k))
                                                                      `Averaging.server`

Entries that were not sent keep the server's value; what is used is T_down(w).
"""

from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.averaging import Averaging, AveragingState, averaging
from fedjax_fm.algorithms.compressed import (
    Encoded,
    encoded,
    marked,
    mean_decoded,
    shown,
)
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.channels.identity import identity
from fedjax_fm.channels.top_k import top_k
from fedjax_fm.types import Algorithm, Channel, ClientOutput, Exchange, Task, Tree


class _Flasc(NamedTuple):
    """The hyper-parameters of `flasc`, checked."""

    average: Averaging
    density_down: float
    density_up: float

    def up(self) -> Channel:
        """T_up."""
        return _sparse(self.density_up)

    def down(self) -> Channel:
        """T_down."""
        return _sparse(self.density_down)


def flasc(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    density_down: float = 0.25,
    density_up: float = 0.25,
    weighted: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averaging with sparse messages and dense local training.

    One threshold for all of delta, made anew in each round; ties go to the first entry,
    so that of a LoRA whose B is zero the first download is A's. Meant for LoRA, of which
    it knows nothing: any delta is sparse alike.

    Sends: down the kept entries of w, up those of the update, and their places, as
    numbers or as a bitmap, the shorter one (the paper counts the entries only); a
    density of 1 sends the array. With both 1 it is FedAvg with this server optimizer,
    FedAdam in the paper.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round, or a function of the round; SGD of
        rate 1e-3 and momentum 0.9 in the paper.
      server_optimizer: applied to the mean of what arrived; None: `optax.adam(1e-3)`,
        as in the paper.
      density_down: share of the entries that is sent down, floor(density n) of n, 0 <
        density <= 1.
      density_up: share of the entries that is sent up.
      weighted: whether clients count by their examples, as in FedAvg; False: all the
        same, as in the paper.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `AveragingState`; clients keep nothing. Its model is
      T_down(w).

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later, a
        density so low that no entry is sent.

    References:
      Kuo et al. 2024, arXiv 2406.05233, algorithm 1.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return jnp.sum((w - batch["x"]) ** 2, axis=-1) / 2, {}
      >>> method = flasc(
      ...     Task(loss), optax.sgd(1.0), optax.sgd(1.0), local_steps=1, batch_size=1
      ... )
      >>> x = jnp.array([[4.0, 1.0, 3.0, 2.0]])
      >>> population = ffm.Population.from_clients([{"x": x}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.zeros(4)), 1)
      >>> state.delta.tolist(), metrics["uplink_bytes"].tolist()
      ([4.0, 0.0, 0.0, 0.0], [5])
    """
    if server_optimizer is None:
        server_optimizer = optax.adam(1e-3)
    average = averaging(
        task,
        client_optimizer,
        server_optimizer,
        weighted=weighted,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    densities = {"density_down": density_down, "density_up": density_up}
    for name, density in densities.items():
        checks.real(name, density, above=0, most=1)
    method = _Flasc(average=average, **densities)
    exchange = Exchange(
        broadcast=partial(_broadcast, method),
        client=partial(_client, method),
        server=average.server,
        reduce=mean_decoded(method.up()),
        batches=average.local.batches,
    )
    return Algorithm(
        init=average.init,
        exchanges=(exchange,),
        model=partial(_model, method),
    )


def _sparse(density: float) -> Channel:
    """Keeps floor(density n) entries of n; all of them without places for 1."""
    if density == 1:
        return identity()

    def of_length(tree: Tree) -> Channel:
        n = trees.size(tree)
        kept = int(Fraction(str(density)) * n)
        if kept < 1:
            raise ValueError(
                f"a density of {density} keeps no entry of {n}; expected at least "
                f"1 / {n}"
            )
        share: Any = Fraction(kept, n)  # floats would round it
        return top_k(share)

    def encode(state, tree, key):
        return of_length(tree).encode(state, tree, key)

    def decode(payload):
        _, fraction, _ = payload.form
        return top_k(fraction).decode(payload)

    return top_k(0.5)._replace(encode=encode, decode=decode)


def _broadcast(method: _Flasc, state: AveragingState) -> Encoded:
    """T_down(w), which draws nothing from a key."""
    payload, _ = method.down().encode((), state.delta, jax.random.key(0))
    return marked(payload)


def _client(method: _Flasc, backbone, message: Encoded):
    """The model is decoded once for all clients."""
    start = method.down().decode(message.payload)

    def one(message, state, data, key):
        update, metrics = method.average.update(start, backbone, data, key)
        return ClientOutput(
            upload=encoded(method.up(), update, key),
            weight=shown(method.average.weight(data), update),
            state=state,
            metrics=metrics,
        )

    return one


def _model(method: _Flasc, state: AveragingState, client, backbone):
    """What clients are sent is what is evaluated."""
    message = _broadcast(method, state)
    return method.down().decode(message.payload), backbone
