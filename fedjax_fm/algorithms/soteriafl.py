"""SoteriaFL: A Unified Framework for Private FL with Communication Compression.

Li, Zhao, Li, Chi, 2022, arXiv 2206.09888, algorithm 2, and its baseline CDP-SGD, algorithm 1.

    client:  g_k from clipped gradients of m examples                 `_estimate`
             u_k = g_k + N(0, (z G / m)^2);  sends v_k = C(u_k - s_k)
             s_k <- s_k + gamma v_k                                   `_client`
    server:  x <- x - eta (s + mean_k v_k)
             s <- s + gamma mean_k v_k,  the old s in the step        `_server`

with c_j(x) the gradient of example j clipped to the norm G:

    sgd   g = mean_j c_j(x)
    svrg  g = mean_j (c_j(x) - c_j(y)) + mean of all c_i(y),  y <- x with probability p
    saga  g = mean_j (c_j(x) - t_j) + mean of all t_i,  then t_j <- c_j(x)

CDP-SGD: sgd with gamma = 0. Each example is clipped by itself: the authors' code clips
the mean of a batch, which does not bound what one example moves.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.compressed import (
    arrived_decoded,
    counts_once,
    encoded,
    positive,
    unbiased,
    zeros_of,
)
from fedjax_fm.algorithms.local import Sums
from fedjax_fm.algorithms.losses import check_trainable, checked, masked_loss
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.reduce import mean_of
from fedjax_fm.privacy.clipping import clip
from fedjax_fm.privacy.examples import ESTIMATORS, LocalAccounting, local_spent
from fedjax_fm.types import (
    Algorithm,
    Batches,
    Channel,
    ClientData,
    ClientOutput,
    Exchange,
    Privacy,
    Task,
    Tree,
)


class SoteriaState(NamedTuple):
    """Server state.

    Attributes:
      delta: x.
      shift: s, the mean of all clients' s_k.
      round: i32[].
    """

    delta: Tree
    shift: Tree
    round: jax.Array


class SoteriaClient(NamedTuple):
    """What a client keeps.

    Attributes:
      shift: s_k.
      memory: () for sgd, a `Snapshot` for svrg, for saga the table t, leaves
        [table_rows, ...].
    """

    shift: Tree
    memory: Any


class Snapshot(NamedTuple):
    """SVRG's: a point, and the mean of all clipped gradients there."""

    point: Tree  # y
    gradient: Tree
    is_made: jax.Array  # bool[], False before the first round


class _Soteria(NamedTuple):
    """The hyper-parameters, checked."""

    task: Task
    learning_rate: float
    channel: Channel
    clip_norm: float
    noise_multiplier: float
    estimator: str
    shift_rate: float | None
    snapshot_rate: float
    table_rows: int | None
    index: str | None
    accounting: LocalAccounting | None
    epsilons: tuple[float, ...]  # after each round, of an accounted method
    batch_size: int

    def gamma(self, delta: Tree) -> Any:
        """The rate of the shifts."""
        if self.shift_rate is not None:
            return self.shift_rate
        omega = self.channel.law.omega(trees.size(delta))
        return math.sqrt((1 + 2 * omega) / (2 * (1 + omega) ** 3))


