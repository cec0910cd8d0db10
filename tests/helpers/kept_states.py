"""A method whose clients keep states, and how those of two runs are compared."""

import jax
import numpy as np
import optax
from mlp_problem import mlp_loss

import fedjax_fm as ffm


def private_beside_shared():
    """FedAvg, beside which every client keeps two deltas of its own: where it ended
    last, and where the time before.
    """
    plain = ffm.fedavg(
        ffm.Task(mlp_loss), optax.sgd(0.05, momentum=0.9), epochs=1, batch_size=4
    )
    (exchange,) = plain.exchanges

    def client(backbone, message):
        shared = exchange.client(backbone, message)

        def one(message, mine, data, key):
            output = shared(message, (), data, key)
            return output._replace(
                state={
                    "last": ffm.trees.subtract(message, output.upload),
                    "before": mine["last"],
                }
            )

        return one

    def both(delta, key):
        return {"last": delta, "before": delta}

    return plain._replace(
        exchanges=(exchange._replace(client=client),), client_init=both
    )


def rows(state, n):
    return jax.tree.map(
        lambda x: np.asarray(x)[:n], (state.carry.clients, state.carry.uplinks)
    )


def close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b
    )
