"""FedDPA: Dual-Personalizing Adapter for Federated Foundation Models.

Yang, Long, Shen, Jiang, Blumenstein, 2024, arXiv 2403.19211. A shared adapter g is federated, a private one p_k stays with its
client:  y = W0 x + a p(x) + (1 - a) g(x).

    FedDPA-F:  federated averaging of g alone, to the end; then every client trains its p_k, g frozen
    FedDPA-T:  each round the client trains p_k beside the received g, frozen; then g alone; sends g - g_k
    test:      a = omega * mean cosine of query and local instances: `peft.dual_lora.instance_mix`
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import ClientOptimizer, checked, client_weight, train
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.types import Algorithm, Batches, ClientData, ClientOutput, Exchange, Task, Tree

PRIVATE = 2**32 - 1  # names the private adapter's key under the client's; steps, which are named too, are fewer


class Adapters(NamedTuple):
    """What a loss that knows both adapters is given as its delta."""

    shared: Tree
    private: Tree
    mix: jax.Array  # f32[] or f32[B], a: what the private one counts; the shared one counts 1 - a


class PersonalState(NamedTuple):
    """Server state of FedDPA-F's second stage: the finished shared adapter and where private ones start; never changed."""

    delta: Adapters


class Stages(NamedTuple):
    """Two algorithms in a row: `second` starts from `join(state.delta of the first, initial private adapter)`."""

    first: Algorithm
    join: Callable[[Tree, Tree], Adapters]
    second: Algorithm


def _beside(task: Task, optimizer: ClientOptimizer, mix: float) -> Callable:
    """`(shared, private, backbone, data, key) -> (private adapter, metrics named private_...)`."""
    task = checked(task)
    checks.client_optimizer("client_optimizer", optimizer)
    checks.real("mix", mix, least=0, most=1)

    def train_private(shared: Tree, private: Tree, backbone: Tree, data: ClientData, key: jax.Array):
        def loss(private, backbone, batch, key):  # the shared one is not differentiated
            return task.loss(Adapters(shared, private, jnp.float32(mix)), backbone, batch, key)

        key = jax.random.fold_in(key, PRIVATE)
        private, metrics = train(Task(loss, task.weight), optimizer, private, backbone, data, key)
        return private, {f"private_{name}": pair for name, pair in metrics.items()}

    return train_private


def feddpa_t(
    task: Task,
    personal_task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    private_optimizer: ClientOptimizer | None = None,
    mix: float = 0.5,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
    private_init: Callable[[Tree, jax.Array], Tree] = lambda delta, key: delta,
) -> Algorithm:
    """FedDPA-T: both adapters in every round; the private ones are the client states.

    Args:
      task: the loss of the shared adapter alone, `loss(shared, backbone, batch, key)`.
      personal_task: the loss of both, `loss(Adapters(shared, private, mix), backbone, batch, key)`; for LoRA see
        `peft.two_adapters`.
      client_optimizer, server_optimizer, epochs, local_steps, batch_size: as for `fedavg`; both adapters see as many batches.
      private_optimizer: default `client_optimizer`.
      mix: a while the private adapter trains; with 0 it has no gradient.
      private_init: `(initial delta, key of the client) -> private adapter`; default: where the shared one starts.

    Sends: g both ways, as `fedavg`; private adapters never. The shared adapter goes exactly the way it goes without them.
    The authors' code begins with private adapters in the second round, here they train from the first.
    """
    train_private = _beside(personal_task, client_optimizer if private_optimizer is None else private_optimizer, mix)
    plain = fedavg(
        task, client_optimizer, server_optimizer, epochs=epochs, local_steps=local_steps, batch_size=batch_size
    )
    (exchange,) = plain.exchanges

    def client(backbone, message):
        shared_client = exchange.client(backbone, message)

        def one(shared, private, data, key):
            private, found = train_private(shared, private, backbone, data, key)
            output = shared_client(shared, (), data, key)
            return output._replace(state=private, metrics={**output.metrics, **found})

        return one

    return plain._replace(exchanges=(exchange._replace(client=client),), client_init=private_init)


def feddpa_f(
    task: Task,
    personal_task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    private_optimizer: ClientOptimizer | None = None,
    mix: float = 0.5,
    epochs: int | None = None,
    local_steps: int | None = None,
    private_epochs: int | None = None,
    private_steps: int | None = None,
    batch_size: int,
) -> Stages:
    """FedDPA-F: the shared adapter to its end, which is FedIT; then each client its own beside it.

    Args: as for `feddpa_t`, with the passes or batches of the private adapters by themselves.

    Run `second` for one round with all clients: a client downloads the finished shared adapter, billed, trains its private
    one, the client state, and uploads nothing.
    """
    for name, count in (("private_epochs", private_epochs), ("private_steps", private_steps)):
        if count is not None:
            checks.whole(name, count, least=1)
    if (private_epochs is None) == (private_steps is None):
        raise ValueError(
            "give either private_epochs or private_steps, "
            f"got private_epochs={private_epochs}, private_steps={private_steps}"
        )
    train_private = _beside(personal_task, client_optimizer if private_optimizer is None else private_optimizer, mix)
    first = fedavg(
        task, client_optimizer, server_optimizer, epochs=epochs, local_steps=local_steps, batch_size=batch_size
    )

    def client(backbone, message):
        def one(shared, private, data, key):
            private, found = train_private(shared, private, backbone, data, key)
            found["loss"] = found["private_loss"]
            return ClientOutput((), client_weight(personal_task, data), private, found)

        return one

    exchange = Exchange(
        broadcast=lambda state: state.delta.shared,
        client=client,
        server=lambda state, aggregate, key: (state, {}),
        reduce=weighted_mean(),
        batches=Batches(batch_size, private_epochs, private_steps).checked(),
    )
    init = lambda delta, key, setting: PersonalState(delta)
    second = Algorithm(init, (exchange,), lambda delta, key: delta.private)
    return Stages(first, lambda shared, private: Adapters(shared, private, jnp.float32(mix)), second)
