"""Model Pruning Enables Efficient Federated Learning on Edge Devices: PruneFL.

Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas, 2022, arXiv 1909.12326, and the authors'
code. The mask follows the gradients, so that a second of training gains the most:

    client:  w_k <- w;  local steps on the kept entries;  sends those of w - w_k
             adds (sum of its gradients)^2 times its examples to a_k, every entry's
    server:  w <- w - server_optimizer(sum_k p_k (w - w_k)), on the kept entries
    every so many rounds clients send a_k and forget it;  g^2 <- sum_k a_k
             M <- argmax of sum_M g_j^2 / (c + sum_M t_j)          `prunefl_step`
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.averaging import Averaging, averaging
from fedjax_fm.algorithms.local import ClientOptimizer, optimizer_of
from fedjax_fm.algorithms.parts import in_f32
from fedjax_fm.algorithms.pruning import parts
from fedjax_fm.algorithms.pruning.parts import Message, PrunedState
from fedjax_fm.algorithms.pruning.prunefl_step import RoundTime, adapted_masks
from fedjax_fm.algorithms.recording import recording
from fedjax_fm.algorithms.reduce import mean_of, total
from fedjax_fm.channels.payload import sent_if
from fedjax_fm.sparsity import (
    Layers,
    densities,
    full_masks,
    masked,
    pack_kept,
    unpack_kept,
)
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Algorithm, ClientOutput, Exchange, Task, Tree


class Own(NamedTuple):
    """What a client keeps.

    Attributes:
      version: i32[], of the masks that it holds.
      squares: a_k, f32, a tree like delta.
    """

    version: jax.Array
    squares: Tree


class Upload(NamedTuple):
    """What goes up."""

    kept: Tree  # `Rows` of the kept entries of w - w_k
    squares: Tree  # a_k, in the rounds of a new mask only


class _PruneFL(NamedTuple):
    """The hyper-parameters of `prunefl`, checked."""

    average: Averaging
    layers: Layers
    time: RoundTime
    every: int
    dropped: float
    halved_every: float
    masks: Flat | None

    def is_due(self, round_index: jax.Array) -> jax.Array:
        """Whether a round ends with a new mask."""
        return (round_index + 1) % self.every == 0


def prunefl(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    time: RoundTime,
    every: int = 50,
    dropped: float = 0.3,
    halved_every: float = 10000.0,
    masks: Flat | None = None,
    pruned: str | None = None,
    stacked: str | None = None,
    weighted: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averaging whose mask is adapted to gain the most in a second of training.

        Gamma(M) = sum_{j in M} g_j^2 / (c + sum_{j in M} t_j)

    The estimated time of a round is `time`'s; what is masked here is not faster: pruned
    entries are zeros in arrays of the old shape. An entry that returns starts from the
    value that it had, which the server keeps; a deployment that deletes it would start
    from zero. A layer keeps one entry at least.

    Sends: the kept entries of the pruned leaves and all others, both ways; down the
    mask, a bit an entry, to a client whose mask is not the present one; up, in every
    `every`-th round, a_k for all entries, 32 bits each; a channel for one of both is
    `channels.per_leaf(("kept", ...))`. Memory: one tree a client. A client that is not
    in that round's cohort goes on adding.

    Metrics: `density` and `density PATH`, the shares of entries that the round kept;
    `estimated_seconds`, c + sum of t_j.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round, or a function of the round.
      server_optimizer: applied to the mean of (start - end); None means
        `optax.sgd(1.0)`.
      time: of a round, by the entries that are kept.
      every: rounds between masks; a number beyond the run keeps the first ones.
      dropped: share of each layer's kept entries that is to compete with the pruned
        ones at first, 0 <= dropped < 1.
      halved_every: rounds after which that share is half as large, above 0.
      masks: the first ones, for example of `prunefl_first_masks`; None keeps all.
      pruned: regular expression of the dotted paths of the leaves to prune; None: those
        of two axes and more.
      stacked: regular expression of leaves whose first axis counts layers, as in this
        package's models.
      weighted: whether clients count by their examples; False: all the same.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches; 5 in the paper.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `PrunedState`, its `delta` with the values that
      pruned entries had; the algorithm's delta has zeros there. Clients keep `Own`.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later, no
        leaf is pruned, `masks` are of other leaves, or `time` has none for a leaf.

    References:
      Jiang et al. 2022, arXiv 1909.12326; github.com/jiangyuang/PruneFL.

    Example:
      >>> import fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return jnp.sum((w - batch["x"]) ** 2, axis=(-2, -1)) / 2, {}
      >>> how = {"time": RoundTime(constant=1.0, entry=1.0), "every": 1, "dropped": 0.5}
      >>> how |= {"local_steps": 1, "batch_size": 1}
      >>> method = prunefl(Task(loss), optax.sgd(1.0), **how)
      >>> x = jnp.array([[[4.0, 1.0, 3.0, 2.0]]])
      >>> population = ffm.Population.from_clients([{"x": x}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.zeros((1, 4))), 1)
      >>> state.delta.tolist()  # (16 + 9) / (1 + 2) is more than with 4 or 1 beside it
      [[4.0, 0.0, 3.0, 0.0]]
      >>> metrics["estimated_seconds"].tolist(), metrics["uplink_bytes"].tolist()
      ([5.0], [32])
    """
    average = averaging(
        task,
        client_optimizer,
        server_optimizer,
        weighted=weighted,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    how = "write RoundTime(constant=1.0, entry=1e-6)"
    checks.instance("time", time, RoundTime, how)
    method = _PruneFL(
        average=average,
        layers=Layers(pruned, stacked).checked(),
        time=time.checked(),
        every=checks.whole("every", every, least=1),
        dropped=checks.real("dropped", dropped, least=0, below=1),
        halved_every=checks.real("halved_every", halved_every, above=0),
        masks=masks,
    )
    exchange = Exchange(
        broadcast=parts.broadcast,
        client=partial(_client, method),
        server=partial(_server, method),
        reduce=total(_lift),
        batches=average.local.batches,
        address=_address,
        same_entries=False,  # but those that a mask keeps
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(exchange,),
        client_init=partial(_client_init, method),
        delta=lambda state: masked(state.delta, state.masks),
    )


def _init(method: _PruneFL, delta, key, setting) -> PrunedState:
    """The first masks, if none were given those that keep all."""
    whole = full_masks(method.layers.weights(delta))
    masks = whole if method.masks is None else method.masks
    if problem := trees.difference(whole, jax.tree.map(jnp.asarray, masks)):
        raise ValueError(f"masks are not those of the leaves to prune: {problem}")
    method.time.seconds(delta, masks)  # says if a leaf has none
    return PrunedState(
        delta=delta,
        masks=masks,
        version=jnp.int32(0),
        round=jnp.int32(0),
        optimizer=method.average.optimizer.init(in_f32(delta)),
    )


def _client_init(method: _PruneFL, delta, key) -> Own:
    """Nothing is added up yet."""
    version = parts.NO_MASKS if method.masks is not None else 0
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), delta)
    return Own(jnp.int32(version), zeros)