def soteriafl(
    task: Task,
    learning_rate: float,
    channel: Channel,
    *,
    clip_norm: float,
    noise_multiplier: float,
    estimator: str = "sgd",
    shift_rate: float | None = None,
    snapshot_rate: float = 0.1,
    table_rows: int | None = None,
    index: str | None = None,
    accounting: LocalAccounting | None = None,
    batch_size: int,
) -> Algorithm:
    """Compressed gradients that every client makes private itself.

    The server sees noise from the first step on, so that nobody need be trusted. Every
    client counts the same; where some take part only, the shifts follow as in `diana`.
    Without noise and clip it is DIANA with alpha = gamma.

    Sends: down x, up C(u_k - s_k), the length of the channel's buffers. A client keeps
    s_k, for svrg two more of its size, for saga one gradient an example.

    Metrics: `epsilon` after each round, of an accounted method.

    Args:
      task: the loss; without `weight`, as each example counts the same.
      learning_rate: eta, above 0.
      channel: C, unbiased, without a memory, as the shifts are it.
      clip_norm: G, of each example's gradient, above 0; infinity for none (then
        noise_multiplier must be 0).
      noise_multiplier: z, deviation of the noise on the mean gradient in units of G / m;
        0 for none.
      estimator: "sgd", "svrg" or "saga".
      shift_rate: gamma, 0 to 1; None: sqrt((1 + 2 omega) / (2 (1 + omega)^3)).
      snapshot_rate: p of svrg, 0 < p <= 1.
      table_rows: of saga: examples of the largest client.
      index: of saga: the column that numbers a client's examples, integers from 0.
      accounting: the smallest client, rounds and delta that z is accounted for. A
        client with fewer examples then stops the run as not finite.
      batch_size: examples a round, m of them where a client has fewer.

    Returns:
      An algorithm whose server state is `SoteriaState` and whose clients keep a
      `SoteriaClient`.

    Formal guarantees:
      With noise and `accounting`, all that a client sends in `rounds` rounds is
      (epsilon, delta) differentially private for one of its examples replaced by
      another, with the epsilon of `privacy.local_spent`. The channel, the shifts and
      the server come after the noise and cost nothing. Not covered, as they leave no
      client in a deployment: `loss` and the task's metrics, `examples`, clients' states.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a channel
        that is biased or has a memory; arguments of an estimator that is not used.

    References:
      Li et al. 2022, arXiv 2206.09888, algorithm 2 (SoteriaFL), section 4; the authors'
      code, github.com/haoyuzhao123/soteriafl.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> accounting = ffm.privacy.LocalAccounting(n_examples=20, rounds=3, delta=1e-5)
      >>> how = {"clip_norm": 1.0, "noise_multiplier": 4.0, "batch_size": 5}
      >>> method = soteriafl(
      ...     task, 0.1, ffm.channels.natural(), **how, accounting=accounting
      ... )
      >>> population = ffm.Population.from_clients([{"x": jnp.ones(20)}] * 2)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 3)
      >>> metrics["uplink_bytes"].tolist(), bool(metrics["epsilon"][2] < 4)
      ([4, 4, 4], True)
    """
    given = (clip_norm, noise_multiplier, accounting)
    _check_noise(*given)
    checks.choice("estimator", estimator, ESTIMATORS)
    if shift_rate is not None:
        checks.real("shift_rate", shift_rate, least=0, most=1)
    checks.real("snapshot_rate", snapshot_rate, above=0, most=1)
    _check_table(estimator, table_rows, index)
    if isinstance(task, Task) and task.weight is not None:
        raise ValueError(
            "soteriafl: each example counts the same, or one could move more than its "
            "clip allows; expected a Task without weight"
        )
    batches = Batches(batch_size, steps=1).checked()
    method = _Soteria(
        task=checked(task),
        learning_rate=positive("learning_rate", learning_rate),
        channel=unbiased("soteriafl, channel", channel, "as its noise is never undone"),
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        estimator=estimator,
        shift_rate=shift_rate,
        snapshot_rate=snapshot_rate,
        table_rows=table_rows,
        index=index,
        accounting=accounting,
        epsilons=_epsilons(noise_multiplier, accounting, batch_size, estimator),
        batch_size=batch_size,
    )
    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=lambda backbone, message: partial(_client, method, backbone),
        server=partial(_server, method),
        reduce=arrived_decoded(method.channel),
        batches=batches,
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(exchange,),
        client_init=partial(_client_init, method),
        privacy=_privacy(method),
    )


