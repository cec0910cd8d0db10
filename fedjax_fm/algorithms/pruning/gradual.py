"""To prune, or not to prune: exploring the efficacy of pruning for model compression.

Zhu, Gupta, 2017, arXiv 1710.01878. The sparsity grows while the model is trained:

    s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3                  (1)

at t = t_0, t_0 + dt, ..., t_0 + n dt; t counts rounds here. The mask of round t drops the
smallest magnitudes of each layer, never to return.
"""

import jax
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.averaging import averaging
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.pruning.parts import PrunedState
from fedjax_fm.algorithms.pruning.rule import Rule, nothing, pruned_averaging
from fedjax_fm.sparsity import Layers, cubic, magnitude, masked, top_masks
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.sparsity.masks import SCOPES
from fedjax_fm.types import Algorithm, Task


def gradual_pruning(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    final_sparsity: float,
    last: int,
    first: int = 0,
    every: int = 1,
    initial_sparsity: float = 0.0,
    scope: str = "layer",
    pruned: str | None = None,
    stacked: str | None = None,
    weighted: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averaging whose model loses its smallest weights, round by round.

        s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3

    Masked, not faster: pruned entries are zeros in arrays of the old shape. They get no
    gradient and stay pruned; of n entries of a layer round(s_t n) are zero, halves
    rounded up, and one stays at least. With a sparsity of 0 it is FedAvg.

    Sends: the kept entries of the pruned leaves and all others, both ways; down the
    mask, a bit an entry, to a client whose mask is not the present one.

    Metrics: `density` and `density PATH`, the shares of entries that the round kept.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round, or a function of the round.
      server_optimizer: applied to the mean of (start - end); None means
        `optax.sgd(1.0)`.
      final_sparsity: s_f, 0.5 to 0.975 in the paper, s_i <= s_f < 1.
      last: t_0 + n dt, from which round on the sparsity is s_f.
      first: t_0, the first round of which the sparsity may be above s_i.
      every: dt, rounds between prunings; it divides last - first.
      initial_sparsity: s_i, 0 in the paper.
      scope: "layer", a threshold for each; "global", one for all.
      pruned: regular expression of the dotted paths of the leaves to prune; None: those
        of two axes and more.
      stacked: regular expression of leaves whose first axis counts layers, as in this
        package's models; each layer has its threshold then.
      weighted: whether clients count by their examples; False: all the same.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `PrunedState`; a client's state is i32[], the
      version of the masks that it holds.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds, or the
        schedule ends before it starts; later, no leaf is pruned.

    References:
      Zhu and Gupta 2017, arXiv 1710.01878, equation (1).

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return jnp.sum((w - batch["x"]) ** 2, axis=(-2, -1)) / 2, {}
      >>> how = {"final_sparsity": 0.75, "last": 2, "local_steps": 1, "batch_size": 1}
      >>> method = gradual_pruning(Task(loss), optax.sgd(1.0), **how)
      >>> x = jnp.array([[[4.0, 1.0, 3.0, 2.0]]])
      >>> population = ffm.Population.from_clients([{"x": x}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.zeros((1, 4))), 3)
      >>> state.delta.tolist(), metrics["density"].tolist()
      ([[4.0, 0.0, 0.0, 0.0]], [1.0, 0.25, 0.25])
      >>> metrics["uplink_bytes"].tolist(), metrics["downlink_bytes"].tolist()
      ([16, 4, 4], [16, 5, 4])
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
    layers = Layers(pruned, stacked).checked()
    checks.choice("scope", scope, SCOPES)

    def top(weights: Flat, sparsity: jax.Array, within: Flat | None = None) -> Flat:
        how = {"scope": scope, "within": within}
        return top_masks(magnitude(weights), 1 - sparsity, layers, **how)

    def next_state(state: PrunedState, key: jax.Array) -> PrunedState:
        sparsity = schedule(state.round)
        is_due = sparsity > schedule(state.round - 1)

        def smaller():
            return top(layers.weights(state.delta), sparsity, state.masks)

        masks = jax.lax.cond(is_due, smaller, lambda: state.masks)
        return state._replace(masks=masks, delta=masked(state.delta, masks))

    rule = Rule(
        first=lambda weights: top(weights, schedule(0)),
        next=next_state,
        own=nothing,
        are_known=initial_sparsity == 0,
    )
    return pruned_averaging(average, layers, rule)
