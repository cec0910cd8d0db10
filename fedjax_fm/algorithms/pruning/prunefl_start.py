"""PruneFL's first stage: masks and weights from one client's few examples.

Jiang et al. 2022, arXiv 1909.12326, initial pruning, and the authors' code. One client
trains all weights until it is right often enough; then the rule of the later rounds
prunes them, until the density is stable:

    train until accuracy >= threshold;  every so many rounds a mask, until
    |density - the one before| <= change * the one before,  some times in a row
"""

from typing import Any, NamedTuple

import jax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.pruning.prunefl import prunefl
from fedjax_fm.algorithms.pruning.prunefl_step import RoundTime
from fedjax_fm.algorithms.pruning.prunefl_until import (
    Looks,
    Stability,
    until_good,
    until_stable,
)
from fedjax_fm.channels import identity
from fedjax_fm.engine.simulator import Simulator
from fedjax_fm.population.population import Population
from fedjax_fm.sparsity import Layers, full_masks, pack_kept, pack_masks
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Task, Tree


class FirstStage(NamedTuple):
    """What one client found.

    Attributes:
      masks: for `prunefl(masks=...)`.
      delta: its weights, zero where they are pruned; the federated stage starts there.
      rounds: that it trained.
      uplink_bytes: that it sends: the kept entries of the pruned leaves, all others, and
        the masks, a bit an entry; none if it is the server.
      downlink_bytes: that it was sent: the weights that it started from.
    """

    masks: Flat
    delta: Tree
    rounds: int
    uplink_bytes: int
    downlink_bytes: int


def prunefl_first_stage(
    task: Task,
    client_optimizer: ClientOptimizer,
    delta: Tree,
    examples: dict[str, Any],
    *,
    time: RoundTime,
    backbone: Tree = (),
    score: str = "accuracy",
    threshold: float = 0.0,
    look_every: int = 10,
    every: int = 50,
    dropped: float = 0.3,
    change: float = 0.1,
    times: int = 5,
    most_rounds: int = 1000,
    is_server: bool = False,
    pruned: str | None = None,
    stacked: str | None = None,
    local_steps: int = 5,
    batch_size: int,
    seed: int = 0,
) -> FirstStage:
    """What `prunefl` makes of one client's examples, once it is good and stable.

    The first mask is made `every` rounds after the score has reached the threshold. If it
    never does in `most_rounds`, nothing is pruned.

    Args:
      task: the loss, with a metric that says when to begin, if there is a threshold.
      client_optimizer: as for `prunefl`.
      delta: where the training starts.
      examples: {name: [n, ...]}, those of the server or of the client that is chosen.
      time: as for `prunefl`.
      backbone: what is frozen.
      score: the task's metric, larger is better; its mean over all examples counts.
      threshold: what it has to reach before anything is pruned: 1.5 / classes in the
        authors' code. 0 begins at once, and reads no metric.
      look_every: rounds between looks at the score.
      every: rounds between masks.
      dropped: as for `prunefl`; it is not halved here.
      change: relative change of the density that still counts as none, at least 0.
      times: masks in a row that have to be so near to the one before; that before the
        first keeps all.
      most_rounds: after which it ends in any case, at least `every`.
      is_server: whether the server has the examples, so that nothing travels.
      pruned: as for `prunefl`.
      stacked: as for `prunefl`.
      local_steps: batches of a round.
      batch_size: examples a step.
      seed: of the batches' order.

    Returns:
      Masks, weights, and what it took.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds, or the task
        has no such metric.

    References:
      Jiang et al. 2022, arXiv 1909.12326, initial pruning; github.com/jiangyuang/PruneFL.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> def loss(w, backbone, batch, key):
      ...     return jnp.sum((w - batch["x"]) ** 2, axis=(-2, -1)) / 2, {}
      >>> how = {"every": 1, "dropped": 0.5, "local_steps": 1, "batch_size": 1}
      >>> how |= {"time": RoundTime(constant=1.0, entry=1.0), "most_rounds": 1}
      >>> x = {"x": jnp.array([[[4.0, 1.0, 3.0, 2.0]]])}
      >>> rule = (Task(loss), optax.sgd(1.0))
      >>> found = prunefl_first_stage(*rule, jnp.zeros((1, 4)), x, **how)
      >>> found.masks[""].tolist(), found.delta.tolist()
      ([[True, False, True, False]], [[4.0, 0.0, 3.0, 0.0]])
      >>> found.downlink_bytes, found.uplink_bytes  # four numbers; two, and four bits
      (16, 9)
    """
    checks.real("change", change, least=0)
    checks.whole("times", times, least=1)
    checks.real("threshold", threshold, least=0)
    checks.text("score", score)
    checks.whole("look_every", look_every, least=1)
    checks.flag("is_server", is_server)
    walk: dict[str, Any] = {"local_steps": local_steps, "batch_size": batch_size}
    layers: dict[str, Any] = {"pruned": pruned, "stacked": stacked}
    method = prunefl(
        task,
        client_optimizer,
        time=time,
        every=every,
        dropped=dropped,
        halved_every=1e9,
        **layers,
        **walk,
    )
    checks.whole("most_rounds", most_rounds, least=every)
    population = Population.from_clients([examples])
    how: dict[str, Any] = {
        "backbone": backbone,
        "cohort_size": 1,
        "seed": seed,
        "devices": 1,
    }
    start, done = delta, 0
    if threshold > 0:  # until then nothing is pruned
        plain = Simulator(fedavg(task, client_optimizer, **walk), population, **how)
        looks = Looks(
            task=task,
            examples=examples,
            score=score,
            threshold=threshold,
            every=look_every,
        )
        start, done = until_good(plain, looks, delta, most_rounds)
    masks = full_masks(Layers(**layers).weights(start))
    stop = Stability(every=every, change=change, times=times, most=most_rounds - done)
    simulator = Simulator(method, population, **how)
    trained, masks, rounds = until_stable(simulator, stop, start, masks)
    bytes_up = _bytes_of((pack_kept(trained, masks), pack_masks(masks)))
    return FirstStage(
        masks=masks,
        delta=trained,
        rounds=done + rounds,
        uplink_bytes=0 if is_server else bytes_up,
        downlink_bytes=0 if is_server else trees.nbytes(delta),
    )


def _bytes_of(message: Tree) -> int:
    """What a message takes on the wire, packed."""
    payload, _ = identity().encode((), message, jax.random.key(0))
    return int(identity().bits(payload)) // 8
