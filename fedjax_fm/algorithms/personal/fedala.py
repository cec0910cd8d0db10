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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import ClientOptimizer, LocalTraining, local_training
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.personal.leaves import (
    Leaves,
    PersonalPart,
    personal_part,
    put,
)
from fedjax_fm.peft.patterns import Targets
from fedjax_fm.types import Algorithm, ClientData, ClientOutput, Task, Tree

WINDOW = 10  # passes whose losses have to agree before the first learning ends


class WeighedLeaves(NamedTuple):
    """The state of a client of `fedala`.

    Attributes:
      last: {path: leaf} of its last local model, l_k.
      weights: {path: of the leaf's shape}, W_k, in [0, 1].
      rounds: i32[], in which it took part.
    """

    last: Leaves
    weights: Leaves
    rounds: jax.Array


class _ALA(NamedTuple):
    """What `fedala` was given, checked."""

    local: LocalTraining
    part: PersonalPart
    weight_rate: float
    share: float
    first_passes: int
    tolerance: float


class _Learning(NamedTuple):
    """W_k, and the losses of its last passes."""

    weights: Leaves
    passes: jax.Array  # i32[]
    losses: jax.Array  # f32[WINDOW]


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
    local = local_training(
        task,
        client_optimizer,
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
    method = _ALA(
        local=local,
        part=personal_part(personal),
        weight_rate=weight_rate,
        share=share,
        first_passes=first_passes,
        tolerance=tolerance,
    )
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


def _client_init(method: _ALA, delta: Tree, key: jax.Array) -> WeighedLeaves:
    """No local model yet, and weights of 1: all of the shared one."""
    last = method.part.own(delta)
    weights = jax.tree.map(jnp.ones_like, last)
    return WeighedLeaves(last=last, weights=weights, rounds=jnp.int32(0))


def _model(method: _ALA, server, own: WeighedLeaves | None, backbone):
    """`Algorithm.model`: where the client would start now."""
    if own is None:
        return server.delta, backbone
    last = _last(method, server.delta, own)
    start = _start(last, own.weights, method.part.own(server.delta))
    return put(server.delta, start), backbone


def _last(method: _ALA, shared: Tree, own: WeighedLeaves) -> Leaves:
    """The last local model; of a client without one, the shared."""
    return trees.select(own.rounds > 0, own.last, method.part.own(shared))


def _start(last: Leaves, weights: Leaves, shared: Leaves) -> Leaves:
    """Between the last local model and the shared one."""
    return jax.tree.map(
        lambda a, weight, b: a + (b - a) * weight, last, weights, shared
    )


def _client(method: _ALA, backbone: Tree, message: Tree):
    """`Exchange.client`: weights, then local steps."""
    part, local = method.part, method.local

    def one(received, own, data, key):
        last = _last(method, received, own)
        learned = _learn(method, received, last, own, backbone, data=data, key=key)
        weights = learned.weights
        start = put(received, _start(last, weights, part.own(received)))
        trained, metrics = local.run(start, backbone, data, key)
        more = {"weight_passes": (learned.passes.astype(jnp.float32), jnp.float32(1))}
        return ClientOutput(
            upload=trees.subtract(received, trained),
            weight=local.weight(data),
            state=WeighedLeaves(
                last=part.own(trained), weights=weights, rounds=own.rounds + 1
            ),
            metrics={**metrics, **more},
        )

    return one


def _learn(
    method: _ALA,
    received: Tree,
    last: Leaves,
    own: WeighedLeaves,
    backbone: Tree,
    *,
    data: ClientData,
    key: jax.Array,
) -> _Learning:
    """Passes over a share of the client's examples."""
    most = jnp.where(own.rounds == 1, method.first_passes, 1)
    most = jnp.where(own.rounds == 0, 0, most)

    def goes_on(learning):
        agree = jnp.std(learning.losses) < method.tolerance
        settled = (learning.passes > WINDOW) & agree
        return (learning.passes < most) & ~settled

    def one_pass(learning):
        weights, loss = _pass(
            method, received, last, learning.weights, backbone, data=data, key=key
        )
        losses = jnp.roll(learning.losses, 1).at[0].set(loss)
        return _Learning(weights=weights, passes=learning.passes + 1, losses=losses)

    start = _Learning(
        weights=own.weights, passes=jnp.int32(0), losses=jnp.zeros(WINDOW)
    )
    return jax.lax.while_loop(goes_on, one_pass, start)


def _pass(
    method: _ALA,
    received: Tree,
    last: Leaves,
    weights: Leaves,
    backbone: Tree,
    *,
    data: ClientData,
    key: jax.Array,
) -> tuple[Leaves, jax.Array]:
    """(weights after one pass, its mean loss f32[])."""
    shared = method.part.own(received)
    gap = trees.subtract(shared, last)
    batch_size = method.local.batches.batch_size
    per_epoch = jnp.maximum(-(-data.n_examples // batch_size), 1)
    # The epoch after the local steps' is of another shuffle.
    first = -(-data.n_steps // per_epoch) * per_epoch
    rows_key = stream(key, Stream.BESIDE_STEPS)

    def loss(leaves, batch, mask, key):
        tree = put(received, leaves)
        given = (method.local.task, tree, backbone)
        return masked_loss(*given, batch=batch, mask=mask, key=key)

    def step(j, carry):
        weights, total, count = carry
        batch, mask = data.batch(first + j)
        row_key, loss_key = jax.random.split(jax.random.fold_in(rows_key, j))
        mask = _some(mask, method.share, row_key)
        start = _start(last, weights, shared)
        slope, sums = jax.grad(loss, has_aux=True)(start, batch, mask, loss_key)

        def moved(weight, g, x):
            return jnp.clip(weight - method.weight_rate * g * x, 0, 1)

        weights = jax.tree.map(moved, weights, slope, gap)
        return weights, total + sums["loss"][0], count + sums["loss"][1]

    start = (weights, jnp.float32(0), jnp.float32(0))
    n_batches = jnp.where(data.n_steps > 0, per_epoch, 0)
    weights, total, count = jax.lax.fori_loop(0, n_batches, step, start)
    return weights, total / jnp.where(count > 0, count, 1)


def _some(mask: jax.Array, share: float, key: jax.Array) -> jax.Array:
    """A share of the rows that are real, rounded up."""
    drawn = jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0)
    places = jnp.argsort(jnp.argsort(drawn))
    wanted = jnp.ceil(share * jnp.sum(mask))
    return mask & (places < wanted)
