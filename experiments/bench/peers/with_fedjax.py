"""FedJAX: its own FedAvg with the jit backend, the default on one device."""

import fedjax
import jax
import protocol
from fedjax.algorithms import fed_avg
from jax_models import mean_loss


def build(workload, data):
    """See protocol.serve."""
    gradient = jax.jit(jax.grad(mean_loss(workload)))
    with fedjax.for_each_client_backend("jit"):
        algorithm = fed_avg.federated_averaging(
            lambda parameters, batch, key: gradient(parameters, batch),
            fedjax.optimizers.sgd(data.learning_rate),
            fedjax.optimizers.sgd(1.0),
            fedjax.ShuffleRepeatBatchHParams(
                batch_size=data.batch_size, num_epochs=data.epochs, seed=0
            ),
        )
    keys = jax.random.split(jax.random.PRNGKey(0), data.n_clients)
    clients = [
        (k, fedjax.ClientDataset(data.client(k)), keys[k])
        for k in range(data.n_clients)
    ]
    state = algorithm.init(jax.device_put(data.start))

    def run(rounds):
        nonlocal state
        for _ in range(rounds):
            state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)

    return run, lambda: state.params


if __name__ == "__main__":
    protocol.serve(build)
