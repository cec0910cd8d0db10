"""FedKSeed: all weights are tuned by zero-order steps, and only scalars travel.

Qin, Chen, Qian, Ding, Li, Deng, Federated Full-Parameter Tuning of Billion-Sized
Language Models with Communication Cost under 18 Kilobytes, 2023, arXiv 2312.06353. The
steps are those of MeZO: Malladi et al., 2023, arXiv 2305.17333.

    client, for each batch b:
        s ~ one of K seeds                                     `_drawn_seeds`
        f+, f- = f(w_k + eps z(s); b), f(w_k - eps z(s); b)    `_losses_at_both_sides`
        g = (f+ - f-) / (2 eps),   w_k <- w_k - eta g z(s)     `_client`
        sends the pairs (s, g)
    server:
        a_s = sum_k p_k (sum of the g of client k at seed s)   `_contribution`, `_mean`
        w <- w - eta sum_s a_s z(s)                            `_server`, `replay`
    FedKSeed-Pro:
        seeds are drawn with the probabilities
        softmax(minmax(mean |g| of s so far)), not evenly      `probabilities`
"""

from functools import partial
from typing import Any, NamedTuple, NotRequired, TypedDict

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.compressed import Encoded, marked
from fedjax_fm.algorithms.local import client_weight, over_steps
from fedjax_fm.algorithms.losses import check_trainable, checked, masked_loss
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.reduce import mean_of
from fedjax_fm.directions import perturb, shift
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientOutput,
    Exchange,
    Reduce,
    Task,
    Tree,
    Unbilled,
)


class FedKSeedState(NamedTuple):
    """Server state.

    Attributes:
      delta: w.
      master: u32[2], the key that names all K directions.
      accumulators: f32[K], the a_s summed over all rounds; with them and the first w
        the newest w can be rebuilt, see `replay`.
      history: of Pro: (sum of clipped |g| f32[K], how many f32[K]); () otherwise.
    """

    delta: Tree
    master: jax.Array
    accumulators: jax.Array
    history: tuple


class Message(TypedDict):
    """What a client is given: w, and (billed) what it would rebuild w from."""

    delta: Tree
    master: Any  # u32[2]
    accumulators: Encoded  # of f32[K], billed; no lossy downlink takes it
    probabilities: NotRequired[jax.Array]  # f32[K], billed; of Pro


class Pairs(TypedDict):
    """What a client sends: a pair for each step."""

    seed: jax.Array  # u32[local_steps], K where a step was not made
    scalar: jax.Array  # f32[local_steps], g


class _FedKSeed(NamedTuple):
    """The hyper-parameters of `fedkseed`, checked."""

    task: Task
    learning_rate: float  # eta
    n_seeds: int  # K
    epsilon: float
    local_steps: int
    pro: bool
    weighted: bool
    lazy: bool
    history_clip: float


