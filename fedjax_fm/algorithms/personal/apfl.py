"""APFL: Adaptive Personalized Federated Learning.

Deng, Kamani, Mahdavi, 2020, arXiv 2003.13461. A client's model is the mixture
m_k = a_k v_k + (1 - a_k) w.

    client:  for each batch b, at the (v_k, w_k) before it:
                 w_k <- w_k - eta grad f(w_k; b)
                 v_k <- v_k - eta a_k grad f(m_k; b)
             at the first batch of a round also
                 a_k <- clip(a_k - mix_rate <grad f(m_k; b), v_k - w_k>, 0, 1)
             sends w - w_k, keeps v_k and a_k
    server:  w <- w - server_optimizer(sum_k p_k (w - w_k))
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.feddpa import Adapters
from fedjax_fm.algorithms.local import (
    ClientOptimizer,
    local_training,
)
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.algorithms.personal.mixing import (
    MixedModel,
    Mixing,
    mixed_task,
    mixture,
    train_both,
)
from fedjax_fm.types import Algorithm, ClientOutput, Task, Tree


def apfl(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    mix_rate: float,
    mix: float = 0.5,
    personal_task: Task | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAvg, and each client mixes a model of its own into the shared one.

    Sends: w down, w - w_k up, as `fedavg`; v_k and a_k never. What is shared goes the
    way that it goes without them. A round costs two gradients a batch.

    Trees are mixed leaf by leaf. Of LoRA that mixes factors, not their products;
    `personal_task=tasks.classification(peft.beside(adapted))` mixes the products.

    Args:
      task: the loss.
      client_optimizer: of w_k and of v_k, each with a state of its own, afresh each
        round. The factor a_k of v_k's gradient is lost in Adam, which divides by it.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`.
      mix_rate: the rate at which a_k is learned, once a round; 0 lets it stay. The
        paper's is the clients' learning rate.
      mix: a_k at the start, 0 to 1. With `mix_rate` 0, 0 is FedAvg and 1 local training.
      personal_task: the loss of both, `loss(Adapters(shared, private, mix), backbone,
        batch, key)`, to mix in another way than leaf by leaf.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is FedAvg's. A client's state is `MixedModel`;
      v_k begins where w does. `model` mixes it with the server's w; with a
      `personal_task` it gives `Adapters`, for that task. `personal_loss` and so on are
      the mixture's metrics, `mix` the mean a_k.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Deng et al. 2020, arXiv 2003.13461, algorithm 1, equation 10 for a_k.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> how = {"mix_rate": 0.0, "mix": 0.5, "local_steps": 8, "batch_size": 1}
      >>> method = apfl(task, optax.sgd(0.5), **how)
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([4.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> round(float(state.delta), 2), metrics["mix"].tolist()
      (2.99, [0.5])
    """
    checks.real("mix_rate", mix_rate, least=0)
    checks.real("mix", mix, least=0, most=1)
    walk: dict[str, Any] = {
        "epochs": epochs,
        "local_steps": local_steps,
        "batch_size": batch_size,
    }
    local = local_training(task, client_optimizer, **walk)
    mixed = mixed_task(local.task) if personal_task is None else checked(personal_task)
    method = Mixing(local=local, mixed=mixed, mix_rate=mix_rate)
    plain = fedavg(task, client_optimizer, server_optimizer, **walk)
    (exchange,) = plain.exchanges

    def client_init(delta, key):
        return MixedModel(delta, jnp.float32(mix))

    def model(server, own, backbone):
        if own is None:
            own = MixedModel(server.delta, jnp.float32(0))
        adapters = Adapters(shared=server.delta, private=own.model, mix=own.mix)
        return (mixture(adapters) if personal_task is None else adapters), backbone

    return plain._replace(
        exchanges=(exchange._replace(client=partial(_client, method)),),
        client_init=client_init,
        model=model,
    )


def _client(method: Mixing, backbone: Tree, message: Tree) -> Callable:
    """`Exchange.client`: both models along the same batches."""

    def one(received, own, data, key):
        trained, metrics = train_both(method, received, own, backbone, data, key=key)
        mean_mix = {"mix": (trained.own.mix, jnp.float32(1))}
        return ClientOutput(
            upload=trees.subtract(received, trained.shared),
            weight=method.local.weight(data),
            state=trained.own,
            metrics={**metrics, **mean_mix},
        )

    return one
