"""FedRot-LoRA: clients turn their factors towards the server's before they send them.

Zhang, Kim, Cha, Vikalo, 2026, "FedRot-LoRA: Mitigating Rotational Misalignment in
Federated LoRA", arXiv 2602.23638. A pair (B, A) and (B R, R^T A) are one update for
every rotation R, but their means with other pairs differ.

    client:  (A_k, B_k) <- local steps from (A, B)
             R = argmin |R^T A_k - A|  or, in every second round, |B_k R - B|
             R <- polar factor of (1 - lambda) I + lambda R
             sends (B_k R, R^T A_k)
    server:  A <- sum_k p_k A_k,  B <- sum_k p_k B_k
"""

import jax
import jax.numpy as jnp

from fedjax_fm import checks, linalg, trees
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import Factors, Pair, cut_like
from fedjax_fm.algorithms.lora_rules.rule import Rule, algorithm_of
from fedjax_fm.algorithms.lora_rules.training import Ranks, factor_training
from fedjax_fm.types import Algorithm, Batches, Task


def fedrot_lora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    strength: float = 0.5,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages A and B after every client has rotated its pair towards the server's.

    Sends what `fedit` sends: r_k (d_in + d_out) numbers a layer each way, and the other
    trained leaves. A rotation changes no client's product. Clients whose pairs differ
    from the server's by a rotation only are averaged exactly with strength 1; with 0 it
    is `fedit`. The error of `fedit` gets smaller, not zero.

    Rounds count from 0, where nothing is turned, since B = 0 says nothing; odd rounds
    look at A, even ones at B. R has determinant +1, so that (1 - lambda) I + lambda R
    is no detour over a reflection; the authors' code without lambda lets reflections
    in, and its stored configuration has a lambda of 1.5, outside of [0, 1].

    Ranks that differ are not the paper's: a client turns the rows that it has, and the
    others count as zero in the mean, as in `fedit`.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      strength: 0 <= lambda <= 1, how far factors are turned.
      ranks: i32[N], the rank of every client, at most that of the delta; None: all have
        the rank of the delta.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `DeltaState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, or the ranks do not fit.

    References:
      Zhang et al. 2026, arXiv 2602.23638; github.com/haoran-zh/FedRot-LoRA.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = fedrot_lora(Task(loss), optax.sgd(0.25), **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 2)), "lora_b": jnp.zeros((2, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 3)
      >>> state.delta["layer"]["lora_a"].shape
      (3, 2)
    """
    checks.real("strength", strength, least=0, most=1)
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)

    def client(backbone, message):
        def one(mine, state, data, key):
            done = training.run(mine, backbone, data, key)
            rows = training.height(done.start, data.id)
            end = turned(done.end, done.start, data.round, strength, rows)
            change = trees.subtract(end, done.start)
            return done.output(cut_like(change, done.change), state)

        return one

    return algorithm_of(Rule(sent="ab"), training, client)


def turned(
    factors: Factors,
    towards: Factors,
    round_index: jax.Array,
    strength: jax.Array | float,
    rows: jax.Array,
) -> Factors:
    """Factors, every pair rotated towards another one.

    Args:
      factors: arrays, zero beyond the rank.
      towards: of the same shapes.
      round_index: i32[], from 0; odd: a is compared, even: b, 0: nothing is turned.
      strength: f32[], lambda.
      rows: i32[], of the client's rank; the others stay.

    Returns:
      Factors of the same products.
    """

    def turn(pair: Pair, goal: Pair) -> Pair:
        by_a = jnp.einsum("r...i,s...i->...rs", pair.a, goal.a)
        by_b = jnp.einsum("r...o,s...o->...rs", pair.b, goal.b)
        cross = jnp.where(round_index % 2 == 1, by_a, by_b)
        rotation = part_of_rotation(nearest_rotation(cross, rows), strength)
        rotation = jnp.where(round_index == 0, jnp.eye(len(pair.a)), rotation)
        return pair.map(lambda x: jnp.einsum("...rs,r...n->s...n", rotation, x))

    pairs = {
        layer: turn(pair, towards.pairs[layer]) for layer, pair in factors.pairs.items()
    }
    return Factors(pairs, factors.rest, factors.form)


def nearest_rotation(cross: jax.Array, rows: jax.Array) -> jax.Array:
    """The rotation R that maximises tr(R^T X), so that R^T x comes nearest to y.

    With X = x y^T, and |R^T x - y|^2 = |x|^2 + |y|^2 - 2 tr(R^T X).

    Args:
      cross: X, f32[..., r, r], zero beyond the first rows and columns.
      rows: i32[], how many these are; the rest is not turned.

    Returns:
      f32[..., r, r] with determinant +1; the identity where X is zero.
    """
    rank = cross.shape[-1]
    size = jnp.sqrt(jnp.sum(cross**2, axis=(-2, -1), keepdims=True))
    # What is not to be turned gets the largest singular values: a direction that is
    # flipped for the determinant's sake is that of the smallest.
    is_fixed = (jnp.arange(rank) >= rows) | (size[..., 0] == 0)
    fixed = jnp.eye(rank) * is_fixed[..., None, :]
    return _in_group(cross + (1 + 2 * size) * fixed)


def part_of_rotation(rotation: jax.Array, strength: jax.Array | float) -> jax.Array:
    """The rotation next to (1 - lambda) I + lambda R.

    Args:
      rotation: R, f32[..., r, r], of determinant +1.
      strength: 0 <= lambda <= 1.

    Returns:
      f32[..., r, r]; the identity where that sum is singular (lambda 1/2, a half turn).
    """
    identity = jnp.eye(rotation.shape[-1])
    between = (1 - strength) * identity + strength * rotation
    smallest = linalg.singular_values(between)[..., -1]
    is_singular = smallest < 1e-4
    return jnp.where(is_singular[..., None, None], identity, _in_group(between))


def _in_group(x: jax.Array) -> jax.Array:
    """U diag(1, ..., 1, +-1) V^T of X = U S V^T, with determinant +1."""
    u, _, vt = linalg.svd(x)
    sign = jnp.sign(linalg.det(u @ vt))
    last = jnp.arange(x.shape[-1]) == x.shape[-1] - 1
    flip = jnp.where(last, sign[..., None], 1.0)
    return u @ (flip[..., None] * vt)
