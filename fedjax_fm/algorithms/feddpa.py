"""FedDPA: Dual-Personalizing Adapter for Federated Foundation Models.

Yang, Long, Shen, Jiang, Blumenstein, 2024, arXiv 2403.19211. A shared adapter g is
federated, a private one p_k stays with its client:  y = W0 x + a p(x) + (1 - a) g(x).

    FedDPA-F (fine-tuning):
        FedAvg of g alone, `rounds` rounds                  `_shared_exchange`
        then every client trains its p_k, g frozen          `_private_exchange`
    FedDPA-T (training), in each round:
        the client trains p_k beside the received g, frozen `_train_private`
        then g alone, and sends g - g_k                     FedAvg's client
    test:
        a = omega * mean cosine of query and local instances: `peft.instance_mix`

`simulator.model` gives `Adapters`, to be evaluated with the personal task: of the
server with a = 0, of a client with the a that it trained with.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import (
    ClientOptimizer,
    LocalTraining,
    Sums,
    local_training,
)
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.reduce import nothing
from fedjax_fm.population import samplers
from fedjax_fm.types import (
    Algorithm,
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
    """What a loss that knows both adapters is given as its delta.

    Attributes:
      shared: g.
      private: p.
      mix: f32[] or f32[B], a: what the private one counts; the shared one counts 1 - a.
    """

    shared: Tree
    private: Tree
    mix: jax.Array


class FedDPAFState(NamedTuple):
    """Server state of FedDPA-F."""

    shared: Any  # of the federated averaging of g
    round: jax.Array  # i32[]


class StageMessage(NamedTuple):
    """What a client is sent in FedDPA-F; only the adapter is billed."""

    shared: Tree  # g
    now: Any  # bool[], whether this exchange is one of this round


class _Private(NamedTuple):
    """How private adapters are trained."""

    local: LocalTraining  # of the task of both adapters
    mix: float  # a
    init: Callable[[Tree, jax.Array], Tree]


class _FedDPAF(NamedTuple):
    """The hyper-parameters of `feddpa_f`, checked."""

    shared: Algorithm  # FedAvg of g
    private: _Private
    rounds: int

    @property
    def averaging(self) -> Exchange:
        """FedAvg's only exchange."""
        (exchange,) = self.shared.exchanges
        return exchange

    def delta_of(self, state: FedDPAFState) -> Tree:
        """g, as the server has it."""
        return self.shared.delta(state.shared)