def cdp_sgd(
    task: Task,
    learning_rate: float,
    channel: Channel,
    *,
    clip_norm: float,
    noise_multiplier: float,
    accounting: LocalAccounting | None = None,
    batch_size: int,
) -> Algorithm:
    """CDP-SGD: private gradients compressed as they are, without shifts.

    `soteriafl` with shift_rate=0; what is compressed does not go to zero.

    Args:
      task: the loss, without `weight`.
      learning_rate: eta, above 0.
      channel: C, unbiased.
      clip_norm: G, of each example's gradient.
      noise_multiplier: z, in units of G / m.
      accounting: what z is accounted for.
      batch_size: examples a round.

    Returns:
      As `soteriafl`.

    Raises:
      TypeError, ValueError: as `soteriafl`.

    References:
      Li et al. 2022, arXiv 2206.09888, algorithm 1.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2, {}))
      >>> how = {"clip_norm": 1.0, "noise_multiplier": 4.0, "batch_size": 5}
      >>> method = cdp_sgd(task, 0.1, ffm.channels.random_k(0.1), **how)
      >>> method.privacy.mechanism
      'noise at the client is added, but nothing is accounted'
    """
    return soteriafl(
        task,
        learning_rate,
        channel,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        shift_rate=0.0,
        accounting=accounting,
        batch_size=batch_size,
    )


# What is checked and accounted for


def _check_noise(
    clip_norm: float, noise_multiplier: float, accounting: LocalAccounting | None
) -> None:
    checks.real("clip_norm", clip_norm, above=0, infinite=True)
    checks.real("noise_multiplier", noise_multiplier, least=0)
    if noise_multiplier > 0 and math.isinf(clip_norm):
        raise ValueError(
            f"clip_norm={clip_norm} bounds nothing: give noise_multiplier=0, or a "
            f"finite norm, got noise_multiplier={noise_multiplier}"
        )
    if accounting is None:
        return
    how = "write privacy.LocalAccounting(n_examples, rounds, delta)"
    checks.instance("accounting", accounting, LocalAccounting, how)
    if noise_multiplier == 0:
        raise ValueError(
            "noise_multiplier=0 adds no noise, of which there is nothing to account: "
            "leave accounting out"
        )


def _check_table(estimator: str, table_rows: int | None, index: str | None) -> None:
    """Refuses a table for an estimator without one, and saga without a table."""
    if estimator != "saga":
        if table_rows is None and index is None:
            return
        raise ValueError(
            "table_rows and index are of estimator='saga', got estimator="
            f"{estimator!r}, table_rows={table_rows}, index={index!r}; leave them out"
        )
    if table_rows is None or index is None:
        raise ValueError(
            "estimator='saga' keeps a gradient an example: expected table_rows, the "
            "examples of the largest client, and index, the column that numbers them, "
            f"got table_rows={table_rows}, index={index!r}"
        )
    checks.whole("table_rows", table_rows, least=1)
    checks.text("index", index)


def _epsilons(
    noise_multiplier: float,
    accounting: LocalAccounting | None,
    batch_size: int,
    estimator: str,
) -> tuple[float, ...]:
    """Epsilon after each round; composition depends on the number of rounds only."""
    if accounting is None:
        return ()
    accounting.checked()
    how = {"batch_size": batch_size, "estimator": estimator}
    done = range(1, accounting.rounds + 1)
    parts = [accounting._replace(rounds=rounds) for rounds in done]
    return tuple(local_spent(noise_multiplier, part, **how).epsilon for part in parts)


def _privacy(method: _Soteria) -> Privacy | None:
    """What a simulator prints and holds the method to."""
    if method.noise_multiplier == 0:
        return None
    accounting = method.accounting
    if accounting is None:
        words = "noise at the client is added, but nothing is accounted"
        return Privacy(mechanism=words)
    how = {"batch_size": method.batch_size, "estimator": method.estimator}
    spent = local_spent(method.noise_multiplier, accounting, **how)
    words = (
        f"epsilon {spent.epsilon:.3g} at delta {spent.delta:g} after "
        f"{accounting.rounds} rounds, {spent.relation}, {spent.mechanism}"
    )
    return Privacy(rounds=accounting.rounds, delta=spent.delta, mechanism=words)


