"""Movement Pruning: Adaptive Sparsity by Fine-Tuning, soft (SMvP).

Sanh, Wolf, Rush, 2020, arXiv 2005.07683. A threshold decides what stays, and a
penalty how much:

    W' = W 1[sigmoid(S) > tau],   dL/dS = dL/dW' W + lambda d mean(sigmoid(S)) / dS
"""

import jax
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.averaging import averaging
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.pruning.movement_masks import Blocks
from fedjax_fm.algorithms.pruning.movement_parts import movement
from fedjax_fm.sparsity import Layers, sigmoid_masks
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import Algorithm, Task


def soft_movement_pruning(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    penalty: float,
    threshold: float = 0.1,
    score_optimizer: ClientOptimizer | None = None,
    blocks: Blocks | None = None,
    pruned: str | None = None,
    stacked: str | None = None,
    weighted: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averaging of weights and scores, where a penalty on scores decides the density.

        W' = W 1[sigmoid(S) > tau],  loss + lambda mean(sigmoid(S))

    Scores begin at 0: all of W is kept at first, and what the loss does not hold sinks
    below the threshold. A layer keeps one block at least. Reported losses are the
    task's, without the penalty. Masked, not faster; with `blocks` that are heads or
    units, `models.shrunk` makes the finished model smaller and faster.

    Sends: the dense W and a score of 32 bits for each block, or entry, both ways.

    Metrics: `density` and `density PATH`, the shares of entries that the round kept.

    Args:
      task: the loss; with a teacher in it, the papers' distillation.
      client_optimizer: of W, starts afresh each round, or a function of the round.
      server_optimizer: applied to the means of (start - end) of W and S; None means
        `optax.sgd(1.0)`.
      penalty: lambda, at least 0; what density it leads to is to be tried.
      threshold: tau, 0 <= tau < 1; 0 keeps all of W.
      score_optimizer: of S; None means `optax.adam(1e-2)`, the paper's.
      blocks: as for `movement_pruning`.
      pruned: as for `movement_pruning`.
      stacked: as for `movement_pruning`.
      weighted: whether clients count by their examples; False: all the same.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `MovementState`; clients keep nothing. Its
      model is W'.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later, no
        leaf is pruned, or a block does not divide one.

    References:
      Sanh et al. 2020, arXiv 2005.07683; Lagunas et al. 2021, arXiv 2109.04838,
      which prunes blocks so.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):  # the first entry moves towards zero
      ...     return jnp.sum(batch["slope"] * w, axis=(-2, -1)), {}
      >>> how = {"penalty": 0.1, "threshold": 0.4, "score_optimizer": optax.sgd(1.0)}
      >>> how |= {"local_steps": 1, "batch_size": 1}
      >>> method = soft_movement_pruning(Task(loss), optax.sgd(0.1), **how)
      >>> slope = jnp.array([[[1.0, -1.0]]])
      >>> population = ffm.Population.from_clients([{"slope": slope}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> start = jnp.array([[5.0, 1.0]])
      >>> state, metrics = simulator.run(simulator.init(start), 2)
      >>> [round(float(x), 2) for x in simulator.model(state)[0][0]]
      [0.0, 1.2]
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
    checks.real("penalty", penalty, least=0)
    checks.real("threshold", threshold, least=0, below=1)

    def above(scores: Flat, round_index: jax.Array, layers: Layers) -> Flat:
        return sigmoid_masks(scores, threshold, layers)

    return movement(
        average,
        above,
        score_optimizer=score_optimizer,
        blocks=blocks,
        pruned=pruned,
        stacked=stacked,
        penalty=penalty,
    )
