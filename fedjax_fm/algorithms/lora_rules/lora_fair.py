"""LoRA-FAIR: factors are averaged, then B is moved towards what the average misses.

Bian, Wang, Zhang, Xu, 2024, "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and
Initialization Refinement", arXiv 2411.14961. With A and B the means of the factors and
M = sum_k p_k B_k A_k, what the clients have learnt:

    client:  (A_k, B_k) <- local steps from (A, B + dB)
    server:  dB = argmin of the distance of (B + dB) A from M, plus lambda |dB|
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, linalg, trees
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.cohort import (
    CohortFactors,
    all_of_cohort,
    stacked,
)
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    product_norm,
    refuse_magnitudes,
)
from fedjax_fm.algorithms.lora_rules.rule import Rule, algorithm_of
from fedjax_fm.algorithms.lora_rules.training import Ranks, factor_training
from fedjax_fm.types import Algorithm, Batches, Task


class _Fair(NamedTuple):
    """The hyper-parameters of `lora_fair`, checked."""

    distance: str
    penalty: float
    server_steps: int
    server_rate: float


def lora_fair(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    distance: Literal["squared", "cosine"] = "squared",
    penalty: float = 0.01,
    server_steps: int = 1000,
    server_rate: float = 0.01,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages A and B, and corrects B for the part of the update that the means miss.

        squared:  |M - (B + dB) A|^2 + lambda |dB|^2, in closed form:
                  dB = (M - B A) A^T (A A^T + lambda I)^-1
        cosine:   1 - cos(M, (B + dB) A) + lambda |dB|, by proximal gradient descent
                  from dB = 0

    Exact, up to lambda, if the rows of all A_k lie in the span of those of A; else what
    is left is orthogonal to them. With equal A_k, or a large lambda, it is `fedit`.
    Sends what `fedit` sends: r_k (d_in + d_out) numbers a layer each way, and the other
    trained leaves. The server keeps the factors of the whole cohort.

    The paper measures by the cosine. That leaves the length of the update to the start
    and to lambda, so the squared distance stands first here. Rows that a client of
    smaller rank does not have count as zero in the means, as in `fedit`; M is the mean
    of the clients' own products.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      distance: of the server's update from the clients' mean; "cosine" is the paper's.
      penalty: lambda > 0.
      server_steps: of gradient descent, of "cosine" only.
      server_rate: its learning rate, of "cosine" only.
      ranks: i32[N], the rank of every client, at most that of the delta; None: all have
        the rank of the delta.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `DeltaState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, or those of DoRA, or the ranks
        do not fit.

    References:
      Bian et al. 2024, arXiv 2411.14961, "Avg-Initial" and the residual of B.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> how = {"local_steps": 1, "batch_size": 1, "penalty": 1e-6}
      >>> method = lora_fair(Task(loss), optax.sgd(0.25), **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> state.delta["layer"]["lora_b"].round(3).tolist()  # A was the same: the mean
      [[0.5, 0.5]]
    """
    checks.choice("distance", distance, ("squared", "cosine"))
    checks.real("penalty", penalty, above=0)
    checks.whole("server_steps", server_steps, least=1)
    checks.real("server_rate", server_rate, above=0)
    fair = _Fair(
        distance=distance,
        penalty=penalty,
        server_steps=server_steps,
        server_rate=server_rate,
    )
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)
    combine = partial(_refined, fair)
    rule = Rule(sent="ab", reduce=all_of_cohort(), combine=combine)
    averaged = algorithm_of(rule, training)

    def init(delta, key, setting):
        refuse_magnitudes(delta)
        return averaged.init(delta, key, setting)

    return averaged._replace(init=init)


def _refined(fair: _Fair, cohort: CohortFactors, old: Factors) -> tuple[Factors, dict]:
    """The means of the factors, B with its correction."""
    mean = cohort.mean(cohort.factors)
    pairs = {}
    for layer, pair in mean.pairs.items():
        update = stacked(cohort.shares, cohort.factors.pairs[layer])
        if fair.distance == "squared":
            pairs[layer] = closest(pair, update, fair.penalty)
        else:
            how = {"steps": fair.server_steps, "rate": fair.server_rate}
            pairs[layer] = most_similar(pair, update, fair.penalty, **how)
    new = Factors(pairs, mean.rest, old.form)
    return trees.select(cohort.arrived, new, old), {}


def closest(pair: Pair, update: Pair, penalty: float) -> Pair:
    """The pair with b moved so that its product comes close to another product.

    No [in, out] is formed.

    Args:
      pair: a [r, ..., in], b [r, ..., out], where it starts.
      update: [rows, ..., in or out], whose product is approximated.
      penalty: lambda, of the squared move of b.

    Returns:
      A pair with the same a.
    """
    gram, target, b = _normal_equations(pair, update)
    ridge = gram + penalty * jnp.eye(gram.shape[-1])
    move = linalg.solve(ridge, target - gram @ b)
    return Pair(pair.a, jnp.moveaxis(b + move, -2, 0))


def _normal_equations(
    pair: Pair, update: Pair
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(A A^T [..., r, r], A M^T [..., r, out], B^T [..., r, out])."""
    gram = jnp.einsum("r...i,s...i->...rs", pair.a, pair.a)
    cross = jnp.einsum("r...i,s...i->...rs", pair.a, update.a)
    target = cross @ jnp.moveaxis(update.b, 0, -2)
    return gram, target, jnp.moveaxis(pair.b, 0, -2)


def most_similar(
    pair: Pair, update: Pair, penalty: float, *, steps: int, rate: float
) -> Pair:
    """The pair with b moved so that its product points where another product does.

    Args:
      pair: a [r, ..., in], b [r, ..., out], where it starts.
      update: [rows, ..., in or out], to whose product the cosine is taken.
      penalty: lambda, of the move of b; small differences are not worth any move.
      steps: of gradient descent, at least 1.
      rate: its learning rate.

    Returns:
      A pair with the same a.
    """
    gram, target, b = _normal_equations(pair, update)
    length = product_norm(update)

    def distance(move):
        whole = b + move
        inner = _sum_of(target * whole)
        size = _sum_of(whole * (gram @ whole))
        is_defined = (length > 0) & (size > 0)
        size = jnp.sqrt(jnp.where(is_defined, size, 1.0))
        cosine = inner / jnp.where(is_defined, length * size, 1.0)
        return jnp.sum(1 - cosine)  # matrices do not share a term

    def step(_, move):
        move = move - rate * jax.grad(distance)(move)
        # |dB| has no gradient at dB = 0: its step is taken exactly, as a shrinkage.
        size = jnp.sqrt(_sum_of(move**2))[..., None, None]
        kept = 1 - rate * penalty / jnp.maximum(size, rate * penalty)
        return kept * move

    move = jax.lax.fori_loop(0, steps, step, jnp.zeros_like(b))
    return Pair(pair.a, jnp.moveaxis(b + move, -2, 0))


def _sum_of(x: jax.Array) -> jax.Array:
    """[..., r, out] -> [...]."""
    return jnp.sum(x, axis=(-2, -1))
