"""FedTiny, adaptive batch-norm selection: Distributed Pruning Towards Tiny Networks.

Huang, Zhang, Sun, Fang, Yuan, Wu, 2022, arXiv 2212.01977. Of C masks of
a model that the server pretrained, the one that suits the clients' data:

    server:  sends the C pruned models
    client:  sends the statistics of its data in each of them
    server:  sends the mean statistics of each
    client:  sends its loss with each of them
    server:  takes the model of the lowest mean loss
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import over_steps, passes_over
from fedjax_fm.algorithms.losses import checked, weights_of
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.passes import loss_over
from fedjax_fm.algorithms.pruning.fedtiny_candidates import (
    Candidates,
    candidate_masks,
    message_of,
)
from fedjax_fm.algorithms.reduce import mean_of, weighted_mean
from fedjax_fm.sparsity import (
    Layers,
    check_density,
    masked,
    put,
    unpack_kept,
)
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientData,
    ClientOutput,
    Exchange,
    Task,
    Tree,
    Unbilled,
)

# `(delta, backbone, batch, key) -> ` tree of f32[B, ...]
Statistics = Callable[[Tree, Tree, dict[str, jax.Array], Any], Tree]
# `(delta, backbone, statistics) -> (delta, backbone)`
WithStatistics = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]


class SelectionState(NamedTuple):
    """Server state.

    Attributes:
      delta: the pretrained model, dense.
      masks: bool[C, ...] by the dotted path of a pruned leaf.
      statistics: leaves [C, ...], the means over clients; the pretrained model's at
        first.
      losses: f32[C], the mean losses; zeros at first.
      chosen: i32[], which of the C it is.
    """

    delta: Tree
    masks: Flat
    statistics: Tree
    losses: jax.Array
    chosen: jax.Array

    def chosen_masks(self) -> Flat:
        """The masks for `fedtiny(masks=...)`."""
        return {name: mask[self.chosen] for name, mask in self.masks.items()}


class _Selection(NamedTuple):
    """The hyper-parameters of `fedtiny_selection`, checked."""

    task: Task
    layers: Layers
    density: float
    candidates: int
    spread: float
    initial: Tree
    statistics: Statistics
    with_statistics: WithStatistics

    def model(self, delta, backbone, masks, statistics) -> tuple[Tree, Tree]:
        """A candidate as it is evaluated."""
        return self.with_statistics(masked(delta, masks), backbone, statistics)


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
      >>> import fedjax_fm as ffm
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
    method = _Selection(
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
        client=partial(_measured, method),
        server=partial(_with_statistics, method),
        **how,
    )
    judge = Exchange(
        broadcast=lambda state: (
            state.statistics,
            Unbilled((state.delta, state.masks)),
        ),
        client=partial(_judged, method),
        server=_with_choice,
        **how,
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(measure, judge),
        model=partial(_model, method),
    )


def _init(method: _Selection, delta, key, setting) -> SelectionState:
    """The candidates, drawn once."""
    weights = method.layers.weights(delta)
    n = method.candidates
    how = {"spread": method.spread, "layers": method.layers}

    def of_each(x):
        x = jnp.asarray(x, jnp.float32)
        return jnp.broadcast_to(x, (n, *x.shape))

    return SelectionState(
        delta=delta,
        masks=candidate_masks(weights, method.density, n, key, **how),
        statistics=jax.tree.map(of_each, method.initial),
        losses=jnp.zeros(n),
        chosen=jnp.int32(0),
    )


def _broadcast(method: _Selection, state: SelectionState) -> Candidates:
    """All candidates."""
    return message_of(state.delta, state.masks, method.layers)


def _measured(method: _Selection, backbone: Tree, message: Candidates):
    """The statistics of a client's data in each candidate."""
    masks, like = message.masks
    kept = unpack_kept(message.kept, masks)

    def one(own, state, data, key):
        def of_candidate(weights):
            delta = put(like, {**weights, **own.others})
            return _mean_statistics(method, delta, backbone, data, key)

        means, weight = jax.vmap(of_candidate)(kept)
        _check_form(method, means)
        return ClientOutput(upload=means, weight=weight[0], state=state)

    return one


def _check_form(method: _Selection, means: Tree) -> None:
    """Refuses statistics that are not those of the pretrained model."""
    found = jax.tree.map(lambda x: x[0], means)
    expected = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), method.initial)
    if problem := trees.difference(expected, found):
        raise ValueError(f"initial and statistics are of different forms: {problem}")


def _mean_statistics(
    method: _Selection, delta: Tree, backbone: Tree, data: ClientData, key: jax.Array
) -> tuple[Tree, jax.Array]:
    """(the mean over a client's examples, their weight)."""
    own = stream(key, Stream.BESIDE_STEPS)

    def step(i, nothing):
        batch, mask = data.batch(i)
        step_key = jax.random.fold_in(own, i)
        found = method.statistics(delta, backbone, batch, step_key)
        weights = weights_of(method.task, batch, mask)

        def total(x):
            shape = (-1, *[1] * (x.ndim - 1))
            real = jnp.where(mask.reshape(shape), x, 0)
            return jnp.sum(weights.reshape(shape) * real, axis=0, dtype=jnp.float32)

        return nothing, (jax.tree.map(total, found), jnp.sum(weights))

    shapes = jax.eval_shape(lambda: step(jnp.int32(0), ())[1])
    once = data._replace(n_steps=passes_over(data))
    total, weight = over_steps(once, step, (), shapes)[1]
    return mean_of(total, weight), weight


def _with_statistics(method: _Selection, state: SelectionState, aggregate, key):
    """The mean statistics of each candidate."""
    return state._replace(statistics=aggregate.value), {}


def _judged(method: _Selection, backbone: Tree, message):
    """The loss of each candidate with the mean statistics."""

    def one(own, state, data, key):
        statistics, (delta, masks) = own

        def of_candidate(masks, statistics):
            model = method.model(delta, backbone, masks, statistics)
            found = loss_over(method.task, *model, data, key)
            return found["loss"]

        sums, weights = jax.vmap(of_candidate)(masks, statistics)
        weight = weights[0]
        return ClientOutput(
            upload=mean_of(sums, weight),
            weight=weight,
            state=state,
            metrics={"loss": (jnp.mean(sums), weight)},
        )

    return one


def _with_choice(state: SelectionState, aggregate, key):
    """The candidate of the lowest mean loss; of equal ones the first."""
    losses = aggregate.value
    chosen = jnp.argmin(losses).astype(jnp.int32)
    metrics = {
        "best_loss": jnp.min(losses),
        "worst_loss": jnp.max(losses),
        "chosen": chosen.astype(jnp.float32),
    }
    return state._replace(losses=losses, chosen=chosen), metrics


def _model(method: _Selection, state: SelectionState, client, backbone):
    """`Algorithm.model`: the chosen candidate with its statistics."""
    statistics = jax.tree.map(lambda x: x[state.chosen], state.statistics)
    return method.model(state.delta, backbone, state.chosen_masks(), statistics)