def _address(message: Message, own: Own, client: jax.Array) -> Message:
    """The masks for those only who do not hold them."""
    return parts.address(message, own.version, client)


def _client(method: _PruneFL, backbone: Tree, message: Message):
    """Trains the kept entries, and adds up the squares of all entries' gradients."""
    masks = message.masks
    start = unpack_kept(message.kept, masks)
    local = parts.within(method.average.local, masks).with_optimizer(recording)

    def one(own, held, data, key):
        moments = optimizer_of(local.optimizer, data.round).init(start)
        (end, moments), metrics = local.walk((start, moments), backbone, data, key)
        _, n_examples = metrics["loss"]
        squares = jax.tree.map(
            lambda a, g: a + n_examples * jnp.square(g), held.squares, moments.sum
        )
        is_due = method.is_due(data.round)
        return ClientOutput(
            upload=Upload(
                kept=pack_kept(trees.subtract(start, end), masks),
                squares=sent_if(is_due, squares),
            ),
            weight=method.average.weight(data),
            state=Own(own.version, _unless(is_due, squares)),
            metrics=metrics,
        )

    return one


def _unless(condition: jax.Array, tree: Tree) -> Tree:
    """The tree, or zeros where a condition holds."""
    return trees.select(condition, jax.tree.map(jnp.zeros_like, tree), tree)


def _lift(server: PrunedState, sent: Upload, weight: jax.Array) -> Any:
    """(weighted update, weight, a_k)."""
    update = unpack_kept(sent.kept, server.masks)
    weighted = jax.tree.map(lambda x: weight * x, update)
    squares = jax.tree.map(
        lambda x, rows: rows.values[0], update, sent.squares
    )  # one row, and zeros where it was not sent
    return weighted, jnp.asarray(weight, jnp.float32), squares


def _server(method: _PruneFL, state: PrunedState, aggregate, key):
    """The step on the kept entries, then, when it is time, the new masks."""
    summed, weight, squares = aggregate.value
    mean = mean_of(summed, weight)
    updates, moments = method.average.optimizer.update(
        mean, state.optimizer, in_f32(state.delta)
    )
    delta = optax.apply_updates(state.delta, masked(updates, state.masks))
    share = method.dropped * 0.5 ** (state.round / method.halved_every)

    def adapted():
        how = {"layers": method.layers, "time": method.time, "dropped": share}
        return adapted_masks(delta, state.masks, squares, **how)

    # Without an upload there is nothing to go by.
    is_due = method.is_due(state.round) & (aggregate.n_clients > 0)
    masks = jax.lax.cond(is_due, adapted, lambda: state.masks)
    after = state._replace(
        delta=delta,
        masks=masks,
        round=state.round + 1,
        optimizer=moments,
    )
    seconds = method.time.seconds(delta, state.masks)
    metrics = {**densities(state.masks), "estimated_seconds": seconds}
    return parts.with_version(state, after), metrics
