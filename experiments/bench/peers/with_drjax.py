"""DrJAX: a jitted round of map_fn over all clients and a mean.

Its documentation writes FedAvg like this.
"""

import drjax
import jax
import jax.numpy as jnp
import numpy as np
import protocol
from jax_models import mean_loss


def build(workload, data):
    """See protocol.serve; for clients of one size, each of which is one batch."""
    if not data.is_full_batch or len(np.unique(data.sizes)) > 1:
        raise ValueError("this script is written for full batches of equal size")
    gradient = jax.grad(mean_loss(workload))
    shape = (data.n_clients, int(data.sizes[0]))
    examples = jax.device_put(
        {k: v.reshape(*shape, *v.shape[1:]) for k, v in data.examples.items()}
    )

    def local(parameters, batch):
        def step(parameters, _):
            gradients = gradient(parameters, batch)
            return jax.tree.map(
                lambda p, g: p - data.learning_rate * g, parameters, gradients
            ), None

        return jax.lax.scan(step, parameters, length=data.epochs)[0]

    @jax.jit
    @drjax.program(placements={"clients": data.n_clients})
    def one_round(parameters, examples):
        trained = drjax.map_fn(local, (drjax.broadcast(parameters), examples))
        return drjax.reduce_mean(trained)

    parameters = jax.tree.map(jnp.asarray, data.start)

    def run(rounds):
        nonlocal parameters
        for _ in range(rounds):
            parameters = one_round(parameters, examples)
        jax.block_until_ready(parameters)

    return run, lambda: parameters


if __name__ == "__main__":
    protocol.serve(build)
