"""Model Pruning Enables Efficient Federated Learning on Edge Devices: PruneFL.

Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas, 2022, arXiv 1909.12326, and the authors'
code. The mask follows the gradients, so that a second of training gains the most:

    client:  w_k <- w;  local steps on the kept entries;  sends those of w - w_k
             adds (sum of its gradients)^2 times its examples to a_k, every entry's
    server:  w <- w - server_optimizer(sum_k p_k (w - w_k)), on the kept entries
    every so many rounds clients send a_k and forget it;  g^2 <- sum_k a_k
             M <- argmax of sum_M g_j^2 / (c + sum_M t_j)          `prunefl_step`
"""

from functools import partial

import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.averaging import averaging
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.pruning import prunefl_round
from fedjax_fm.algorithms.pruning.parts import kept_exchange
from fedjax_fm.algorithms.pruning.prunefl_round import PruneFL
from fedjax_fm.algorithms.pruning.prunefl_step import RoundTime
from fedjax_fm.algorithms.reduce import total
from fedjax_fm.sparsity import Layers, masked
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Algorithm, Task


def prunefl(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    time: RoundTime,
    every: int = 50,
    dropped: float = 0.3,
    halved_every: float = 10000.0,
    masks: Flat | None = None,
    pruned: str | None = None,
    stacked: str | None = None,
    weighted: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averaging whose mask is adapted to gain the most in a second of training.

        Gamma(M) = sum_{j in M} g_j^2 / (c + sum_{j in M} t_j)

    Masked, not faster: pruned entries are zeros in arrays of the old shape; the time of
    a round is estimated, by `time`. An entry that returns starts from the value that it
    had, which the server keeps; a deployment that deletes it would start from zero. A
    layer keeps one entry at least.

    Sends: the kept entries of the pruned leaves and all others, both ways; down the
    mask, a bit an entry, to a client whose mask is not the present one; up, in every
    `every`-th round, a_k for all entries, 32 bits each; a channel for one of both is
    `channels.per_leaf(("kept", ...))`. Memory: one tree a client. A client that is not
    in that round's cohort goes on adding.

    Metrics: `density` and `density PATH`, the shares of entries that the round kept;
    `estimated_seconds`, c + sum of t_j.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round, or a function of the round.
      server_optimizer: applied to the mean of (start - end); None means
        `optax.sgd(1.0)`.
      time: of a round, by the entries that are kept.
      every: rounds between masks; a number beyond the run keeps the first ones.
      dropped: share of each layer's kept entries that is to compete with the pruned
        ones at first, 0 <= dropped < 1.
      halved_every: rounds after which that share is half as large, above 0.
      masks: the first ones, for example of `prunefl_first_stage`; None keeps all.
      pruned: regular expression of the dotted paths of the leaves to prune; None: those
        of two axes and more.
      stacked: regular expression of leaves whose first axis counts layers, as in this
        package's models.
      weighted: whether clients count by their examples; False: all the same.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches; 5 in the paper.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `PrunedState`, its `delta` with the values that
      pruned entries had; the algorithm's delta has zeros there. Clients keep `Own`.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later, no
        leaf is pruned, `masks` are of other leaves, or `time` has none for a leaf.

    References:
      Jiang et al. 2022, arXiv 1909.12326; github.com/jiangyuang/PruneFL.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return jnp.sum((w - batch["x"]) ** 2, axis=(-2, -1)) / 2, {}
      >>> how = {"time": RoundTime(constant=1.0, entry=1.0), "every": 1, "dropped": 0.5}
      >>> how |= {"local_steps": 1, "batch_size": 1}
      >>> method = prunefl(Task(loss), optax.sgd(1.0), **how)
      >>> x = jnp.array([[[4.0, 1.0, 3.0, 2.0]]])
      >>> population = ffm.Population.from_clients([{"x": x}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.zeros((1, 4))), 1)
      >>> state.delta.tolist()  # (16 + 9) / (1 + 2) is more than with 4 or 1 beside it
      [[4.0, 0.0, 3.0, 0.0]]
      >>> metrics["estimated_seconds"].tolist(), metrics["uplink_bytes"].tolist()
      ([5.0], [32])
    """
    average = averaging(
        task,
        client_optimizer,
        server_optimizer,
        weighted=weighted,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    how = "write RoundTime(constant=1.0, entry=1e-6)"
    checks.instance("time", time, RoundTime, how)
    method = PruneFL(
        average=average,
        layers=Layers(pruned, stacked).checked(),
        time=time.checked(),
        every=checks.whole("every", every, least=1),
        dropped=checks.real("dropped", dropped, least=0, below=1),
        halved_every=checks.real("halved_every", halved_every, above=0),
        masks=masks,
    )
    exchange = kept_exchange(
        average,
        client=partial(prunefl_round.client, method),
        server=partial(prunefl_round.server, method),
        reduce=total(prunefl_round.lift),
        address=prunefl_round.address,
    )
    return Algorithm(
        init=partial(prunefl_round.first_round, method),
        exchanges=(exchange,),
        client_init=partial(prunefl_round.first_squares, method),
        delta=lambda state: masked(state.delta, state.masks),
    )
