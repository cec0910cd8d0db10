"""Local only: every client trains alone and sends nothing.

The baseline that shows whether federating pays.

    client:  d_k <- d_k after local steps on its own data, d_k = the common start in
             round 0;  sends nothing
    server:  does nothing
"""

from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.parts import DeltaState
from fedjax_fm.algorithms.reduce import nothing
from fedjax_fm.types import (
    Algorithm,
    ClientOutput,
    Exchange,
    Task,
    Unbilled,
)


def local_only(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Every client trains its own delta, which is its client state.

    Sends: nothing, in both directions.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is the common start, never changed; `model` gives
      each client's own.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    Example:
      >>> import jax, optax, fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> method = local_only(task, optax.sgd(0.5), local_steps=1, batch_size=1)
      >>> clients = [{"x": jax.numpy.array([2.0])}, {"x": jax.numpy.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jax.numpy.float32(0)), 1)
      >>> [float(simulator.model(state, k)[0]) for k in range(2)]
      [1.0, 2.0]
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )

    def client(backbone, message):
        def one(message, delta, data, key):
            trained, metrics = local.run(delta, backbone, data, key)
            return ClientOutput(
                upload=(),
                weight=local.weight(data),
                state=trained,
                metrics=metrics,
            )

        return one

    exchange = Exchange(
        broadcast=lambda state: Unbilled(()),
        client=client,
        server=lambda state, aggregate, key: (state, {}),
        reduce=nothing(),
        batches=local.batches,
    )

    def init(delta, key, setting):
        return DeltaState(delta)

    def client_init(delta, key):
        return delta

    def model(server, own, backbone):
        return (server.delta if own is None else own), backbone

    return Algorithm(
        init=init, exchanges=(exchange,), client_init=client_init, model=model
    )