def fedkseed(
    task: Task,
    learning_rate: float,
    *,
    n_seeds: int = 4096,
    epsilon: float = 5e-4,
    local_steps: int = 200,
    batch_size: int = 1,
    pro: bool = False,
    weighted: bool = True,
    lazy: bool = False,
    history_clip: float = 1000.0,
    weight_decay: float = 0.0,
) -> Algorithm:
    """FedKSeed: tuning without gradients; traffic does not depend on the model's size.

        g = (f(w + eps z(s)) - f(w - eps z(s))) / (2 eps),   w <- w - eta g z(s)

    Sends: down 4 K bytes of accumulators (Pro: and 4 K of probabilities), up 8 bytes a
    step; beforehand the master seed, 8 bytes, which no round's bill counts. A client
    rebuilds w from accumulators (`replay`); the simulation hands it the server's w, so
    that a lossy downlink, which would not touch it, is refused. A client at work holds
    w_k, changed in place, and one perturbed copy unless `lazy`.

    Metrics: `loss` is the mean of a step's two evaluations, the loss at w_k up to
    epsilon squared.

    Args:
      task: the loss; it is only evaluated, twice a step.
      learning_rate: eta, the same in all rounds: a rebuild from sums over rounds could
        not follow a schedule.
      n_seeds: K, the number of candidate directions.
      epsilon: half the distance of the two evaluations.
      local_steps: steps of a client, and pairs that it sends; those that a straggler
        does not reach are empty, and billed.
      batch_size: examples a step.
      pro: FedKSeed-Pro: seeds whose |g| was large are drawn more often.
      weighted: pairs count by p_k, as in the authors' code; False adds them up as
        FATE-LLM does, so that the step grows with the number of clients.
      lazy: the loss is given a delta of `Perturbed` leaves, which flax.nnx modules draw
        layer by layer as they read them (see `fedjax_fm.models.perturbed`), instead of
        one of arrays: no perturbed copy of delta exists.
      history_clip: bound of |g| in Pro's history, which starts with one zero for each
        seed, as in the authors' code; infinity for none.
      weight_decay: 0; anything else is refused.

    Returns:
      An algorithm whose server state is `FedKSeedState`; clients keep nothing.

    Raises:
      TypeError: an argument is of another kind, or delta has leaves that are no floats.
      ValueError: an argument is out of bounds; a schedule as `learning_rate`; a
        `weight_decay`, which sums over rounds cannot replay.

    References:
      Qin et al. 2023, arXiv 2312.06353, algorithm 1; Malladi et al. 2023, arXiv
      2305.17333, algorithm 1, for the step.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2, {}))
      >>> method = fedkseed(task, 0.02, n_seeds=16, local_steps=10)
      >>> clients = [{"x": jnp.array([1.0, 3.0])}, {"x": jnp.array([2.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 3)
      >>> bool(metrics["loss"][-1] < metrics["loss"][0])
      True
      >>> int(metrics["uplink_bytes"][0])  # 2 clients, 10 steps, 8 bytes
      160
    """
    _check_rate(learning_rate, weight_decay)
    checks.whole("n_seeds", n_seeds, least=1, most=2**31 - 1)
    checks.real("epsilon", epsilon, above=0)
    checks.real("history_clip", history_clip, above=0, infinite=True)
    for name, value in (("pro", pro), ("weighted", weighted), ("lazy", lazy)):
        checks.flag(name, value)
    method = _FedKSeed(
        task=checked(task),
        learning_rate=learning_rate,
        n_seeds=n_seeds,
        epsilon=epsilon,
        local_steps=local_steps,
        pro=pro,
        weighted=weighted,
        lazy=lazy,
        history_clip=history_clip,
    )
    exchange = Exchange(
        broadcast=partial(_broadcast, method),
        client=lambda backbone, message: partial(_client, method, backbone),
        server=partial(_server, method),
        reduce=Reduce(
            lift=partial(_contribution, method), finish=partial(_mean, method)
        ),
        batches=Batches(batch_size, steps=local_steps).checked(),
    )
    return Algorithm(init=partial(_init, method), exchanges=(exchange,))


def _check_rate(learning_rate: float, weight_decay: float) -> None:
    """Refuses what sums over rounds cannot replay."""
    if callable(learning_rate):
        raise ValueError(
            "expected one learning_rate > 0 for all rounds, "
            f"got learning_rate={learning_rate}"
        )
    checks.real("learning_rate", learning_rate, above=0)
    if checks.real("weight_decay", weight_decay) != 0:
        raise ValueError(
            f"expected weight_decay=0, got weight_decay={weight_decay}: sums over "
            "rounds cannot replay a decay"
        )


def _init(method: _FedKSeed, delta, key, setting) -> FedKSeedState:
    """No step yet; Pro's history starts with one g = 0 for each seed."""
    zeros, ones = jnp.zeros(method.n_seeds), jnp.ones(method.n_seeds)
    return FedKSeedState(
        delta=delta,
        master=jax.random.key_data(key),
        accumulators=jnp.zeros(method.n_seeds),
        history=(zeros, ones) if method.pro else (),
    )


def direction(master: jax.Array, seed: jax.Array | int) -> jax.Array:
    """The key of the direction z(seed) under the master seed.

    Args:
      master: u32[2], `FedKSeedState.master`.
      seed: one of the candidates 0 to K - 1.

    Returns:
      A key for `fedjax_fm.directions`.
    """
    return jax.random.fold_in(jax.random.wrap_key_data(master), seed)


def probabilities(history: tuple) -> jax.Array:
    """FedKSeed-Pro's probabilities of the seeds: softmax(minmax(mean |g|)).

    Args:
      history: (sum of clipped |g| f32[K], how many f32[K]).

    Returns:
      f32[K].
    """
    total, count = history
    mean = total / count
    above = mean - mean.min()
    return jax.nn.softmax(above / (above.max() + 1e-10))


def _broadcast(method: _FedKSeed, state: FedKSeedState) -> Message:
    """The accumulators, and Pro's probabilities; w itself is not billed."""
    message = Message(
        delta=Unbilled(state.delta),
        master=Unbilled(state.master),
        accumulators=marked(state.accumulators),
    )
    if method.pro:
        message["probabilities"] = probabilities(state.history)
    return message


def _drawn_seeds(method: _FedKSeed, message: Message, key: jax.Array) -> jax.Array:
    """i32[local_steps]: a seed for each step, with replacement."""
    shape = (method.local_steps,)
    if "probabilities" not in message:
        return jax.random.randint(key, shape, 0, method.n_seeds)
    cumulative = jnp.cumsum(message["probabilities"])
    places = cumulative[-1] * jax.random.uniform(key, shape)
    seeds = jnp.searchsorted(cumulative, places, side="right")
    return jnp.minimum(seeds, method.n_seeds - 1)


