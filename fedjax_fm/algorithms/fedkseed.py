"""FedKSeed: Federated Full-Parameter Tuning of Billion-Sized Language Models with
Communication Cost under 18 Kilobytes.

Qin, Chen, Qian, Ding, Li, Deng, 2023, arXiv 2312.06353; zero-order steps after MeZO,
Malladi et al., 2023, arXiv 2305.17333.

    client:  for each batch: draw s of K seeds,  g = (f(w_k + eps z(s)) - f(w_k - eps
             z(s))) / (2 eps), w_k <- w_k - eta g z(s);  sends the pairs (s, g)
    server:  a_s <- sum_k p_k sum g of s,  w <- w - eta sum_s a_s z(s)
    Pro:     seeds are drawn with probabilities softmax(minmax(mean |g| of s so far))
      instead of evenly
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.local import client_weight
from fedjax_fm.algorithms.losses import check_trainable, checked, masked_loss
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
    """Server state."""

    delta: Tree  # w
    master: jax.Array  # u32[2], the key that names all K directions
    accumulators: (
        jax.Array
    )  # f32[K], sums over all rounds; with them and the first w anyone rebuilds w
    history: tuple  # Pro: (sum of clipped |g| f32[K], how many f32[K]); () otherwise


def direction(master: jax.Array, seed: jax.Array | int) -> jax.Array:
    """The key of candidate `seed` (0 to K - 1) under the master seed."""
    return jax.random.fold_in(jax.random.wrap_key_data(master), seed)


def replay(
    delta: Tree, master: jax.Array, accumulators: jax.Array, learning_rate: float
) -> Tree:
    """Delta - eta sum_s a_s z(s) in the order of the seeds, in place where it can.

    Seeds with a_s = 0 are not drawn.

    From the first delta and the state's accumulators this is a client's way to the
    newest model, up to the order of float sums.
    """
    checks.real("learning_rate", learning_rate)
    (used,) = jnp.nonzero(accumulators, size=accumulators.size, fill_value=0)

    def step(i, w):
        return shift(
            w, direction(master, used[i]), -learning_rate * accumulators[used[i]]
        )

    return jax.lax.fori_loop(0, jnp.count_nonzero(accumulators), step, delta)


def probabilities(history: tuple) -> jax.Array:
    """f32[K], FedKSeed-Pro's: mean of clipped |g|, min-max normalised, softmax."""
    mean = history[0] / history[1]
    above = mean - mean.min()
    return jax.nn.softmax(above / (above.max() + 1e-10))


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
    """FedKSeed and, with `pro`, FedKSeed-Pro.

    No gradient, and bytes a round that do not depend on the model.

    Args:
      task: the loss; only evaluated, twice a step.
      learning_rate: eta, the same in all rounds: a rebuild from sums knows no rounds.
      n_seeds: K candidate directions.
      epsilon: half the distance of the two evaluations.
      local_steps: pairs that a client sends; those that a straggler does not reach are empty.
      weighted: pairs count by p_k, as in the authors' code; False adds them up as
        FATE-LLM does, so that the step grows with the number of clients.
      lazy: the loss is given a delta of `Perturbed` leaves, which flax.nnx modules draw
        layer by layer as they read them (see `fedjax_fm.models.perturbed`), instead of
        one of arrays: no perturbed copy of delta exists.
      history_clip: of |g| in Pro's history, which starts with one zero, as in the authors' code.
      weight_decay: 0; anything else is refused.

    Sends: down 4 K bytes of accumulators (Pro: and 4 K of probabilities), up 8 bytes a
    step; beforehand the master seed, 8 bytes. A client rebuilds w from accumulators
    (`replay`); the simulation hands it the server's, so leave the downlink as it is. A
    client in work holds one w_k of its own, changed in place.

    Metrics: `loss` is the mean of a step's two evaluations, the loss at w_k up to epsilon squared.
    """
    if callable(learning_rate):
        raise ValueError(
            f"expected one learning_rate > 0 for all rounds, got learning_rate={learning_rate}"
        )
    checks.real("learning_rate", learning_rate, above=0)
    if checks.real("weight_decay", weight_decay) != 0:
        raise ValueError(
            f"expected weight_decay=0, got weight_decay={weight_decay}: sums over "
            "rounds cannot replay a decay"
        )
    checks.whole("n_seeds", n_seeds, least=1, most=2**31 - 1)
    checks.real("epsilon", epsilon, above=0)
    checks.real("history_clip", history_clip, above=0, infinite=True)
    checks.flag("pro", pro)
    checks.flag("weighted", weighted)
    checks.flag("lazy", lazy)
    task = checked(task)
    batches = Batches(batch_size, steps=local_steps).checked()
    perturbed = perturb if lazy else shift

    def init(delta, key, setting):
        history = (jnp.zeros(n_seeds), jnp.ones(n_seeds)) if pro else ()
        return FedKSeedState(
            delta=delta,
            master=jax.random.key_data(key),
            accumulators=jnp.zeros(n_seeds),
            history=history,
        )

    def broadcast(state):
        message = {
            "delta": Unbilled(state.delta),
            "master": Unbilled(state.master),
            "accumulators": state.accumulators,
        }
        return message | (
            {"probabilities": probabilities(state.history)} if pro else {}
        )

    def draw(message, key):
        if not pro:
            return jax.random.randint(key, (local_steps,), 0, n_seeds)
        cumulative = jnp.cumsum(message["probabilities"])
        places = cumulative[-1] * jax.random.uniform(key, (local_steps,))
        return jnp.minimum(
            jnp.searchsorted(cumulative, places, side="right"), n_seeds - 1
        )

    def client(backbone, _):
        def one(message, state, data, key):
            seeds = draw(message, jax.random.fold_in(key, 0))

            noise = jax.random.fold_in(
                key, 1
            )  # dropout and the like: the same in both evaluations

            def evaluate(delta, z, i):
                batch, mask = data.batch(i)

                def at(scale):
                    return masked_loss(
                        task,
                        perturbed(delta, z, scale),
                        backbone,
                        batch,
                        mask,
                        jax.random.fold_in(noise, i),
                    )

                return jax.lax.map(
                    at, jnp.array([epsilon, -epsilon])
                )  # in turn: the memory of one

            def step(i, carry):
                delta, scalars, sums = carry
                z = direction(message["master"], seeds[i])
                losses, parts = evaluate(delta, z, i)
                g = (losses[0] - losses[1]) / (2 * epsilon)
                sums = jax.tree.map(
                    lambda total, pair: total + jnp.mean(pair), sums, parts
                )
                return shift(delta, z, -learning_rate * g), scalars.at[i].set(g), sums

            start = message["delta"]
            check_trainable(start)
            _, parts = jax.eval_shape(
                lambda: evaluate(start, direction(message["master"], 0), 0)
            )
            zeros = jax.tree.map(lambda pair: jnp.zeros((), pair.dtype), parts)
            _, scalars, sums = jax.lax.fori_loop(
                0, data.n_steps, step, (start, jnp.zeros(local_steps), zeros)
            )
            seeds = jnp.where(
                jnp.arange(local_steps) < data.n_steps, seeds, n_seeds
            ).astype(jnp.uint32)
            weight = client_weight(task, data)
            return ClientOutput(
                upload={"seed": seeds, "scalar": scalars},
                weight=weight,
                state=state,
                metrics=sums,
            )

        return one

    def lift(server, sent, weight):
        came = (weight > 0).astype(jnp.float32)

        def add(values):
            return (
                jnp.zeros(n_seeds).at[sent["seed"]].add(values, mode="drop")
            )  # empty pairs name seed K

        size = add(came * jnp.minimum(jnp.abs(sent["scalar"]), history_clip))
        history = (size, add(jnp.full(local_steps, came))) if pro else ()
        factor = weight if weighted else came
        return add(factor * sent["scalar"]), factor, history

    def finish(total, setting):
        pairs, weight, history = total
        return (
            pairs / jnp.where(weight > 0, weight, 1.0) if weighted else pairs
        ), history

    def server(state, aggregate, key):
        pairs, found = aggregate.value
        delta = replay(state.delta, state.master, pairs, learning_rate)
        history = jax.tree.map(jnp.add, state.history, found)
        return FedKSeedState(
            delta=delta,
            master=state.master,
            accumulators=state.accumulators + pairs,
            history=history,
        ), {}

    return Algorithm(
        init=init,
        exchanges=(
            Exchange(
                broadcast=broadcast,
                client=client,
                server=server,
                reduce=Reduce(lift=lift, finish=finish),
                batches=batches,
            ),
        ),
    )
