"""FSLoRA: every client trains a random few of the global ranks, drawn anew each round.

Fang, Han, Yuan, Hosseinalipour, Brinton, 2025, "Federated Sketching LoRA: On-Device
Collaborative Fine-Tuning of Large Language Models", arXiv 2501.19389. I_k
are m_k of the r ranks, and S_k is (r / m_k) diag(1 in I_k), whose mean is the identity:

    client:  (A_k, B_k) <- local steps on the ranks I_k of the update s B S_k A
    server:  (A, B) <- server_optimizer((A, B), the mean of the clients' changes),
             ranks that a client did not train being its change of zero
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.compressed import counts_once
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.cohort import weights_of_arrived
from fedjax_fm.algorithms.lora_rules.drawn import in_order, orders_of
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    as_arrays,
    cut_pairs,
    join,
    split,
)
from fedjax_fm.algorithms.lora_rules.training import (
    ClientFactors,
    FactorTraining,
    Ranks,
    factor_training,
)
from fedjax_fm.algorithms.reduce import kept, mean_of
from fedjax_fm.types import (
    Algorithm,
    Batches,
    Exchange,
    Stack,
    Task,
    Tree,
    Unbilled,
)


class FSLoRAState(NamedTuple):
    """Server state.

    Attributes:
      delta: the factors of all ranks, and the other trained leaves.
      optimizer: the server optimizer's state.
      seed: u32[2], names the draws of ranks.
      round: i32[], rounds that are done.
    """

    delta: Tree
    optimizer: Any
    seed: jax.Array
    round: jax.Array


class _FSLoRA(NamedTuple):
    """The hyper-parameters of `fslora`, checked."""

    training: FactorTraining
    optimizer: optax.GradientTransformation
    weighted: bool


def fslora(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    ranks: Ranks = None,
    weighted: bool = False,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Trains m_k random ranks at each client, and averages their changes at the server.

    Sends m_k (d_in + d_out) numbers a layer each way, and the other trained leaves.
    Both sides draw the ranks from a common seed, which is not billed. A layer's A and B
    have the same ranks; another layer draws others, and layers in one stack share them.
    With m_k = r it is FedAvg on the factors with that server optimizer. The server
    keeps the changes of the whole cohort.

    The rows of an upload are other ones each round, so that error feedback is refused:
    it would add what one rank missed to another.

    The paper's code compares a parameter's full name with `lora_B`, which never holds:
    there, every client trains all ranks. Here it is as the paper has it.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      server_optimizer: applied to the mean change, taken as a gradient; None means
        `optax.adamw(3e-4)`, the authors'.
      ranks: i32[N], m_k of every client, at most the rank of the delta; None: all ranks
        for all.
      weighted: whether clients count by their examples; the paper counts each as one.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FSLoRAState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, or the ranks do not fit.

    References:
      Fang et al. 2025, arXiv 2501.19389, "sketching".

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> how = {"ranks": [1, 1], "local_steps": 1, "batch_size": 1}
      >>> method = fslora(Task(loss), optax.sgd(0.1), optax.sgd(1.0), **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 4)), "lora_b": jnp.zeros((4, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> int((state.delta["layer"]["lora_b"] != 0).any(axis=1).sum()) <= 2
      True
      >>> metrics["uplink_bytes"].tolist()  # of two clients, one rank of 3 + 2 numbers
      [40]
    """
    checks.server_optimizer("server_optimizer", server_optimizer)
    batches = Batches(batch_size, epochs, local_steps)
    method = _FSLoRA(
        training=factor_training(task, client_optimizer, batches, ranks),
        optimizer=server_optimizer or optax.adamw(3e-4),
        weighted=checks.flag("weighted", weighted),
    )

    def init(delta, key, setting):
        method.training.check_ranks(delta, setting)
        return FSLoRAState(
            delta=delta,
            optimizer=method.optimizer.init(delta),
            seed=jax.random.key_data(key),
            round=jnp.int32(0),
        )

    return Algorithm(init=init, exchanges=(_exchange(method),))


def _exchange(method: _FSLoRA) -> Exchange:
    """The only one of a round."""
    training = method.training

    def broadcast(state):
        return split(state.delta), Unbilled((state.seed, state.round))

    def address(message, state, client):
        factors, (seed, round_index) = message
        orders = orders_of(factors, seed, round_index, client)
        drawn = in_order(factors, orders)
        return ClientFactors(cut_pairs(drawn, training.height(factors, client)))

    def client(backbone, message):
        def one(mine, state, data, key):
            layout = training.layout._replace(join=_raised(mine.trained))
            done = training._replace(layout=layout).run(mine, backbone, data, key)
            weight = done.weight if method.weighted else counts_once(data)
            return done._replace(weight=weight).output(done.change, state)

        return one

    def server(state, aggregate, key):
        return _stepped(method, state, aggregate.value), {}

    return Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=kept(),
        batches=training.local.batches,
        address=address,
        same_entries=False,
    )


def _raised(trained: Factors) -> Callable[[Factors], Tree]:
    """`Layout.join`, with r / m_k on the products."""
    scales = {}
    for layer, (a, _) in trained.pairs.items():
        scales[layer] = a.values.shape[0] / a.count

    def join_raised(factors: Factors) -> Tree:
        pairs = {
            layer: Pair(a, scales[layer] * b) for layer, (a, b) in factors.pairs.items()
        }
        return join(dataclasses.replace(factors, pairs=pairs))

    return join_raised


def _stepped(method: _FSLoRA, state: FSLoRAState, found: Stack) -> FSLoRAState:
    """The state after the server's step; without uploads, only the round goes on."""
    changes, _ = found.values
    weights = weights_of_arrived(found)
    arrived = jnp.sum(weights)
    shares = mean_of(weights, arrived)
    factors = split(state.delta)

    def in_place(change, client):
        orders = orders_of(factors, state.seed, state.round, client)
        back = {layer: jnp.argsort(order) for layer, order in orders.items()}
        return in_order(as_arrays(change), back)

    whole = jax.vmap(in_place)(changes, found.ids)
    gradient = jax.tree.map(lambda x: -jnp.tensordot(shares, x, axes=1), whole)
    updates, optimizer = method.optimizer.update(
        join(gradient), state.optimizer, state.delta
    )
    after = optax.apply_updates(state.delta, updates), optimizer
    before = state.delta, state.optimizer
    delta, optimizer = trees.select(arrived > 0, after, before)
    return state._replace(delta=delta, optimizer=optimizer, round=state.round + 1)