def _where_shared_starts(delta: Tree, key: jax.Array) -> Tree:
    """The default of `private_init`."""
    return delta


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
    private_init: Callable[[Tree, jax.Array], Tree] = _where_shared_starts,
) -> Algorithm:
    """FedDPA-T: clients train a private adapter and the shared one in every round.

    Sends: g both ways, as `fedavg`; private adapters never. The shared adapter goes
    exactly the way it goes without them. The authors' code begins with private adapters
    in the second round, here they train from the first.

    Args:
      task: the loss of the shared adapter alone, `loss(shared, backbone, batch, key)`.
      personal_task: the loss of both, `loss(Adapters(shared, private, mix), backbone,
        batch, key)`; for LoRA `tasks.classification(peft.beside(adapted))`.
      client_optimizer: of the shared adapter, starts afresh each round.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`.
      private_optimizer: of the private adapters; None means `client_optimizer`.
      mix: a while the private adapter trains; with 0 it has no gradient.
      epochs: full passes over a client's data, for each adapter; give this or
        `local_steps`.
      local_steps: batches, for each adapter.
      batch_size: examples a step.
      private_init: `(initial delta, key of the client) -> private adapter`; default:
        where the shared one starts.

    Returns:
      An algorithm whose server state is FedAvg's; client states are private adapters.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Yang et al. 2024, arXiv 2403.19211, FedDPA-T.

    Example:
      >>> import fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return (w - batch["x"]) ** 2 / 2, {}
      >>> def loss_of_both(adapters, backbone, batch, key):
      ...     g, p, a = adapters
      ...     return loss((1 - a) * g + a * p, backbone, batch, key)
      >>> tasks = ffm.Task(loss), ffm.Task(loss_of_both)
      >>> method = feddpa_t(*tasks, optax.sgd(0.5), local_steps=8, batch_size=1)
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 9)
      >>> (g, p, a), backbone = simulator.model(state, client=1)
      >>> [round(float(x), 1) for x in (g, p, (1 - a) * g + a * p)]
      [3.0, 5.0, 4.0]
    """
    private = _private(
        personal_task,
        client_optimizer if private_optimizer is None else private_optimizer,
        mix=mix,
        init=private_init,
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

    def client(backbone, message):
        shared_client = exchange.client(backbone, message)

        def one(shared, own, data, key):
            own, metrics = _train_private(
                private, shared, own, backbone, data=data, key=key
            )
            output = shared_client(shared, (), data, key)
            metrics = {**output.metrics, **metrics}
            return output._replace(state=own, metrics=metrics)

        return one

    return plain._replace(
        exchanges=(exchange._replace(client=client),),
        client_init=private_init,
        model=_model(mix, plain.delta),
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
    private_init: Callable[[Tree, jax.Array], Tree] = _where_shared_starts,
) -> Algorithm:
    """FedDPA-F: FedAvg of the shared adapter, then each client trains its private one.

    Sends: g both ways, as `fedavg`; in the last round every client downloads the
    finished g, billed, and uploads nothing. The method makes the sampler of that round;
    the one that is chosen draws the cohorts before it.

    Args:
      task: the loss of the shared adapter alone, `loss(shared, backbone, batch, key)`.
      personal_task: the loss of both, `loss(Adapters(shared, private, mix), backbone,
        batch, key)`; for LoRA `tasks.classification(peft.beside(adapted))`.
      client_optimizer: of the shared adapter, starts afresh each round.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`.
      rounds: of the shared adapter, 0 to `rounds` - 1. In the round after them, the
        last, all clients train their private ones; after it no client takes part.
      private_optimizer: of the private adapters; None means `client_optimizer`.
      mix: a while the private adapter trains; with 0 it has no gradient.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      private_epochs: full passes in the last round; give this or `private_steps`.
      private_steps: batches of the last round.
      batch_size: examples a step.
      private_init: `(initial delta, key of the client) -> private adapter`; default:
        where the shared one starts.

    Returns:
      An algorithm whose server state is `FedDPAFState`; client states are private
      adapters.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Yang et al. 2024, arXiv 2403.19211, FedDPA-F.

    Example:
      >>> import fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return (w - batch["x"]) ** 2 / 2, {}
      >>> def loss_of_both(adapters, backbone, batch, key):
      ...     g, p, a = adapters
      ...     return loss((1 - a) * g + a * p, backbone, batch, key)
      >>> tasks = ffm.Task(loss), ffm.Task(loss_of_both)
      >>> how = {"local_steps": 8, "private_steps": 40, "batch_size": 1}
      >>> method = feddpa_f(*tasks, optax.sgd(0.5), rounds=2, **how)
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 3)
      >>> (g, p, a), backbone = simulator.model(state, client=1)
      >>> [round(float(x), 1) for x in (g, p, (1 - a) * g + a * p)]
      [3.0, 5.0, 4.0]
    """
    checks.whole("rounds", rounds, least=0)
    _check_private_work(private_epochs, private_steps)
    private = _private(
        personal_task,
        client_optimizer if private_optimizer is None else private_optimizer,
        mix=mix,
        init=private_init,
        epochs=private_epochs,
        local_steps=private_steps,
        batch_size=batch_size,
    )
    shared = fedavg(
        task,
        client_optimizer,
        server_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    method = _FedDPAF(shared=shared, private=private, rounds=rounds)
    return Algorithm(
        init=partial(_init, method),
        exchanges=(_shared_exchange(method), _private_exchange(method)),
        client_init=private_init,
        delta=method.delta_of,
        model=_model(mix, method.delta_of),
        sampler=_then_all_clients(rounds),
    )


def _check_private_work(epochs: int | None, steps: int | None) -> None:
    """Exactly one of them, and at least 1."""
    for name, count in (("private_epochs", epochs), ("private_steps", steps)):
        if count is not None:
            checks.whole(name, count, least=1)
    if (epochs is None) == (steps is None):
        raise ValueError(
            "give either private_epochs or private_steps, "
            f"got private_epochs={epochs}, private_steps={steps}"
        )


# Private adapters, of both methods


def _private(
    personal_task: Task,
    optimizer: ClientOptimizer,
    *,
    mix: float,
    init: Callable[[Tree, jax.Array], Tree],
    epochs: int | None,
    local_steps: int | None,
    batch_size: int,
) -> _Private:
    """How private adapters are trained, checked."""
    checks.real("mix", mix, least=0, most=1)
    local = local_training(
        personal_task,
        optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    return _Private(local, mix, init)


def _train_private(
    private: _Private,
    shared: Tree,
    own: Tree,
    backbone: Tree,
    data: ClientData,
    *,
    key: jax.Array,
) -> tuple[Tree, Sums]:
    """(p_k after local steps beside g, which is frozen; metrics `private_<name>`)."""
    task, mix = private.local.task, jnp.float32(private.mix)

    def loss(own, backbone, batch, key):  # the shared one is not differentiated
        return task.loss(Adapters(shared, own, mix), backbone, batch, key)

    local = private.local._replace(task=Task(loss, task.weight))
    own_key = stream(key, Stream.BESIDE_STEPS)
    own, metrics = local.run(own, backbone, data, own_key)
    return own, {f"private_{name}": pair for name, pair in metrics.items()}


def _model(mix: float, delta_of: Callable[[Any], Tree]) -> Callable:
    """`Algorithm.model`: both adapters, the task being the personal one.

    The server has no private adapter, so that of its model counts nothing.
    """

    def model(server, own, backbone):
        shared = delta_of(server)
        if own is None:
            return Adapters(shared=shared, private=shared, mix=jnp.float32(0)), backbone
        return Adapters(shared=shared, private=own, mix=jnp.float32(mix)), backbone

    return model


# FedDPA-F


def _init(method: _FedDPAF, delta, key, setting) -> FedDPAFState:
    """The start of the federated averaging of g."""
    shared = method.shared.init(delta, key, setting)
    return FedDPAFState(shared=shared, round=jnp.int32(0))


def _now(message: StageMessage, client, key):
    """`Exchange.selects`: all clients or none, as the round is."""
    return message.now


def _shared_exchange(method: _FedDPAF) -> Exchange:
    """FedAvg of g in rounds 0 to `rounds` - 1; then it changes nothing."""
    averaging = method.averaging

    def broadcast(state: FedDPAFState) -> StageMessage:
        now = Unbilled(state.round < method.rounds)
        return StageMessage(shared=averaging.broadcast(state.shared), now=now)

    def client(backbone, message):
        work = averaging.client(backbone, message.shared)

        def one(message, own, data, key):
            output = work(message.shared, (), data, key)
            return output._replace(state=own)

        return one

    def lift(state, sent, weight):
        return averaging.reduce.lift(state.shared, sent, weight)

    def server(state, aggregate, key):
        after, metrics = averaging.server(state.shared, aggregate, key)
        # Without clients a server optimizer would still go on with its momentum.
        shared = trees.select(state.round < method.rounds, after, state.shared)
        return state._replace(shared=shared), metrics

    return averaging._replace(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=averaging.reduce._replace(lift=lift),
        selects=_now,
    )


def _private_exchange(method: _FedDPAF) -> Exchange:
    """Training of all p_k beside the finished g, in round `rounds`."""
    local = method.private.local

    def broadcast(state: FedDPAFState) -> StageMessage:
        now = Unbilled(state.round == method.rounds)
        return StageMessage(shared=method.delta_of(state), now=now)

    def client(backbone, message):
        def one(message, own, data, key):
            own, metrics = _train_private(
                method.private, message.shared, own, backbone, data=data, key=key
            )
            return ClientOutput(
                upload=(),
                weight=local.weight(data),
                state=own,
                metrics={**metrics, "loss": metrics["private_loss"]},
            )

        return one

    def server(state, aggregate, key):
        return state._replace(round=state.round + 1), {}

    return Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=nothing(),
        batches=local.batches,
        selects=_now,
    )


def _then_all_clients(rounds: int) -> Callable[[Sampler | None, Setting], Sampler]:
    """`Algorithm.sampler`: the chosen one for some rounds, then all clients once.

    After that it draws no client.
    """

    def make(chosen: Sampler | None, setting: Setting) -> Sampler:
        n = setting.n_clients
        first = chosen or samplers.uniform(n, setting.cohort_size)
        capacity = max(n, first.capacity)
        places = jnp.arange(capacity, dtype=jnp.int32)
        all_clients = jnp.minimum(places, n - 1)

        def init():
            return first.init(), jnp.int32(0)

        def draw(state, key):
            inner, done = state
            ids, n_active, inner = first.draw(inner, key)
            ids = jnp.pad(ids, (0, capacity - ids.shape[0]))
            in_last_round = jnp.where(done == rounds, n, 0).astype(jnp.int32)
            early = done < rounds
            ids = jnp.where(early, ids, all_clients)
            n_active = jnp.where(early, n_active, in_last_round)
            return ids, n_active, (inner, done + 1)

        return Sampler(init=init, draw=draw, capacity=capacity)

    return make
