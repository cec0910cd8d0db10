"""FedRPCA: what clients have in common is averaged, what is their own counts more.

Jhunjhunwala, Raje, Ravi Ganesh, Mummadi, Dong, Zhou, Lin, Joshi, Li, 2025, "FedRPCA:
Enhancing Federated LoRA Aggregation Using Robust PCA", arXiv 2506.01194.

    client:  (A_k, B_k) <- local steps from (A, B)
    server:  D = [vec(A_1 - A), ..., vec(A_m - A)] = L + S by `robust_pca`,
             A <- A + sum_k p_k (L_k + beta S_k);   B alike
"""

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.cohort import CohortFactors, all_of_cohort
from fedjax_fm.algorithms.lora_rules.factors import Factors, Pair
from fedjax_fm.algorithms.lora_rules.robust_pca import robust_pca
from fedjax_fm.algorithms.lora_rules.rule import Rule, algorithm_of
from fedjax_fm.algorithms.lora_rules.training import Ranks, factor_training
from fedjax_fm.types import Algorithm, Batches, Task


def fedrpca(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    beta: float = 2.0,
    sparsity: float | None = None,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages the common part of the clients' changes, and `beta` times their own.

    Every matrix of factors, A apart from B, is decomposed for itself: columns are the
    clients' changes of it. With beta 1 it is `fedit`, whatever the decomposition.
    Changes that are equal are common to all, unless single entries outweigh them: the
    sparse part is empty only if the largest entry is at most sparsity sqrt(m) times the
    norm, with m clients.

    Sends what `fedit` sends: r_k (d_in + d_out) numbers a layer each way, and the other
    trained leaves, which are averaged. The server keeps the factors of the whole
    cohort.

    Clients count by their examples; beta is a constant. Ranks that differ are not the
    paper's; rows that a client does not have are its change to zero, as in `fedit`.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      beta: what the clients' own part counts, at least 0; above 1 in the paper.
      sparsity: lambda > 0 of the decomposition, the price of the sparse part; None: 1 /
        sqrt of the larger side.
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
      Jhunjhunwala et al. 2025, arXiv 2506.01194.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> how = {"local_steps": 1, "batch_size": 1}
      >>> method = fedrpca(Task(loss), optax.sgd(0.25), beta=1.0, **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> state.delta["layer"]["lora_b"].round(3).tolist()  # that of `fedit`
      [[0.5, 0.5]]
    """
    checks.real("beta", beta, least=0)
    if sparsity is not None:
        checks.real("sparsity", sparsity, above=0)
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)

    def combine(cohort: CohortFactors, old: Factors) -> tuple[Factors, dict]:
        pairs = {}
        for layer, ends in cohort.factors.pairs.items():
            start, is_active = old.pairs[layer], cohort.heights[layer] > 0
            pairs[layer] = Pair(
                *(
                    _amplified(x, y, cohort.shares, is_active, beta, sparsity)
                    for x, y in zip(start, ends, strict=True)
                )
            )
        new = Factors(pairs, cohort.mean(cohort.factors.rest), old.form)
        return trees.select(cohort.arrived, new, old), {}

    rule = Rule(sent="ab", reduce=all_of_cohort(), combine=combine)
    return algorithm_of(rule, training)


def _amplified(
    start: jax.Array,
    ends: jax.Array,
    shares: jax.Array,
    is_active: jax.Array,
    beta: float,
    sparsity: float | None,
) -> jax.Array:
    """One factor after the round.

    Args:
      start: [r, ..., n].
      ends: of the clients, [C, r, ..., n].
      shares: f32[C], p_k.
      is_active: bool[C], whose upload arrived.
      beta: what the sparse part counts.
      sparsity: as for `robust_pca`.

    Returns:
      [r, ..., n].
    """
    rank, *stacked, n = start.shape
    n_active = jnp.sum(is_active, dtype=jnp.float32)
    active = is_active.reshape(-1, *[1] * start.ndim)
    changes = jnp.where(active, ends - start, 0)
    # [C, r, ..., n] -> [layers, r n, C]
    by_layer = jnp.moveaxis(changes.reshape(len(ends), rank, -1, n), 2, 0)
    columns = jnp.swapaxes(by_layer.reshape(len(by_layer), len(ends), -1), 1, 2)

    def moved(matrix):
        common, own = robust_pca(matrix, n_active, sparsity=sparsity)
        return (common + beta * own) @ shares

    found = jax.lax.map(moved, columns).reshape(-1, rank, n)
    return start + jnp.moveaxis(found, 0, 1).reshape(rank, *stacked, n)
