"""SLoRA: sparse training of the frozen layers first, then LoRA from where that led.

Babakniya, Elkordy, Ezzeldin, Liu, Song, El-Khamy, Avestimehr, 2023, "SLoRA: Federated
Parameter Efficient Fine-Tuning of Language Models", arXiv 2308.06522.

    stage 1, `sparse_rounds` rounds:      v_k <- local steps on W + v, v being zero
                                          outside of a random mask
                                          v <- sum_k p_k v_k
    between them:                         v = U S V^T;  s B A = its first r singular
                                          values, shared by both;  v <- 0
    stage 2, the rounds after:            `fedit` from these A and B, beside W
"""

from fractions import Fraction

import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.lora_rules.factors import Pair, join, split
from fedjax_fm.algorithms.lora_rules.slora_stages import (
    SLoRAState,
    SparseStage,
    lora_exchange,
    sparse_exchange,
    without_update,
)
from fedjax_fm.algorithms.lora_rules.sparse import add_entries, random_places
from fedjax_fm.algorithms.lora_rules.training import Ranks, factor_training
from fedjax_fm.types import Algorithm, Batches, Task


def slora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    scaling: float,
    sparse_rounds: int,
    density: float = 0.01,
    sparse_optimizer: ClientOptimizer | None = None,
    ranks: Ranks = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Trains some entries of the adapted kernels, then LoRA from the SVD of their change.

    Stage 1 sends density d_in d_out numbers a layer each way, stage 2 what `fedit`
    sends, r_k (d_in + d_out); the other trained leaves travel in both. The mask, equally
    dense in every matrix, comes from a common seed, which no round's bill counts.

    The mask lies on the kernels that have a LoRA pair: what stage 1 would learn
    elsewhere, stage 2 drops. With a rank that reaches that of the change, stage 2 starts
    from the model of stage 1, else from its best approximation; with density 1, stage 1
    is FedAvg on the kernels; with no sparse rounds it is `fedit`.

    A client in stage 1 holds its own copy of the adapted kernels while it trains.

    Args:
      task: the loss.
      client_optimizer: of stage 2, starts afresh each round; a function of the round
        makes one for each round, counted from the start of stage 1.
      scaling: s = alpha / r of the LoRA layers; the algorithm sees trees, which do not
        hold it.
      sparse_rounds: of stage 1, at least 0.
      density: of the mask, 0 < density <= 1; the paper matches it to the factors' size.
      sparse_optimizer: of stage 1; None means `client_optimizer`.
      ranks: i32[N], the rank of every client in stage 2, at most that of the delta;
        None: all have the rank of the delta.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `SLoRAState`; clients keep nothing. In stage 1
      `model` adds v to the kernels and takes no part of the factors.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`, the ranks do not fit, or a
        density that leaves a matrix without entries.

    References:
      Babakniya et al. 2023, arXiv 2308.06522. How the singular values are split between
      the factors is not said there.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     kernel = backbone["layer"]["base"]["kernel"] + update
      ...     return jnp.sum((batch["x"] @ kernel - 1) ** 2, axis=-1), {}
      >>> how = {"density": 1.0, "local_steps": 1, "batch_size": 1}
      >>> method = slora(
      ...     Task(loss), optax.sgd(0.25), scaling=1.0, sparse_rounds=1, **how
      ... )
      >>> backbone = {"layer": {"base": {"kernel": jnp.zeros((3, 2))}}}
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, backbone=backbone, cohort_size=2)
      >>> pair = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> state, metrics = simulator.run(simulator.init({"layer": pair}), 1)
      >>> layer = state.delta["layer"]
      >>> (layer["lora_a"] @ layer["lora_b"]).round(3)[0].tolist()  # the clients' mean
      [0.25, 0.25]
    """
    checks.real("scaling", scaling, above=0)
    checks.whole("sparse_rounds", sparse_rounds, least=0)
    checks.real("density", density, above=0, most=1)
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, ranks)
    local = local_training(
        task,
        client_optimizer if sparse_optimizer is None else sparse_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    sparse = SparseStage(local=local, rounds=sparse_rounds, scaling=scaling)

    def init(delta, key, setting):
        training.check_ranks(delta, setting)
        pairs = split(delta).pairs
        _check_ranks(pairs)
        places = random_places(pairs, _share(density), key)
        return SLoRAState(
            delta=delta,
            values={layer: jnp.zeros(x.shape) for layer, x in places.items()},
            places=places,
            round=jnp.int32(0),
        )

    def model(server, own, backbone):
        factors = split(server.delta)
        is_early = server.round < sparse.rounds
        delta = join(without_update(factors))
        delta = trees.select(is_early, delta, server.delta)
        values = {layer: is_early * x for layer, x in server.values.items()}
        return delta, add_entries(backbone, factors.pairs, server.places, values)

    exchanges = sparse_exchange(sparse), lora_exchange(sparse, training)
    return Algorithm(init=init, exchanges=exchanges, model=model)


def _share(density: float) -> Fraction:
    """As the text of the number has it: 0.01 of 300 is 3."""
    return Fraction(str(density))


def _check_ranks(pairs: dict[str, Pair]) -> None:
    """Refuses ranks beyond what a matrix has singular values."""
    for layer, (a, b) in pairs.items():
        most = min(a.shape[-1], b.shape[-1])
        if len(a) > most:
            raise ValueError(
                f"expected a rank of at most {most}, the smaller side of {layer!r}, got "
                f"rank {len(a)}"
            )