# The client


def _client_init(method: _Soteria, delta, key) -> SoteriaClient:
    zeros = zeros_of(delta)
    memory: Any = ()
    if method.estimator == "svrg":
        memory = Snapshot(delta, zeros, jnp.bool_(False))
    if method.estimator == "saga":
        rows = method.table_rows
        memory = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), zeros)
    return SoteriaClient(zeros, memory)


class _Draw(NamedTuple):
    """What the estimators read."""

    clipped: Any  # (delta, batch, mask, key) -> clipped gradients, leaves [B, ...]
    batch: Tree
    mask: jax.Array
    data: ClientData
    key: jax.Array


def _client(method: _Soteria, backbone, delta, state, data, key) -> ClientOutput:
    """C(u_k - s_k), u_k private; the next shift follows what the server decoded."""
    check_trainable(delta)
    batch, mask = data.batch(jnp.int32(0))
    draw = _Draw(
        clipped=partial(_clipped, method, backbone),
        batch=batch,
        mask=mask,
        data=data,
        key=jax.random.fold_in(key, 0),
    )
    estimate, memory = _estimate(method, delta, state.memory, draw)
    private = _noisy(method, estimate, draw, key)
    gamma = method.gamma(delta)

    def moved(sent):
        shift = _moved(state.shift, method.channel.decode(sent.payload), gamma)
        return SoteriaClient(shift, memory)

    return ClientOutput(
        upload=encoded(method.channel, trees.subtract(private, state.shift), key),
        weight=counts_once(data),
        state=moved,
        metrics=_metrics(method, backbone, delta, draw),
    )


def _metrics(method: _Soteria, backbone, delta, draw: _Draw) -> Sums:
    """The loss and the task's metrics on the batch."""
    given = {"batch": draw.batch, "mask": draw.mask, "key": draw.key}
    return masked_loss(method.task, delta, backbone, **given)[1]


def _clipped(method: _Soteria, backbone, delta, batch, mask, key) -> Tree:
    """The gradient of each example, clipped; zeros for padded rows."""

    def loss(delta, example, key):
        alone = jax.tree.map(lambda x: x[None], example)
        losses, _ = method.task.loss(delta, backbone, alone, key)
        return losses[0]

    def one(example, is_real, key):
        found = jax.grad(loss)(delta, example, key)
        wide = jax.tree.map(lambda g: g.astype(jnp.float32), found)
        bounded, _ = clip(wide, method.clip_norm)
        return jax.tree.map(lambda g: jnp.where(is_real, g, 0.0), bounded)

    keys = jax.random.split(key, mask.shape[0])
    return jax.vmap(one)(batch, mask, keys)


def _estimate(method: _Soteria, delta, memory, draw: _Draw) -> tuple[Tree, Any]:
    """(g_k, what is remembered)."""
    here = draw.clipped(delta, draw.batch, draw.mask, draw.key)
    if method.estimator == "sgd":
        return _mean(here, draw), memory
    if method.estimator == "saga":
        return _saga(method, memory, here, draw)
    return _svrg(method, delta, memory, here, draw)


def _mean(rows: Tree, draw: _Draw) -> Tree:
    """The mean over the examples of the batch."""
    count = jnp.sum(draw.mask, dtype=jnp.float32)
    return mean_of(jax.tree.map(lambda x: jnp.sum(x, axis=0), rows), count)


def _svrg(method: _Soteria, delta, memory: Snapshot, here: Tree, draw: _Draw):
    """Differences to a snapshot, which is x itself at first."""
    now = Snapshot(delta, _full(delta, draw), jnp.bool_(True))
    used = trees.select(memory.is_made, memory, now)
    there = draw.clipped(used.point, draw.batch, draw.mask, draw.key)
    change = _mean(trees.subtract(here, there), draw)
    coin = jax.random.bernoulli(stream(draw.key, Stream.SNAPSHOT), method.snapshot_rate)
    return trees.add(change, used.gradient), trees.select(coin, now, used)


