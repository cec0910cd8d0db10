"""MOON: Model-Contrastive Federated Learning.

Li, He, Song, 2021, arXiv 2103.16257, algorithm 1. With the features z of the model in
training, z_g of the one that was sent and z_p of the client's own of last time:

    client:  w_k <- local steps on l_sup + mu l_con, from w
             l_con = -log( e^{cos(z, z_g)/tau} / (e^{cos(z, z_g)/tau} + e^{cos(z, z_p)/tau}) )
                   = softplus((cos(z, z_p) - cos(z, z_g)) / tau)
    server:  w <- sum_k p_k w_k
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.losses import kind
from fedjax_fm.types import Algorithm, ClientOutput, Task, Tree

# (delta, backbone, batch, key) -> f[B, D], one row an example
Features = Callable[[Tree, Tree, dict[str, jax.Array], Any], jax.Array]


class Previous(NamedTuple):
    """What a client keeps."""

    delta: Tree  # its model after the last round in which it took part
    exists: jax.Array  # bool[], whether there was such a round


def moon(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    features: Features,
    mu: float = 1.0,
    temperature: float = 0.5,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAvg whose clients keep their features near the server's model's.

        l = l_sup + mu softplus((cos(z, z_p) - cos(z, z_g)) / tau)

    A client that takes part for the first time has no model of its own: it takes the one
    that it was sent, l_con is log 2 without a gradient, and it does what FedAvg does. The
    term does not depend on the features' lengths.

    Sends: as `fedavg`. Memory: a tree of delta's size for each client. A step takes the
    features of three models.

    Metrics: `contrast`, the mean l_con; `loss` has mu times it.

    Args:
      task: the loss, l_sup.
      client_optimizer: starts afresh each round.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`.
      features: `(delta, backbone, batch, key) -> f[B, D]`, the representation of each
        example; for language models `tasks.language_features(adapted)`.
      mu: weight of the contrast, at least 0; 0 is FedAvg.
      temperature: tau > 0.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedAvgState`; a client's state is `Previous`.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; while a
        round is traced, features that are not f[B, D].

    References:
      Li et al. 2021, arXiv 2103.16257, algorithm 1, equation (3).

    Example:
      >>> import fedjax_fm as ffm
      >>> def features(w, backbone, batch, key):
      ...     return batch["x"] @ w
      >>> def loss(w, backbone, batch, key):
      ...     return jnp.sum((features(w, backbone, batch, key) - 1) ** 2, axis=1), {}
      >>> how = {"features": features, "local_steps": 1, "batch_size": 1}
      >>> method = moon(Task(loss), optax.sgd(0.1), **how)
      >>> population = ffm.Population.from_clients([{"x": jnp.eye(3)[:1]}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.ones((3, 2)) / 2), 2)
      >>> round(float(metrics["contrast"][0]), 4)  # log 2: the first time
      0.6931
    """
    if not callable(features):
        raise TypeError(
            "expected features as a function (delta, backbone, batch, key) -> "
            f"f[B, D], got features={checks.shown(features)}; of language models "
            "tasks.language_features(adapted), of others write one that gives the layer "
            "before the logits"
        )
    checks.real("mu", mu, least=0)
    checks.real("temperature", temperature, above=0)
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    plain = fedavg(
        task,
        client_optimizer,
        server_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    (exchange,) = plain.exchanges

    def client_init(delta, key):
        return Previous(delta, jnp.bool_(False))

    def client(backbone, message):
        def one(start, previous, data, key):
            own = trees.select(previous.exists, previous.delta, start)
            with_contrast = _contrasted(local.task, features, mu, temperature)
            training = local._replace(task=with_contrast(start, own))
            trained, metrics = training.run(start, backbone, data, key)
            return ClientOutput(
                upload=trees.subtract(start, trained),
                weight=local.weight(data),
                state=Previous(trained, jnp.bool_(True)),
                metrics=metrics,
            )

        return one

    return plain._replace(
        exchanges=(exchange._replace(client=client),), client_init=client_init
    )


def _contrasted(task: Task, features: Features, mu, temperature) -> Callable:
    """`(sent, previous) -> Task` with the contrast between these two models."""

    def with_models(sent: Tree, previous: Tree) -> Task:
        def loss(delta, backbone, batch, key):
            def unit(model):
                found = features(model, backbone, batch, key)
                return _unit_rows(_checked(found, batch))

            losses, metrics = task.loss(delta, backbone, batch, key)
            # One product with the difference, not a difference of products: it is zero
            # where both models are the same.
            away = unit(previous) - unit(sent)
            cosines = jnp.sum(unit(delta) * away, axis=1)
            contrast = jax.nn.softplus(cosines / temperature)
            return losses + mu * contrast, {**metrics, "contrast": contrast}

        return Task(loss, task.weight)

    return with_models


def _checked(features: Any, batch: dict) -> jax.Array:
    """The features, if there is one row of floats an example."""
    n_examples = jax.tree.leaves(batch)[0].shape[0]
    is_matrix = getattr(features, "ndim", 0) == 2
    is_real = is_matrix and jnp.issubdtype(features.dtype, jnp.floating)
    if is_real and features.shape[0] == n_examples:
        return features
    raise ValueError(
        f"expected features float[{n_examples}, D], one row for each example, got "
        f"{kind(features)}; flatten or average over the other axes"
    )


def _unit_rows(x: jax.Array) -> jax.Array:
    """Rows of length 1; zero stays zero, with a gradient of zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=1, keepdims=True)
    has_length = square > 0
    length = jnp.sqrt(jnp.where(has_length, square, 1))
    return jnp.where(has_length, x / length, 0)
