"""FedASK: the clients' mean product, sketched in two trips, cut into factors by its SVD.

"Federated fine-tuning with double sketching", 2025; github.com/FLEECERmw/PrivacyFedLLM.
With M = sum_k p_k B_k A_k, and a Gaussian matrix Omega [d_in, s] that all know:

    first trip:   client:  (A_k, B_k) <- local steps;  sends Y_k = B_k (A_k Omega)
                  server:  Q <- orthonormal columns of sum_k p_k Y_k = M Omega
    second trip:  client:  sends P_k = A_k^T (B_k^T Q)
                  server:  (sum_k p_k P_k)^T = Q^T M = U S V^T
                           B <- Q U sqrt(S),  A <- sqrt(S) V^T, the first r of them

Both trips are sums of what clients send, as secure aggregation can add them up.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    cut_pairs,
    join,
    refuse_magnitudes,
    split,
)
from fedjax_fm.algorithms.lora_rules.sketches import (
    Sketches,
    balanced,
    orthonormal_rows,
    random_directions,
    sketched,
)
from fedjax_fm.algorithms.lora_rules.training import (
    ClientFactors,
    FactorTraining,
    Ranks,
    factor_training,
)
from fedjax_fm.algorithms.reduce import mean_of, total, weighted_mean
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientOutput,
    Exchange,
    Task,
    Tree,
    Unbilled,
)


class FedASKState(NamedTuple):
    """Server state."""

    delta: Tree
    basis: Sketches  # Q of the last round
    seed: jax.Array  # u32[2], names Omega


def fedask(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    sketch: int,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages the products B_k A_k by two sketches, and cuts the mean into factors.

    Exact to the rank that is kept if the mean has at most rank `sketch`: it is
    `flexlora` then, whose server has to keep all factors. The mean of m clients has up
    to rank m r, so that with sketch = r, the authors', this holds for one client only.

    Sends, a layer: up s d_out, then s d_in numbers; down r_k (d_in + d_out), then s
    d_out. The other trained leaves travel with the first trip. Omega comes from a
    common seed.

    A client's own factors stay with it between the trips. A rank whose singular value
    is zero keeps a row of unit length in A and zeros in B, so that it can be trained;
    the split of the singular values would make both zero for good.

    Error feedback is refused: the second sketches are of another basis each round.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      sketch: s, at least the rank of the delta; more rows than a layer has outputs are
        as many as these.
      ranks: i32[N], the rank of every client, at most that of the delta; None: all have
        the rank of the delta. Clients are sent the largest singular values.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedASKState`; the client state is its factors
      of the round, {layer: `Pair`}.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, or those of DoRA, the ranks do
        not fit, or a rank exceeds the sketch or the smaller side of a layer.

    References:
      FedASK 2025; Halko, Martinsson, Tropp 2011, arXiv 0909.4061, on such sketches.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     return jnp.sum((batch["x"] @ update - 1) ** 2, axis=-1), {}
      >>> how = {"sketch": 2, "local_steps": 1, "batch_size": 1}
      >>> method = fedask(Task(loss), optax.sgd(0.25), **how)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> layer = state.delta["layer"]
      >>> (layer["lora_a"] @ layer["lora_b"]).round(3)[0].tolist()  # the mean product
      [0.5, 0.5]
      >>> metrics["uplink_bytes"].tolist()  # of two clients, 2 x (2 + 3) numbers
      [80]
    """
    checks.whole("sketch", sketch, least=1)
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)

    def init(delta, key, setting):
        refuse_magnitudes(delta)
        training.check_ranks(delta, setting)
        factors = split(delta)
        _check_sides(factors, sketch)
        basis = {layer: _no_basis(p, sketch) for layer, p in factors.pairs.items()}
        return FedASKState(delta, basis, jax.random.key_data(key))

    def client_init(delta, key):
        return jax.tree.map(jnp.zeros_like, split(delta).pairs)

    exchanges = _first_trip(training, sketch), _second_trip(training)
    return Algorithm(init=init, exchanges=exchanges, client_init=client_init)


def _check_sides(factors: Factors, sketch: int) -> None:
    """Refuses ranks that the sketch or a layer cannot hold."""
    for layer, (a, b) in factors.pairs.items():
        most = min(sketch, a.shape[-1], b.shape[-1])
        if len(a) > most:
            raise ValueError(
                f"expected a rank of at most {most} for {layer!r}, the least of sketch="
                f"{sketch}, {a.shape[-1]} inputs and {b.shape[-1]} outputs, got rank "
                f"{len(a)}"
            )


def _no_basis(pair: Pair, sketch: int) -> jax.Array:
    """Zeros in the shape of Q, [min(s, out), ..., out]."""
    _, *stacked, n_out = pair.b.shape
    return jnp.zeros((min(sketch, n_out), *stacked, n_out), pair.b.dtype)


def _first_trip(training: FactorTraining, sketch: int) -> Exchange:
    """Local training, and Y_k."""

    def broadcast(state):
        return split(state.delta), Unbilled(state.seed)

    def address(message, state, client):
        factors, _ = message
        return ClientFactors(cut_pairs(factors, training.rows(client)))

    def client(backbone, message):
        factors, seed = message
        omega = random_directions(factors, seed, sketch)

        def one(mine, state, data, key):
            done = training.run(mine, backbone, data, key)
            pairs = done.end.pairs
            sketches = {
                layer: sketched(pair, omega[layer]) for layer, pair in pairs.items()
            }
            return done.output((sketches, done.change.rest), pairs)

        return one

    def server(state, aggregate, key):
        sums, weight = aggregate.value
        sketches, change = mean_of(sums, weight)
        factors = split(state.delta)
        rest = trees.add(factors.rest, change)
        delta = join(Factors(factors.pairs, rest, factors.form))
        basis = {layer: orthonormal_rows(x) for layer, x in sketches.items()}
        return FedASKState(delta, basis, state.seed), {}

    return Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=total(weighted_mean().lift),
        batches=training.local.batches,
        address=address,
    )


def _second_trip(training: FactorTraining) -> Exchange:
    """P_k of the factors that the clients kept, and the new factors."""

    def broadcast(state):
        return state.basis

    def client(backbone, message):
        def one(basis, pairs, data, key):
            sketches = {
                layer: sketched(Pair(pair.b, pair.a), jnp.moveaxis(basis[layer], 0, -1))
                for layer, pair in pairs.items()
            }
            return ClientOutput(
                upload=sketches, weight=training.local.weight(data), state=pairs
            )

        return one

    def server(state, aggregate, key):
        sums, weight = aggregate.value
        factors = split(state.delta)
        pairs = {}
        for layer, old in factors.pairs.items():
            mean = mean_of(sums[layer], weight)
            new = balanced(Pair(mean, state.basis[layer]), len(old.a))
            pairs[layer] = trees.select(weight > 0, new, old)
        delta = join(Factors(pairs, factors.rest, factors.form))
        return state._replace(delta=delta), {}

    return Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=total(weighted_mean().lift),
        batches=training.local.batches,
        same_entries=False,  # of another basis each round
    )