def _full(delta: Tree, draw: _Draw) -> Tree:
    """The mean of the clipped gradients of all examples; the first epoch has them all."""

    def add(i, total):
        batch, mask = draw.data.batch(i)
        rows = draw.clipped(delta, batch, mask, draw.key)
        return jax.tree.map(lambda t, x: t + jnp.sum(x, axis=0), total, rows)

    n_examples = draw.data.n_examples
    n_batches = -(-n_examples // draw.mask.shape[0])
    total = jax.lax.fori_loop(0, n_batches, add, zeros_of(delta))
    return mean_of(total, n_examples.astype(jnp.float32))


def _saga(method: _Soteria, table: Tree, here: Tree, draw: _Draw):
    """Differences to the table, whose rows of the batch are then replaced."""
    assert method.index is not None
    numbers = jnp.asarray(draw.batch[method.index])
    if not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise TypeError(
            f"expected integers in the column {method.index!r}, which numbers the "
            f"examples of a client, got {numbers.dtype}"
        )

    def known(x):
        # A number beyond the table is a NaN that stops the run.
        rows = x.at[numbers].get(mode="fill", fill_value=jnp.nan)
        shape = (-1, *[1] * (x.ndim - 1))
        return jnp.where(draw.mask.reshape(shape), rows, 0.0)

    change = _mean(trees.subtract(here, jax.tree.map(known, table)), draw)
    count = draw.data.n_examples.astype(jnp.float32)
    mean = mean_of(jax.tree.map(lambda x: jnp.sum(x, axis=0), table), count)
    # Padded rows repeat an example whose own row must win.
    beyond = jnp.iinfo(jnp.int32).max
    places = jnp.where(draw.mask, numbers, beyond)
    after = jax.tree.map(lambda x, g: x.at[places].set(g, mode="drop"), table, here)
    return trees.add(change, mean), after


def _noisy(method: _Soteria, estimate: Tree, draw: _Draw, key) -> Tree:
    """u_k = g_k + N(0, (z G / m)^2)."""
    if method.noise_multiplier == 0:
        return estimate
    n_drawn = jnp.maximum(jnp.sum(draw.mask), 1).astype(jnp.float32)
    deviation = method.noise_multiplier * method.clip_norm / n_drawn
    if method.accounting is not None:
        n = draw.data.n_examples
        is_too_small = (n > 0) & (n < method.accounting.n_examples)
        deviation = jnp.where(is_too_small, jnp.nan, deviation)
    leaves, structure = jax.tree.flatten(estimate)
    keys = jax.random.split(stream(key, Stream.LOCAL_NOISE), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    noisy = [x + deviation * jax.random.normal(k, x.shape) for x, k in pairs]
    return jax.tree.unflatten(structure, noisy)


# The server


def _init(method: _Soteria, delta, key, setting) -> SoteriaState:
    return SoteriaState(delta, zeros_of(delta), jnp.int32(0))


def _server(method: _Soteria, state: SoteriaState, aggregate, key):
    """The step with the old shift, then the next one."""
    estimate = trees.add(state.shift, aggregate.value.mean)

    def stepped(x, g):
        return (x - method.learning_rate * g).astype(x.dtype)

    after = SoteriaState(
        delta=jax.tree.map(stepped, state.delta, estimate),
        shift=_moved(
            state.shift, aggregate.value.per_client, method.gamma(state.delta)
        ),
        round=state.round + 1,
    )
    if not method.epsilons:
        return after, {}
    spent = jnp.array(method.epsilons, jnp.float32)
    return after, {"epsilon": spent[state.round]}


def _moved(shift: Tree, difference: Tree, gamma: Any) -> Tree:
    """The shift s + gamma v."""
    return jax.tree.map(lambda s, v: s + gamma * v, shift, difference)
