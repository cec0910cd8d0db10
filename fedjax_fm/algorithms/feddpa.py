"""FedDPA: Dual-Personalizing Adapter for Federated Foundation Models.

Yang, Long, Shen, Jiang, Blumenstein, 2024, arXiv 2403.19211. A shared adapter g is
federated, a private one p_k stays with its client:  y = W0 x + a p(x) + (1 - a) g(x).

    FedDPA-F:  federated averaging of g alone, to the end; then every client trains its
    p_k, g frozen
    FedDPA-T:  each round the client trains p_k beside the received g, frozen; then g
    alone; sends g - g_k
    test:      a = omega * mean cosine of query and local instances: `peft.instance_mix`

`simulator.model` gives `Adapters`, to be evaluated with the personal task: of the
server with a = 0, of a client with the a that it trained with.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import ClientOptimizer, client_weight, train
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.population import samplers
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientData,
    ClientOutput,
    Exchange,
    Sampler,
    Setting,
    Task,
    Tree,
    Unbilled,
)


class Adapters(NamedTuple):
    """What a loss that knows both adapters is given as its delta."""

    shared: Tree
    private: Tree
    mix: (
        jax.Array
    )  # f32[] or f32[B], a: what the private one counts; the shared one counts 1 - a


class FedDPAFState(NamedTuple):
    """Server state of FedDPA-F."""

    shared: Any  # of the federated averaging of g
    round: jax.Array  # i32[]


class StageMessage(NamedTuple):
    """What a client is sent, and whether this exchange is for this round.

    The latter is not billed.
    """

    shared: Tree
    now: Any  # bool[]


def _beside(task: Task, optimizer: ClientOptimizer, mix: float) -> Callable:
    """`(shared, private, backbone, data, key) -> (private adapter, metrics named private_...)`."""
    task = checked(task)
    checks.client_optimizer("client_optimizer", optimizer)
    checks.real("mix", mix, least=0, most=1)

    def train_private(
        shared: Tree, private: Tree, backbone: Tree, data: ClientData, key: jax.Array
    ):
        def loss(private, backbone, batch, key):  # the shared one is not differentiated
            return task.loss(
                Adapters(shared, private, jnp.float32(mix)), backbone, batch, key
            )

        key = stream(key, Stream.BESIDE_STEPS)
        private, metrics = train(
            Task(loss, task.weight), optimizer, private, backbone, data, key
        )
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
      personal_task: the loss of both, `loss(Adapters(shared, private, mix), backbone,
        batch, key)`; for LoRA `tasks.classification(peft.beside(adapted))`.
      client_optimizer, server_optimizer, epochs, local_steps, batch_size: as for
      `fedavg`; both adapters see as many batches. private_optimizer: default
      `client_optimizer`. mix: a while the private adapter trains; with 0 it has no
      gradient. private_init: `(initial delta, key of the client) -> private adapter`;
      default: where the shared one starts.

    Sends: g both ways, as `fedavg`; private adapters never. The shared adapter goes
    exactly the way it goes without them. The authors' code begins with private adapters
    in the second round, here they train from the first.
    """
    train_private = _beside(
        personal_task,
        client_optimizer if private_optimizer is None else private_optimizer,
        mix,
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

    def client(backbone, message):
        shared_client = exchange.client(backbone, message)

        def one(shared, private, data, key):
            private, found = train_private(shared, private, backbone, data, key)
            output = shared_client(shared, (), data, key)
            return output._replace(state=private, metrics={**output.metrics, **found})

        return one

    exchanges = (exchange._replace(client=client),)
    return plain._replace(
        exchanges=exchanges, client_init=private_init, model=_model(mix, plain.delta)
    )


def feddpa_f(
    task: Task,
    personal_task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    rounds: int,
    private_optimizer: ClientOptimizer | None = None,
    mix: float = 0.5,
    epochs: int | None = None,
    local_steps: int | None = None,
    private_epochs: int | None = None,
    private_steps: int | None = None,
    batch_size: int,
    private_init: Callable[[Tree, jax.Array], Tree] = lambda delta, key: delta,
) -> Algorithm:
    """FedDPA-F: the shared adapter to its end, which is FedIT; then each client its own beside it.

    Args: as for `feddpa_t`, with the passes or batches of the private adapters by
      themselves, and rounds: of the shared adapter, 0 to `rounds` - 1. In the round
      after them, the last, all clients train their
        private ones; behind it nobody takes part.

    Sends: g both ways, as `fedavg`; in the last round every client downloads the
    finished g, billed, and uploads nothing. The method makes the sampler of that round;
    the one that is chosen draws the cohorts before it.
    """
    checks.whole("rounds", rounds, least=0)
    for name, count in (
        ("private_epochs", private_epochs),
        ("private_steps", private_steps),
    ):
        if count is not None:
            checks.whole(name, count, least=1)
    if (private_epochs is None) == (private_steps is None):
        raise ValueError(
            "give either private_epochs or private_steps, "
            f"got private_epochs={private_epochs}, private_steps={private_steps}"
        )
    train_private = _beside(
        personal_task,
        client_optimizer if private_optimizer is None else private_optimizer,
        mix,
    )
    plain = fedavg(
        task,
        client_optimizer,
        server_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    (averaging,) = plain.exchanges

    def init(delta, key, setting):
        return FedDPAFState(shared=plain.init(delta, key, setting), round=jnp.int32(0))

    def delta_of(state):
        return plain.delta(state.shared)

    def now(message, client, key):
        return message.now

    def shared_message(state):
        return StageMessage(
            shared=averaging.broadcast(state.shared), now=Unbilled(state.round < rounds)
        )

    def shared_client(backbone, message):
        work = averaging.client(backbone, message.shared)

        def one(message, private, data, key):
            return work(message.shared, (), data, key)._replace(state=private)

        return one

    def shared_lift(state, sent, weight):
        return averaging.reduce.lift(state.shared, sent, weight)

    def shared_server(state, aggregate, key):
        after, metrics = averaging.server(state.shared, aggregate, key)
        # Without clients a server optimizer would still go on with its momentum.
        kept = trees.select(state.round < rounds, after, state.shared)
        return state._replace(shared=kept), metrics

    def private_message(state):
        return StageMessage(shared=delta_of(state), now=Unbilled(state.round == rounds))

    def private_client(backbone, message):
        def one(message, private, data, key):
            private, found = train_private(message.shared, private, backbone, data, key)
            found["loss"] = found["private_loss"]
            return ClientOutput(
                upload=(),
                weight=client_weight(personal_task, data),
                state=private,
                metrics=found,
            )

        return one

    def private_server(state, aggregate, key):
        return state._replace(round=state.round + 1), {}

    shared = averaging._replace(
        broadcast=shared_message,
        client=shared_client,
        server=shared_server,
        reduce=averaging.reduce._replace(lift=shared_lift),
        selects=now,
    )
    private = Exchange(
        broadcast=private_message,
        client=private_client,
        server=private_server,
        reduce=weighted_mean(),
        batches=Batches(batch_size, private_epochs, private_steps).checked(),
        selects=now,
    )
    return Algorithm(
        init=init,
        exchanges=(shared, private),
        client_init=private_init,
        delta=delta_of,
        model=_model(mix, delta_of),
        sampler=_then_everybody(rounds),
    )


def _model(mix: float, delta_of: Callable[[Any], Tree]) -> Callable:
    """`Algorithm.model`: both adapters, the task being the personal one.

    The server has no private adapter, so that of its model counts nothing.
    """

    def model(server, private, backbone):
        shared = delta_of(server)
        if private is None:
            return Adapters(shared=shared, private=shared, mix=jnp.float32(0)), backbone
        return Adapters(shared=shared, private=private, mix=jnp.float32(mix)), backbone

    return model


def _then_everybody(rounds: int) -> Callable[[Sampler | None, Setting], Sampler]:
    """`Algorithm.sampler`: the chosen one for `rounds` rounds, then all clients once,
    then nobody.
    """

    def make(chosen: Sampler | None, setting: Setting) -> Sampler:
        n = setting.n_clients
        first = chosen or samplers.uniform(n, setting.cohort_size)
        capacity = max(n, first.capacity)
        everybody = jnp.minimum(jnp.arange(capacity, dtype=jnp.int32), n - 1)

        def draw(state, key):
            inner, done = state
            ids, n_active, inner = first.draw(inner, key)
            ids = jnp.pad(ids, (0, capacity - ids.shape[0]))
            rest = jnp.where(done == rounds, n, 0).astype(jnp.int32)
            early = done < rounds
            return (
                jnp.where(early, ids, everybody),
                jnp.where(early, n_active, rest),
                (inner, done + 1),
            )

        return Sampler(
            init=lambda: (first.init(), jnp.int32(0)), draw=draw, capacity=capacity
        )

    return make