def _losses_at_both_sides(method: _FedKSeed, loss, w: Tree, z: jax.Array):
    """(f32[2], sums of metrics [2]) at w + eps z and at w - eps z."""
    perturbed = perturb if method.lazy else shift

    def at(scale):
        return loss(perturbed(w, z, scale))

    scales = jnp.array([method.epsilon, -method.epsilon])
    return jax.lax.map(at, scales)  # in turn: the memory of one evaluation


def _client(
    method: _FedKSeed, backbone, message: Message, state, data, key
) -> ClientOutput:
    """Local steps from w; sends their pairs (s, g)."""
    check_trainable(message["delta"])
    seeds = _drawn_seeds(method, message, stream(key, Stream.SEEDS))
    evaluation_key = stream(key, Stream.EVALUATIONS)

    def step(i, carry):
        w, scalars = carry
        z = direction(message["master"], seeds[i])
        batch, mask = data.batch(i)
        loss_key = jax.random.fold_in(evaluation_key, i)  # the same at both sides

        def loss(w):
            return masked_loss(
                method.task, w, backbone, batch=batch, mask=mask, key=loss_key
            )

        losses, sums = _losses_at_both_sides(method, loss, w, z)
        g = (losses[0] - losses[1]) / (2 * method.epsilon)
        w = shift(w, z, -method.learning_rate * g)
        return (w, scalars.at[i].set(g)), jax.tree.map(jnp.mean, sums)

    start = (message["delta"], jnp.zeros(method.local_steps))
    _, sums = jax.eval_shape(step, jnp.int32(0), start)
    (_, scalars), metrics = over_steps(data, step, start, sums)
    made = jnp.arange(method.local_steps) < data.n_steps
    seeds = jnp.where(made, seeds, method.n_seeds)
    return ClientOutput(
        upload=Pairs(seed=seeds.astype(jnp.uint32), scalar=scalars),
        weight=client_weight(method.task, data),
        state=state,
        metrics=metrics,
    )


def _contribution(method: _FedKSeed, server: FedKSeedState, sent: Pairs, weight):
    """(n_k times its sums of g by seed f32[K], n_k or 1, Pro's history)."""
    arrived = (weight > 0).astype(jnp.float32)
    scalars = sent["scalar"]

    def by_seed(values):
        zeros = jnp.zeros(method.n_seeds)
        return zeros.at[sent["seed"]].add(values, mode="drop")  # K marks empty pairs

    history = ()
    if method.pro:
        size = jnp.minimum(jnp.abs(scalars), method.history_clip)
        ones = jnp.full(method.local_steps, arrived)
        history = (by_seed(arrived * size), by_seed(ones))
    factor = weight if method.weighted else arrived
    return by_seed(factor * scalars), factor, history


def _mean(method: _FedKSeed, total, setting):
    """(a_s f32[K], Pro's history) of the round."""
    pairs, weight, history = total
    return (mean_of(pairs, weight) if method.weighted else pairs), history


def replay(
    delta: Tree, master: jax.Array, accumulators: jax.Array, learning_rate: float
) -> Tree:
    """Moves w by - eta sum_s a_s z(s), summed in the order of the seeds.

    From the first delta and the state's accumulators this is a client's way to the
    newest model, up to the order of float sums where delta is float32; in fewer bits
    every step rounds. Seeds with a_s = 0 are not drawn; delta is changed in place where
    that is possible.

    Args:
      delta: where the sum starts.
      master: u32[2], names the directions.
      accumulators: f32[K], a_s.
      learning_rate: eta.

    Returns:
      A tree like delta.

    Raises:
      TypeError, ValueError: the learning rate is no finite number.
    """
    checks.real("learning_rate", learning_rate)
    (used,) = jnp.nonzero(accumulators, size=accumulators.size, fill_value=0)

    def step(i, w):
        seed = used[i]
        return shift(w, direction(master, seed), -learning_rate * accumulators[seed])

    return jax.lax.fori_loop(0, jnp.count_nonzero(accumulators), step, delta)


def _server(method: _FedKSeed, state: FedKSeedState, aggregate, key):
    """Takes the round's step and adds its pairs to the accumulators and the history."""
    pairs, history = aggregate.value
    after = FedKSeedState(
        delta=replay(state.delta, state.master, pairs, method.learning_rate),
        master=state.master,
        accumulators=state.accumulators + pairs,
        history=jax.tree.map(jnp.add, state.history, history),
    )
    return after, {}
