"""HeteroFL: Computation and Communication Efficient Federated Learning.

Diao, Ding, Tarokh, HeteroFL: Computation and Communication Efficient Federated Learning
for Heterogeneous Clients, 2020, arXiv 2010.01264; weighting, labels and masked loss as
in the authors' code.

    client of rate p:
        trains W_k = W[: ceil(p * out), : ceil(p * in)], a prefix inside each head for
        query, key and value                            `nested.nest`, `LocalTraining`
        on the cross-entropy of the labels that it has  `masked_cross_entropy`
    server, for each entry:
        w <- mean of w_k over the clients that hold it; where there is none, it stays
                                                        `by_width.averaged`
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.by_width import Rates, by_width, widths_of
from fedjax_fm.algorithms.local import ClientOptimizer, LocalTraining, local_training
from fedjax_fm.algorithms.nested import Prefixes
from fedjax_fm.population.population import Population
from fedjax_fm.types import Algorithm, Task


def heterofl(
    task: Task | Callable[[float], Task],
    client_optimizer: ClientOptimizer,
    prefixes: Prefixes,
    rates: Rates,
    *,
    labels: np.ndarray | None = None,
    weighted: bool = False,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Clients of different capacity train nested sub-networks of one model.

    A client of rate p costs about p^2 of a full one, in time and in bytes.

    Sends: the slice down, its change up.

    Args:
      task: the loss, on slices: it reads its widths from the shapes of its arrays. Or a
        function of the width that makes it: the paper's Scaler divides each layer's
        activations by the width, in training only, so that they are as large as the
        whole model's (`lambda width: Task(loss_with(x / width))`); evaluate without.
      client_optimizer: as in `fedavg`.
      prefixes: which axes get narrower, from `nested.nest`. Batch norms would need the
        paper's static statistics: use layer norms, or none.
      rates: of each client, [N] (the paper's `fix`), or {rate: share}, drawn anew each
        round (`dynamic`).
      labels: bool[N, K], who has which label (`owned_labels`). Rows of the classifier
        (the axes called "labels") are then averaged over their owners only, and the
        loss finds `owned` bool[B, K] in its batch, for `masked_cross_entropy`.
      weighted: clients count by their examples; default, as in the authors' code: each
        counts once.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `by_width.ByWidthState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Diao et al. 2020, arXiv 2010.01264, algorithm 1.

    Example:
      >>> import fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return (w.sum() - batch["y"]) ** 2 / 2, {}
      >>> prefixes = ffm.algorithms.nest(jnp.zeros(2), {"": ("width",)})
      >>> how = {"rates": [0.5, 1.0], "local_steps": 1, "batch_size": 1}
      >>> method = heterofl(Task(loss), optax.sgd(0.5), prefixes, **how)
      >>> clients = [{"y": jnp.array([2.0])}, {"y": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.zeros(2)), 1)
      >>> state.delta.tolist()  # (1 + 2) / 2 of both, 2 of the wide one
      [1.5, 2.0]
      >>> int(metrics["uplink_bytes"][0])  # 4 bytes of one, 8 of the other
      12
    """
    checks.flag("weighted", weighted)
    by_task = isinstance(task, Task) or not callable(task)

    def training_at(width: float) -> LocalTraining:
        return local_training(
            task if by_task else task(width),  # type: ignore[operator]
            client_optimizer,
            epochs=epochs,
            local_steps=local_steps,
            batch_size=batch_size,
        )

    def work_at(width: float):
        local = training_at(width)

        def work(backbone, delta, data, key):
            trained, metrics = local.run(delta, backbone, data, key)
            weight = local.weight(data) if weighted else jnp.float32(1)
            return trained, metrics, weight

        return work

    batches = training_at(widths_of(rates)[0]).batches
    return by_width(work_at, prefixes, rates, batches=batches, labels=labels)


def masked_cross_entropy(
    logits: jax.Array, labels: jax.Array, owned: jax.Array
) -> jax.Array:
    """The cross-entropy in which the logits of labels that a client lacks are 0.

    Zero, not minus infinity: they still count in the denominator, but nothing is
    learned about them.

    Args:
      logits: f32[B, K].
      labels: i32[B].
      owned: bool[B, K], the labels that the client of each row has.

    Returns:
      f32[B].

    References:
      Diao et al. 2020, arXiv 2010.01264, the masked cross-entropy.
    """
    known = jnp.where(owned, logits, 0.0)
    return optax.softmax_cross_entropy_with_integer_labels(known, labels)


def owned_labels(population: Population, name: str, n_labels: int) -> np.ndarray:
    """Which labels each client has.

    Args:
      population: whose arrays of that name are i[n_k, ...] of values below K.
      name: of the array of labels.
      n_labels: K.

    Returns:
      bool[N, K].

    Raises:
      ValueError: values that are no integers from 0 to K - 1.
    """
    values = np.asarray(population.arrays[name])
    if (
        not np.issubdtype(values.dtype, np.integer)
        or values.min() < 0
        or values.max() >= n_labels
    ):
        raise ValueError(
            f"expected integers from 0 to {n_labels - 1} in {name!r}, got "
            f"{values.dtype} up to {values.max()}"
        )
    clients = np.repeat(np.arange(population.n_clients), population.sizes)
    owned = np.zeros((population.n_clients, n_labels), bool)
    rows = clients.reshape(-1, *[1] * (values.ndim - 1))
    owned[rows, values] = True
    return owned
