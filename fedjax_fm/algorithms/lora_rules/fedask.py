"""FedASK: the clients' mean product, sketched in two trips, cut into factors by its SVD.

Wen, Zhu, Xu, Zhou, Han, 2025, "Differentially Private Federated Low Rank Adaptation
Beyond Fixed-Matrix", arXiv 2507.09990.
With M = sum_k p_k B_k A_k, and a Gaussian matrix Omega [d_in, s] that all know:

    first trip:   client:  (A_k, B_k) <- local steps;  sends Y_k = B_k (A_k Omega)
                  server:  Q <- orthonormal columns of sum_k p_k Y_k = M Omega
    second trip:  client:  sends P_k = A_k^T (B_k^T Q)
                  server:  (sum_k p_k P_k)^T = Q^T M = U S V^T
                           B <- Q U sqrt(S),  A <- sqrt(S) V^T, the first r of them

Both trips are sums of what clients send, as secure aggregation can add them up. Private
clients train B_k alone, by DP-SGD (`private_steps`): both sketches are made of it and of
A, which the server knows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    as_arrays,
    cut_pairs,
    filled,
    join,
    only,
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
from fedjax_fm.algorithms.private_steps import PrivateSteps, private_steps
from fedjax_fm.algorithms.reduce import mean_of, total, weighted_mean
from fedjax_fm.privacy.examples import LocalAccounting
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
    round: jax.Array  # i32[]


def fedask(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    sketch: int,
    clip_norm: float | None = None,
    noise_multiplier: float = 0.0,
    accounting: LocalAccounting | None = None,
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

    With a clip norm, clients are private themselves: A_k stays as it came, and B_k and the
    other trained leaves move along means of clipped gradients of single examples, with
    noise. The authors draw batches by Poisson; here a client walks its examples in
    passes, and a round of several steps is accounted for without amplification.

    Error feedback is refused: the second sketches are of another basis each round.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      sketch: s, at least the rank of the delta; more rows than a layer has outputs are
        as many as these.
      clip_norm: G, of each example's gradient, 1 in the paper; None: not private.
      noise_multiplier: z, deviation of the noise on a mean gradient of m examples in
        units of G / m; 0 for none.
      accounting: the smallest client, rounds and delta that z is accounted for. A client
        with fewer examples then stops the run as not finite.
      ranks: i32[N], the rank of every client, at most that of the delta; None: all have
        the rank of the delta. Clients are sent the largest singular values.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedASKState`; the client state is its factors
      of the round, {layer: `Pair`}. Private ones have the metric `epsilon` after each
      round if they are accounted for.

    Formal guarantees:
      With noise and `accounting`, all that a client sends in `rounds` rounds, both trips,
      is (epsilon, delta) differentially private for one of its examples replaced by
      another, with the epsilon of `privacy.local_spent`: sketches are functions of the
      noisy B_k. Not covered: `loss` and the task's metrics, `examples`.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, or those of DoRA, the ranks do
        not fit, or a rank exceeds the sketch or the smaller side of a layer.

    References:
      Wen et al. 2025, arXiv 2507.09990, algorithm 1;
      github.com/FLEECERmw/PrivacyFedLLM. Halko, Martinsson, Tropp 2011, arXiv
      0909.4061, on such sketches.

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
    private = private_steps(
        task,
        batches,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        accounting=accounting,
    )

    def init(delta, key, setting):
        refuse_magnitudes(delta)
        training.check_ranks(delta, setting)
        factors = split(delta)
        _check_sides(factors, sketch)
        basis = {layer: _no_basis(p, sketch) for layer, p in factors.pairs.items()}
        return FedASKState(
            delta=delta,
            basis=basis,
            seed=jax.random.key_data(key),
            round=jnp.int32(0),
        )

    def client_init(delta, key):
        return jax.tree.map(jnp.zeros_like, split(delta).pairs)

    epsilons = () if private is None else private.noise.epsilons
    return Algorithm(
        init=init,
        exchanges=(
            _first_trip(training, sketch, private),
            _second_trip(training, epsilons),
        ),
        client_init=client_init,
        privacy=None if private is None else private.noise.privacy,
    )


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


def _first_trip(
    training: FactorTraining, sketch: int, private: PrivateSteps | None
) -> Exchange:
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
            if private is None:
                done = training.run(mine, backbone, data, key)
            else:
                of_b = _with_fixed_a(mine.trained)
                gradient_of = private.gradient_of
                done = training.run(of_b, backbone, data, key, gradient_of=gradient_of)
                mine = of_b
            pairs = filled(done.end, mine.fixed).pairs
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
        return state._replace(delta=delta, basis=basis), {}

    return Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=total(weighted_mean().lift),
        batches=training.local.batches,
        address=address,
    )


def _with_fixed_a(factors: Factors) -> ClientFactors:
    """What a private client trains: B, and all that is no factor."""
    fixed = only(as_arrays(factors), "a").pairs
    return ClientFactors(only(factors, "b"), fixed)


def _second_trip(training: FactorTraining, epsilons: tuple[float, ...]) -> Exchange:
    """P_k of the factors that the clients kept, and the new factors.

    Args:
      training: how clients train.
      epsilons: after each round; () where nothing is accounted for.
    """

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
        spent = jnp.array(epsilons, jnp.float32)
        metrics = {"epsilon": spent[state.round]} if epsilons else {}
        return state._replace(delta=delta, round=state.round + 1), metrics

    return Exchange(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=total(weighted_mean().lift),
        batches=training.local.batches,
        same_entries=False,  # of another basis each round
    )
