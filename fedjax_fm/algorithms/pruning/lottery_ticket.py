"""The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks.

Frankle, Carbin, 2019, arXiv 1803.03635, iterative pruning with resetting; late rewinding
after Frankle et al. 2019, arXiv 1903.01611. Some rounds of averaging make a level:

    after each level:  m <- the (1 - p) of the kept entries with the largest |w|
                       w <- m w_k,  w_k the model after round k (0: where it started)
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.averaging import averaging
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.pruning.lottery_levels import (
    Lottery,
    Rewinding,
    next_state,
)
from fedjax_fm.algorithms.pruning.rule import Rule, pruned_averaging
from fedjax_fm.sparsity import Layers, full_masks
from fedjax_fm.sparsity.masks import SCOPES
from fedjax_fm.types import Algorithm, Task, Tree


def lottery_ticket(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    levels: int,
    rounds_per_level: int,
    rate: float = 0.2,
    output: str | None = None,
    scope: str = "layer",
    rewind_to: int = 0,
    redraw: Callable[[Tree, jax.Array], Tree] | None = None,
    pruned: str | None = None,
    stacked: str | None = None,
    weighted: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averaging that prunes after every level and rewinds what is left.

    After n levels (1 - p)^n of the entries are left, up to rounding, and start where
    they started: exactly m w_k, biases and the other leaves, too. The last level is
    trained to the end of the run. Masked, not faster: pruned entries are zeros in
    arrays of the old shape.

    Sends: the kept entries of the pruned leaves and all others, both ways; down the
    mask, a bit an entry, to a client whose mask is not the present one.

    Metrics: `density` and `density PATH`, the shares of entries that the round kept.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round, or a function of the round; the number
        of the round goes on over the levels.
      server_optimizer: applied to the mean of (start - end), its state new after each
        level; None means `optax.sgd(1.0)`.
      levels: n, how often is pruned, at least 1.
      rounds_per_level: rounds of training before each pruning.
      rate: p, share of the kept entries that is dropped each time, 0 < p < 1.
      output: regular expression of pruned leaves that lose p / 2 each time, as the
        paper's output layers; only with the scope "layer".
      scope: "layer", a threshold for each, as for small networks in the paper;
        "global", one for all, as for deep ones.
      rewind_to: k, round to which is rewound, at most `rounds_per_level`; 0 is the
        start.
      redraw: `(delta, key) -> delta`, with new random weights in the place of w_k: the
        paper's control. None rewinds.
      pruned: regular expression of the dotted paths of the leaves to prune; None: those
        of two axes and more.
      stacked: regular expression of leaves whose first axis counts layers, as in this
        package's models; each layer has its threshold then.
      weighted: whether clients count by their examples; False: all the same.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `PrunedState`, with `Rewinding` as its `own`; a
      client's state is i32[], the version of the masks that it holds.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later, no
        leaf is pruned, or `redraw` makes another tree.

    References:
      Frankle and Carbin 2019, arXiv 1803.03635, iterative pruning; Frankle et
      al. 2019, arXiv 1903.01611, for k > 0.

    Example:
      >>> import fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return jnp.sum((w - batch["x"]) ** 2, axis=(-2, -1)) / 2, {}
      >>> how = {"levels": 2, "rounds_per_level": 1, "rate": 0.5}
      >>> how |= {"local_steps": 1, "batch_size": 1}
      >>> method = lottery_ticket(Task(loss), optax.sgd(1.0), **how)
      >>> x = jnp.array([[[4.0, 1.0, 3.0, 2.0]]])
      >>> population = ffm.Population.from_clients([{"x": x}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.full((1, 4), 9.0)), 2)
      >>> state.delta.tolist(), metrics["density"].tolist()
      ([[9.0, 0.0, 0.0, 0.0]], [1.0, 0.5])
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
    checks.whole("levels", levels, least=1)
    checks.whole("rounds_per_level", rounds_per_level, least=1)
    checks.real("rate", rate, above=0, below=1)
    checks.choice("scope", scope, SCOPES)
    checks.whole("rewind_to", rewind_to, least=0, most=rounds_per_level)
    if output is not None and scope == "global":
        raise ValueError(
            f"output={output!r} has a rate of its own, which one threshold for all "
            "cannot keep; take scope='layer'"
        )
    layers = Layers(pruned, stacked).checked()
    method = Lottery(
        average=average,
        layers=layers,
        levels=levels,
        rounds=rounds_per_level,
        rate=rate,
        output=None if output is None else Layers(output).checked(),
        scope=scope,
        rewind_to=rewind_to,
        redraw=redraw,
    )
    rule = Rule(
        first=full_masks,
        next=partial(next_state, method),
        own=lambda delta: Rewinding(delta, jnp.int32(0)),
        are_known=True,
    )
    return pruned_averaging(average, layers, rule)
