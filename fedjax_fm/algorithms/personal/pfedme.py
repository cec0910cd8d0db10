"""pFedMe: Personalized Federated Learning with Moreau Envelopes.

Dinh, Tran, Nguyen, 2020, arXiv 2006.08848.

    client:  for each batch b:
                 theta_k <- near argmin f(theta; b) + penalty / 2 ||theta - w_k||^2
                 w_k     <- w_k - eta penalty (w_k - theta_k)
             sends w - w_k, keeps theta_k
    server:  w <- w - server_optimizer(sum_k p_k (w - w_k))
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import (
    ClientOptimizer,
    local_training,
    optimizer_of,
    over_steps,
)
from fedjax_fm.algorithms.personal.phases import (
    own_model,
    second_training,
    starts_as_server,
    towards,
)
from fedjax_fm.types import Algorithm, ClientOutput, Task


def pfedme(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    penalty: float,
    personal_optimizer: ClientOptimizer | None = None,
    inner_steps: int = 5,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages the centres of clients' Moreau envelopes; each keeps its own minimum.

    Sends: w down, w - w_k up, as `fedavg`. A round costs `inner_steps` gradients a
    batch. theta_k begins at the received w and goes on from batch to batch, as in the
    authors' code.

    Args:
      task: the loss f.
      client_optimizer: of w_k, whose gradient is penalty (w_k - theta_k); starts afresh
        each round.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`. The paper's beta
        is `optax.sgd(beta)`, its mean over clients has equal weights.
      penalty: lambda; 0 lets w stay. The paper takes 15. Explicit inner steps of rate
        eta diverge beyond eta * penalty = 2.
      personal_optimizer: of theta_k, starts afresh for each batch; None means
        `client_optimizer`.
      inner_steps: K, steps towards the minimum, on one batch.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: R, batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is FedAvg's. A client's state is theta_k, as large
      as the delta, which begins where w does. The reported loss is that at theta_k over
      all inner steps, without the penalty.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Dinh et al. 2020, arXiv 2006.08848, algorithm 1, equations 2 to 8.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> how = {"inner_steps": 20, "local_steps": 4, "batch_size": 1}
      >>> method = pfedme(task, optax.sgd(0.5), penalty=1.0, **how)
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 20)
      >>> round(float(state.delta), 2)
      3.0
      >>> theta, backbone = simulator.model(state, client=0)
      >>> bool(2.0 < theta < 2.5)  # (x + w_k) / 2, with w_k between x and w
      True
    """
    checks.real("penalty", penalty, least=0)
    checks.whole("inner_steps", inner_steps, least=1)
    walk: dict[str, Any] = {
        "epochs": epochs,
        "local_steps": local_steps,
        "batch_size": batch_size,
    }
    local = local_training(task, client_optimizer, **walk)
    personal = second_training(local, personal_optimizer, epochs=None, steps=None)
    plain = fedavg(task, client_optimizer, server_optimizer, **walk)
    (exchange,) = plain.exchanges

    def client(backbone, message):
        def one(received, own, data, key):
            outer = optimizer_of(local.optimizer, data.round)

            def nearest(i, w, theta):
                batch = data.batch(i)
                same = data._replace(
                    n_steps=jnp.int32(inner_steps), batch=lambda _: batch
                )
                step_key = jax.random.fold_in(key, i)
                near = towards(w, penalty)
                return personal.run(theta, backbone, same, step_key, correct=near)

            def step(i, carry):
                w, theta, moments = carry
                theta, sums = nearest(i, w, theta)
                gap = trees.subtract(w, theta)
                slope = jax.tree.map(lambda x: penalty * x, gap)
                updates, moments = outer.update(slope, moments, w)
                return (optax.apply_updates(w, updates), theta, moments), sums

            start = (received, received, outer.init(received))
            shapes = jax.eval_shape(nearest, jnp.int32(0), received, received)[1]
            (w, theta, _), metrics = over_steps(data, step, start, shapes)
            return ClientOutput(
                upload=trees.subtract(received, w),
                weight=local.weight(data),
                state=trees.select(data.n_steps > 0, theta, own),
                metrics=metrics,
            )

        return one

    return plain._replace(
        exchanges=(exchange._replace(client=client),),
        client_init=starts_as_server,
        model=own_model,
    )
