"""Per-FedAvg: Personalized Federated Learning, a Meta-Learning Approach.

Fallah, Mokhtari, Ozdaglar, 2020, arXiv 2002.07948, with the first-order gradient.

    client:  for each pair of batches b1, b2:
                 u   <- w_k - inner_rate grad f(w_k; b1)
                 w_k <- client_optimizer(w_k, grad f(u; b2))
             sends w - w_k
    server:  w <- w - server_optimizer(sum_k p_k (w - w_k))
    a client's own model is one step of inner_rate from w: `fine_tune`, or `keeps_own`
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import ClientOptimizer, LocalTraining, local_training
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.personal.phases import both, own_model, starts_as_server
from fedjax_fm.types import Algorithm, ClientData, ClientOutput, Task, Tree


def per_fedavg(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    inner_rate: float,
    keeps_own: bool = False,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages a start from which one step on a client's examples leads far.

    Sends: w down, w - w_k up, as `fedavg`. A local step reads two batches and takes two
    gradients. The second derivative of the meta-gradient is left out (the paper's
    Per-FedAvg (FO)). `fine_tune(task, optax.sgd(inner_rate), simulator.model(state),
    population, local_steps=1, batch_size=...)` gives clients' own models; those of
    `keeps_own` are as old as the w that a client received last.

    Args:
      task: the loss f.
      client_optimizer: of w_k, the paper's beta; starts afresh each round.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`.
      inner_rate: alpha, of the step that each client will take; with 0 it is FedAvg.
      keeps_own: whether a client keeps, as large as the delta, the model one step from
        the w that it received, on the first b1, for `simulator.model`.
      epochs: full passes of b2 over a client's data in a round, and as many of b1; give
        this or `local_steps`.
      local_steps: pairs of batches.
      batch_size: examples in each batch.

    Returns:
      An algorithm whose server state is FedAvg's; clients keep nothing, or their own
      model. The reported loss is that at u.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Fallah et al. 2020, arXiv 2002.07948, algorithm 1 with equation 9's first-order
      approximation.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> how = {"inner_rate": 0.5, "local_steps": 1, "batch_size": 1}
      >>> method = per_fedavg(task, optax.sgd(0.5), **how)
      >>> population = ffm.Population.from_clients([{"x": jnp.array([4.0])}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> float(state.delta)  # 0 - 0.5 (1 - 0.5) (0 - 4)
      1.0
    """
    checks.real("inner_rate", inner_rate, least=0)
    checks.flag("keeps_own", keeps_own)
    walk: dict[str, Any] = {
        "epochs": epochs,
        "local_steps": local_steps,
        "batch_size": batch_size,
    }
    local = local_training(task, client_optimizer, **walk)
    plain = fedavg(task, client_optimizer, server_optimizer, **walk)
    (exchange,) = plain.exchanges
    ahead = _one_step(local, inner_rate)
    gradient = _after_a_step(local, ahead)

    def client(backbone, message):
        def one(received, state, data, key):
            pairs = _in_pairs(data)
            trained, metrics = local.run(
                received, backbone, pairs, key, gradient=gradient
            )
            if keeps_own:
                _, inner = _halves(pairs.batch(jnp.int32(0)))
                step_key = jax.random.fold_in(key, 0)
                moved = ahead(received, backbone, *inner, step_key)
                state = trees.select(pairs.n_steps > 0, moved, state)
            return ClientOutput(
                upload=trees.subtract(received, trained),
                weight=local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    batches = both(local.batches, local.batches)
    exchange = exchange._replace(client=client, batches=batches)
    method = plain._replace(exchanges=(exchange,))
    if not keeps_own:
        return method
    return method._replace(client_init=starts_as_server, model=own_model)


def _in_pairs(data: ClientData) -> ClientData:
    """Half as many steps; batch i holds the rows of b2, then as many of b1.

    b2 are the batches that FedAvg walks, b1 the later ones, of other shuffles.
    """
    half = data.n_steps // 2

    def pair(i):
        parts = data.batch(i), data.batch(half + i)
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), *parts)

    return data._replace(n_steps=half, batch=pair)


def _one_step(local: LocalTraining, rate: float) -> Callable:
    """`(w, backbone, batch, mask, key of the step) -> u`."""
    slope = jax.grad(masked_loss, argnums=1, has_aux=True)

    def ahead(delta, backbone, batch, mask, key):
        inner_key = stream(key, Stream.INNER_STEP)
        found, _ = slope(local.task, delta, backbone, batch, mask, inner_key)
        return jax.tree.map(lambda w, g: w - rate * g, delta, found)

    return ahead


def _after_a_step(local: LocalTraining, ahead: Callable) -> Callable:
    """`train(gradient=...)`: that at the point which one step on b1 leads to."""
    slope = jax.grad(masked_loss, argnums=1, has_aux=True)

    def gradient(delta, backbone, batch, mask, key):
        outer, inner = _halves((batch, mask))
        moved = ahead(delta, backbone, *inner, key)
        return slope(local.task, moved, backbone, *outer, key)

    return gradient


def _halves(pair: Tree) -> tuple[Tree, Tree]:
    """Its first rows and its last ones."""

    def half(number):
        def of(x):
            return jnp.split(x, 2)[number]

        return jax.tree.map(of, pair)

    return half(0), half(1)
