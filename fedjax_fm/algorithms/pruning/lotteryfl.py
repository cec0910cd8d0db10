"""LotteryFL: Personalized and Communication-Efficient Federated Learning.

Li, Sun, Wang, Duan, Li, Chen, Li, 2020, arXiv 2008.03371, and the authors' code. Every
client looks for a lottery ticket of its own:

    client:  w_k <- m_k w
             where its score on w_k is above a threshold, and more than r of m_k is left:
                 m_k <- the (1 - p) of each layer's kept entries with the largest |w_k|
                 w_k <- m_k w_0
             local steps on the kept entries;  sends them
    server:  w[e] <- sum_k w_k[e] / number of k that keep e, where there is one
"""

from functools import partial

import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.pruning import lotteryfl_round
from fedjax_fm.algorithms.pruning.lotteryfl_round import LotteryFLState, Message
from fedjax_fm.algorithms.pruning.lotteryfl_ticket import (
    LotteryFL,
    Ticket,
    levels_to,
)
from fedjax_fm.algorithms.reduce import total
from fedjax_fm.sparsity import Layers, full_masks, masked
from fedjax_fm.types import Algorithm, Exchange, Task, Tree, Unbilled


def lotteryfl(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    rate: float = 0.2,
    target_density: float = 0.1,
    score: str = "accuracy",
    threshold: float = 0.2,
    pruned: str | None = None,
    stacked: str | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Every client prunes its own model, and averages with those that keep the same.

    Each pruning leaves (1 - p) of the entries, (1 - p)^j after j, up to rounding, until
    r or less are left; masks only lose entries. After it a client starts again from its
    entries of w_0, and of the other leaves', as they are. Every client counts the same.
    Masked, not faster: pruned entries are zeros in arrays of the old shape.

    Sends: what the client's mask keeps of the pruned leaves and all others, both ways;
    up the mask, a bit an entry, after each pruning. Memory: a bit an entry and client,
    a byte in the simulation.

    Metrics: `density`, the mean share of entries that clients keep after the round;
    `pruned`, the share of the cohort that pruned in it.

    Args:
      task: the loss, with a metric that says when a client may prune. It is read on the
        client's own examples, once more than it trains on them.
      client_optimizer: starts afresh each round, or a function of the round.
      rate: p, share of the kept entries that a pruning drops, 0 < p < 1.
      target_density: r, at which a client stops, 0 < r < 1; 0.1 on MNIST and 0.5 on
        CIFAR-10 in the paper.
      score: the task's metric, larger is better.
      threshold: what it has to be above.
      pruned: regular expression of the dotted paths of the leaves to prune; None: those
        of two axes and more, weights and no biases.
      stacked: regular expression of leaves whose first axis counts layers, as in this
        package's models; each layer has its threshold then.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `LotteryFLState`; clients keep a `Ticket`. A
      client's model is m_k w, the server's w.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later, no
        leaf is pruned, or the task has no such metric.

    References:
      Li et al. 2020, arXiv 2008.03371; github.com/charleslipku/LotteryFL,
      whose test |w| < 1e-6 for what is pruned is the mask here.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     error = jnp.sum((w - batch["x"]) ** 2, axis=(-2, -1)) / 2
      ...     return error, {"good": jnp.ones_like(error)}
      >>> how = {"rate": 0.5, "score": "good", "local_steps": 1, "batch_size": 1}
      >>> method = lotteryfl(Task(loss), optax.sgd(1.0), **how)
      >>> clients = [{"x": jnp.array([[x]])} for x in ([4.0, 1.0], [5.0, 6.0])]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> start = jnp.array([[3.0, 2.0]])
      >>> state, metrics = simulator.run(simulator.init(start), 1)
      >>> state.delta.tolist(), metrics["density"].tolist()
      ([[4.5, 2.0]], [0.5])
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    checks.real("rate", rate, above=0, below=1)
    checks.real("target_density", target_density, above=0, below=1)
    checks.real("threshold", threshold)
    if not isinstance(score, str):
        raise TypeError(f"expected score to name a metric, got score={score!r}")
    method = LotteryFL(
        local=local,
        layers=Layers(pruned, stacked).checked(),
        rate=rate,
        levels=levels_to(rate, target_density),
        score=score,
        threshold=threshold,
    )
    exchange = Exchange(
        broadcast=lambda state: Message(state.delta, Unbilled(state.start)),
        client=partial(lotteryfl_round.client, method),
        server=lotteryfl_round.server,
        reduce=total(lotteryfl_round.lift),
        batches=local.batches,
        address=lotteryfl_round.address,
        same_entries=False,  # but those that a mask keeps
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(exchange,),
        client_init=partial(_client_init, method),
        model=_model,
    )


def _init(method: LotteryFL, delta, key, setting) -> LotteryFLState:
    """Where everybody starts."""
    method.layers.weights(delta)  # says if there are none
    return LotteryFLState(delta, delta)


def _client_init(method: LotteryFL, delta, key) -> Ticket:
    """A ticket that keeps all."""
    return Ticket(full_masks(method.layers.weights(delta)), jnp.int32(0))


def _model(server: LotteryFLState, own: Ticket | None, backbone: Tree):
    """`Algorithm.model`: m_k w of a client."""
    if own is None:
        return server.delta, backbone
    return masked(server.delta, own.masks), backbone
