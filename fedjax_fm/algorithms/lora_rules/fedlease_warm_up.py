"""FedLEASE's first stage, on the bill: every client trains a LoRA alone and sends it.

Wang, Bian, Zhang, Xu, 2025, arXiv 2509.15087.

    client:  (A_k, B_k) <- local steps from the common start;  sends both
    server:  keeps all of them, for `cluster_adapters` and `expert_start`
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.lora_rules.factors import split
from fedjax_fm.algorithms.reduce import kept
from fedjax_fm.types import Algorithm, ClientOutput, Exchange, Task, Tree


class WarmUpState(NamedTuple):
    """Server state.

    Attributes:
      delta: where all clients start; never changed.
      adapters: what each client sent last, leaves [N, ...]; the start of those who have
        sent nothing.
      has_sent: bool[N].
    """

    delta: Tree
    adapters: Tree
    has_sent: jax.Array

    def deltas(self) -> list[Tree]:
        """The adapters, one for each client, for `cluster_adapters`.

        Raises:
          ValueError: a client has sent nothing yet.
        """
        silent = [k for k, sent in enumerate(self.has_sent.tolist()) if not sent]
        if silent:
            raise ValueError(
                f"{len(silent)} clients have sent no adapter, the first of them "
                f"{silent[0]}; let all take part in the warm-up, cohort_size="
                f"{len(self.has_sent)}"
            )
        n_clients = len(self.has_sent)
        return [
            jax.tree.map(lambda x, k=k: x[k], self.adapters) for k in range(n_clients)
        ]


def fedlease_warm_up(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Clients train adapters alone from one start, and send them once.

    One round with all clients is the warm-up: its bytes come before those of `fedlease`.
    The authors train for five rounds of two epochs, 10 epochs here, with one optimizer
    state in the place of five. Further rounds begin at the common start again.

    Sends: down the start, up what it has become, r (d_in + d_out) numbers a layer and
    the other trained leaves. The server keeps the adapters of all clients.

    Args:
      task: the loss of a model with `peft.lora`.
      client_optimizer: starts afresh each round.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `WarmUpState`, whose `deltas()` go into
      `cluster_adapters` and `expert_start`.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`.

    References:
      Wang et al. 2025, arXiv 2509.15087, initialisation.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["lora_a"] @ delta["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - batch["y"]) ** 2, axis=-1), {}
      >>> how = {"local_steps": 9, "batch_size": 1}
      >>> method = fedlease_warm_up(Task(loss), optax.sgd(0.1), **how)
      >>> x = jnp.ones((1, 1))
      >>> clients = [{"x": x, "y": y * x} for y in (1.0, 1.1, -1.0)]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=3)
      >>> start = {"lora_a": jnp.ones((1, 1)), "lora_b": jnp.zeros((1, 1))}
      >>> state, metrics = simulator.run(simulator.init(start), 1)
      >>> deltas = state.carry.server.deltas()
      >>> ffm.algorithms.lora_rules.cluster_adapters(deltas, most=2).labels.tolist()
      [0, 0, 1]
      >>> metrics["uplink_bytes"].tolist()  # of three clients, two numbers each
      [24]
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )

    def init(delta, key, setting):
        split(delta)  # refuses a delta without pairs
        n = setting.n_clients
        adapters = jax.tree.map(lambda x: jnp.stack([x] * n), delta)
        return WarmUpState(delta, adapters, jnp.zeros(n, bool))

    def client(backbone, message):
        def one(delta, state, data, key):
            trained, metrics = local.run(delta, backbone, data, key)
            return ClientOutput(
                upload=trees.subtract(trained, delta),
                weight=local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    def server(state, aggregate, key):
        (changes, _), active, ids = aggregate.value
        places = jnp.where(active, ids, len(state.has_sent))

        def put(rows, start, change):
            return rows.at[places].set(start + change, mode="drop")

        adapters = jax.tree.map(put, state.adapters, state.delta, changes)
        has_sent = state.has_sent.at[places].set(True, mode="drop")
        return WarmUpState(state.delta, adapters, has_sent), {}

    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=client,
        server=server,
        reduce=kept(),
        batches=local.batches,
    )
    return Algorithm(init=init, exchanges=(exchange,))
