"""FedTiny, adaptive batch-norm selection: Distributed Pruning Towards Tiny Networks.

Huang, Zhang, Sun, Fang, Yuan, Wu, 2022, arXiv 2212.01977. Of C masks of
a model that the server pretrained, the one that suits the clients' data:

    server:  sends the C pruned models
    client:  sends the statistics of its data in each of them
    server:  sends the mean statistics of each
    client:  sends its loss with each of them
    server:  takes the model of the lowest mean loss
"""

from functools import partial
from typing import Any

import jax

from fedjax_fm import checks
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.algorithms.pruning import fedtiny_judging
from fedjax_fm.algorithms.pruning.fedtiny_candidates import Candidates, message_of
from fedjax_fm.algorithms.pruning.fedtiny_judging import (
    Selection,
    SelectionState,
    Statistics,
    WithStatistics,
)
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.sparsity import Layers, check_density
from fedjax_fm.types import Algorithm, Batches, Exchange, Task, Tree, Unbilled


def fedtiny_selection(
    task: Task,
    *,
    density: float,
    initial: Tree,
    statistics: Statistics,
    with_statistics: WithStatistics,
    candidates: int = 8,
    spread: float = 0.5,
    pruned: str | None = None,
    stacked: str | None = None,
    batch_size: int,
) -> Algorithm:
    """One round that chooses among candidate masks by the clients' losses.

    The first stage of FedTiny; nothing is trained. Run it for one round, then give
    `state.carry.server.chosen_masks()` to `fedtiny`. The first candidate prunes every
    layer to the density; the others draw the layers' densities, so that no more entries
    are kept in all. With one candidate it is plain magnitude pruning.

    Sends: down the C pruned models, a bit an entry for each mask and the other leaves
    once; up C statistics; down their means; up C losses of 32 bits.

    Metrics: `best_loss` and `worst_loss` of the candidates, `chosen`; `loss` is their
    mean.

    Args:
      task: the loss.
      density: share of all prunable entries that is kept, 0 < density <= 1; 0.01 in the
        paper.
      initial: the statistics of the pretrained model, of which the shapes are read.
      statistics: `(delta, backbone, batch, key) -> ` tree of f32[B, ...], for each
        example what is averaged over all of them: a batch norm's mean and mean of
        squares, say.
      with_statistics: `(delta, backbone, statistics) -> (delta, backbone)`, the model
        that has them.
      candidates: C, at least 1.
      spread: a layer's density is drawn from (1 - spread) to (1 + spread) times that of
        all, before the scaling, 0 <= spread < 1.
      pruned: regular expression of the dotted paths of the leaves to prune; None: those
        of two axes and more.
      stacked: regular expression of leaves whose first axis counts layers.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `SelectionState`; clients keep nothing. Its
      model is the chosen one.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later, no
        leaf is pruned.

    References:
      Huang et al. 2022, arXiv 2212.01977, adaptive batch normalisation selection.

    Example:
      >>> import jax.numpy as jnp, fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):  # backbone: the mean of the data
      ...     return (batch["x"] - backbone) @ w["a"] @ w["b"], {}
      >>> method = fedtiny_selection(
      ...     Task(loss),
      ...     density=0.5,
      ...     initial=jnp.zeros(2),
      ...     statistics=lambda delta, backbone, batch, key: batch["x"],
      ...     with_statistics=lambda delta, backbone, mean: (delta, mean),
      ...     candidates=3,
      ...     pruned="a",
      ...     batch_size=2,
      ... )
      >>> clients = [{"x": jnp.ones((2, 2)) * k} for k in range(2)]
      >>> population = ffm.Population.from_clients(clients)
      >>> how = {"backbone": jnp.zeros(2), "cohort_size": 2}
      >>> simulator = ffm.Simulator(method, population, **how)
      >>> delta = {"a": jnp.eye(2), "b": jnp.ones(2)}
      >>> state, metrics = simulator.run(simulator.init(delta), 1)
      >>> simulator.model(state)[1].tolist()  # the statistics of all clients' data
      [0.5, 0.5]
    """
    check_density("density", density)
    checks.whole("candidates", candidates, least=1)
    checks.real("spread", spread, least=0, below=1)
    functions = {"statistics": statistics, "with_statistics": with_statistics}
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"expected {name} to be a function, got {function!r}")
    batches = Batches(batch_size, epochs=1).checked()
    method = Selection(
        task=checked(task),
        layers=Layers(pruned, stacked).checked(),
        density=density,
        candidates=candidates,
        spread=spread,
        initial=initial,
        statistics=statistics,
        with_statistics=with_statistics,
    )
    how: dict[str, Any] = {"reduce": weighted_mean(), "batches": batches}
    measure = Exchange(
        broadcast=partial(_broadcast, method),
        client=partial(fedtiny_judging.measured, method),
        server=fedtiny_judging.with_means,
        **how,
    )
    judge = Exchange(
        broadcast=lambda state: (
            state.statistics,
            Unbilled((state.delta, state.masks)),
        ),
        client=partial(fedtiny_judging.judged, method),
        server=fedtiny_judging.with_choice,
        **how,
    )
    return Algorithm(
        init=partial(fedtiny_judging.first_round, method),
        exchanges=(measure, judge),
        model=partial(_model, method),
    )


def _broadcast(method: Selection, state: SelectionState) -> Candidates:
    """All candidates."""
    return message_of(state.delta, state.masks, method.layers)


def _model(method: Selection, state: SelectionState, client, backbone):
    """`Algorithm.model`: the chosen candidate with its statistics."""
    statistics = jax.tree.map(lambda x: x[state.chosen], state.statistics)
    return method.model(state.delta, backbone, state.chosen_masks(), statistics)
