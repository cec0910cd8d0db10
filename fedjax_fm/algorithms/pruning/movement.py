"""Movement Pruning, hard, and Block Pruning For Faster Transformers.

Sanh, Wolf, Rush, 2020, Movement Pruning: Adaptive Sparsity by Fine-Tuning, arXiv
2005.07683; Lagunas, Charlaix, Sanh, Rush, 2021, arXiv 2109.04838. Weights stay that move
away from zero, not those that are far from it:

    W' = W Top_v(S),   dL/dS = dL/dW' W,   so S = -a sum_t (dL/dW')_t W_t
    v = 1 - s_t, s_t the cubic schedule of gradual pruning; t counts rounds here

With `blocks` a score belongs to a block, and its gradient is the sum over the block.
"""

import jax
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.averaging import averaging
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.pruning.movement_masks import Blocks
from fedjax_fm.algorithms.pruning.movement_parts import movement
from fedjax_fm.sparsity import Layers, cubic, top_masks
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.sparsity.masks import SCOPES
from fedjax_fm.types import Algorithm, Task


def movement_pruning(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    final_sparsity: float,
    last: int,
    first: int = 0,
    every: int = 1,
    initial_sparsity: float = 0.0,
    score_optimizer: ClientOptimizer | None = None,
    blocks: Blocks | None = None,
    scope: str = "layer",
    pruned: str | None = None,
    stacked: str | None = None,
    weighted: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averaging of weights and of scores that say which of them stay: hard movement.

        W' = W Top_v(S),   dL/dW = dL/dW' Top_v(S),   dL/dS = dL/dW' W

    Every local step makes its mask anew, so that weights may return. Masked, not
    faster; with `blocks` that are heads or units, `models.shrunk` makes the finished
    model smaller and faster. Scores begin at 0, where ties go to the first entries:
    leave a few rounds before `first`.

    Sends: the dense W and a score of 32 bits for each block, or entry, both ways.

    Metrics: `density` and `density PATH`, the shares of entries that the round kept.

    Args:
      task: the loss; with a teacher in it, the distillation of both papers.
      client_optimizer: of W, starts afresh each round, or a function of the round.
      server_optimizer: applied to the means of (start - end) of W and S; None means
        `optax.sgd(1.0)`.
      final_sparsity: s_f, s_i <= s_f < 1.
      last: round from which on the sparsity is s_f.
      first: the last round whose sparsity is s_i, the end of the warm-up.
      every: rounds between steps of the schedule; it divides last - first.
      initial_sparsity: s_i.
      score_optimizer: of S; None means `optax.adam(1e-2)`, the paper's.
      blocks: {regular expression of leaves: (rows, columns)} of a block, 0 for the
        whole axis, the first that fits; `models.unit_blocks` has those of a BERT. None:
        every entry has a score.
      scope: "layer", a threshold for each; "global", one for all scores.
      pruned: regular expression of the dotted paths of the leaves to prune; None: those
        that `blocks` names, or else those of two axes and more.
      stacked: regular expression of leaves whose first axis counts layers, as in this
        package's models; each layer has its threshold then.
      weighted: whether clients count by their examples; False: all the same.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `MovementState`; clients keep nothing. Its
      model is W Top_v(S).

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds, or the
        schedule ends before it starts; later, no leaf is pruned, or a block does not
        divide one.

    References:
      Sanh et al. 2020, arXiv 2005.07683; Lagunas et al. 2021, arXiv 2109.04838.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):  # the first entry moves towards zero
      ...     return jnp.sum(batch["slope"] * w, axis=(-2, -1)), {}
      >>> how = {"final_sparsity": 0.5, "first": 1, "last": 2}
      >>> how |= {"local_steps": 1, "batch_size": 1}
      >>> method = movement_pruning(Task(loss), optax.sgd(0.1), **how)
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
    schedule = cubic(
        final_sparsity,
        first=first,
        last=last,
        every=every,
        initial_sparsity=initial_sparsity,
    )
    checks.choice("scope", scope, SCOPES)

    def top(scores: Flat, round_index: jax.Array, layers: Layers) -> Flat:
        density = 1 - schedule(round_index)
        return top_masks(scores, density, layers, scope=scope)

    return movement(
        average,
        top,
        score_optimizer=score_optimizer,
        blocks=blocks,
        pruned=pruned,
        stacked=stacked,
    )
