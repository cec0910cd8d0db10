"""FedSGD: Communication-Efficient Learning of Deep Networks from Decentralized Data.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, 2017, arXiv 1602.05629, section 2.

    client:  g_k = grad of the mean loss over its batches, all at w;  one step with g_k
    server:  w <- w - eta sum_k p_k g_k
"""

import optax

from fedjax_fm import trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import ClientOptimizer, local_training, optimizer_of
from fedjax_fm.algorithms.passes import gradient_over
from fedjax_fm.types import Algorithm, ClientOutput, Task


def fedsgd(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """One step a client and round, with the gradient of all its batches at w.

    With `epochs=1` that is the gradient of all its examples, whatever the batch size: the
    batches only say how much is computed at once. SGD(eta) at the clients and None at
    the server is gradient descent; `optax.sgd(1.0)` at the clients hands their mean
    gradient to the server's optimizer.

    Sends: down w, up the step, both the size of delta.

    Args:
      task: the loss.
      client_optimizer: makes the one step, with a state that is fresh each round.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`.
      epochs: full passes whose gradients are averaged; give this or `local_steps`.
      local_steps: batches whose gradients are averaged.
      batch_size: examples a batch.

    Returns:
      An algorithm whose server state is `FedAvgState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      McMahan et al. 2017, arXiv 1602.05629, section 2, FederatedSGD.

    Example:
      >>> import jax.numpy as jnp
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> method = fedsgd(task, optax.sgd(0.5), epochs=1, batch_size=1)
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 2)
      >>> float(state.delta)  # 0 -> 1.5 -> 2.25: half of the way to the mean
      2.25
    """
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

    def client(backbone, message):
        def one(delta, state, data, key):
            gradients, metrics = gradient_over(
                local.task, delta, backbone, data, key, n_batches=data.n_steps
            )
            optimizer = optimizer_of(client_optimizer, data.round)
            step, _ = optimizer.update(gradients, optimizer.init(delta), delta)
            moved = optax.apply_updates(delta, step)
            return ClientOutput(
                upload=trees.subtract(delta, moved),
                weight=local.weight(data),
                state=state,
                metrics=metrics,
            )

        return one

    return plain._replace(exchanges=(exchange._replace(client=client),))
