"""PruneFL's first stage: masks from one client's few examples.

Jiang et al. 2022, arXiv 1909.12326, initial pruning, and the authors' code: the rule of the
later rounds at one client, until the density is stable.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.pruning.prunefl import prunefl
from fedjax_fm.algorithms.pruning.prunefl_step import RoundTime
from fedjax_fm.engine.simulator import Simulator
from fedjax_fm.population.population import Population
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Task, Tree


def prunefl_first_masks(
    task: Task,
    client_optimizer: ClientOptimizer,
    delta: Tree,
    examples: dict[str, Any],
    *,
    time: RoundTime,
    backbone: Tree = (),
    every: int = 50,
    dropped: float = 0.3,
    change: float = 0.1,
    times: int = 5,
    most_rounds: int = 1000,
    pruned: str | None = None,
    stacked: str | None = None,
    local_steps: int = 5,
    batch_size: int,
    seed: int = 0,
) -> Flat:
    """The masks that `prunefl` makes of one client's examples, once they are stable.

    Args:
      task: the loss.
      client_optimizer: as for `prunefl`.
      delta: where the training starts, also of the federated stage: its weights are not
        returned.
      examples: {name: [n, ...]}, those of the server or of the client that is chosen.
      time: as for `prunefl`.
      backbone: what is frozen.
      every: rounds between masks.
      dropped: as for `prunefl`; it is not halved here.
      change: relative change of the density that still counts as none, at least 0.
      times: masks in a row that have to be so near to the one before.
      most_rounds: after which it ends in any case, at least `every`.
      pruned: as for `prunefl`.
      stacked: as for `prunefl`.
      local_steps: batches of a round.
      batch_size: examples a step.
      seed: of the batches' order.

    Returns:
      Masks, for `prunefl(masks=...)`.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Jiang et al. 2022, arXiv 1909.12326, initial pruning.

    Example:
      >>> import optax
      >>> def loss(w, backbone, batch, key):
      ...     return jnp.sum((w - batch["x"]) ** 2, axis=(-2, -1)) / 2, {}
      >>> how = {"every": 1, "dropped": 0.5, "local_steps": 1, "batch_size": 1}
      >>> how |= {"time": RoundTime(constant=1.0, entry=1.0), "most_rounds": 1}
      >>> x = {"x": jnp.array([[[4.0, 1.0, 3.0, 2.0]]])}
      >>> rule = (Task(loss), optax.sgd(0.1))
      >>> masks = prunefl_first_masks(*rule, jnp.zeros((1, 4)), x, **how)
      >>> masks[""].tolist()
      [[True, False, True, False]]
    """
    checks.real("change", change, least=0)
    checks.whole("times", times, least=1)
    method = prunefl(
        task,
        client_optimizer,
        time=time,
        every=every,
        dropped=dropped,
        halved_every=1e9,
        pruned=pruned,
        stacked=stacked,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    checks.whole("most_rounds", most_rounds, least=every)
    population = Population.from_clients([examples])
    how = {"backbone": backbone, "cohort_size": 1, "seed": seed}
    simulator = Simulator(method, population, **how)
    state = simulator.init(delta)
    last, stable, masks = 1.0, 0, {}
    for _ in range(most_rounds // every):
        state, _ = simulator.run(state, every)
        masks = jax.tree.map(np.asarray, state.carry.server.masks)
        density = _density(masks)
        stable = stable + 1 if abs(density - last) <= change * last else 0
        last = density
        if stable == times:
            break
    return jax.tree.map(jnp.asarray, masks)


def _density(masks: Flat) -> float:
    """The share of entries that is kept."""
    kept = sum(int(mask.sum()) for mask in masks.values())
    return kept / sum(mask.size for mask in masks.values())
