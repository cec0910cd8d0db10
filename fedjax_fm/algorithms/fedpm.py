"""FedPM: Sparse Random Networks for Communication-Efficient Federated Learning.

Isik, Pase, Gündüz, Weissman, Zorzi, 2022, arXiv 2209.15328. No weight is ever trained:
clients learn which entries of a frozen random network w are on.

    client:
        s <- logit(theta)                                       `_client`
        for each batch:  m ~ Bern(sigmoid(s)),
            s <- s - eta dloss(w m)/dm sigmoid'(s)              `_loss_of_scores`
        sends one draw m_k ~ Bern(sigmoid(s_k))                 `sample_masks`
    server, alpha = beta = lambda0 at first:
        alpha <- alpha + sum of m_k,  beta <- beta + sum of (1 - m_k)
        theta <- (alpha - 1) / (alpha + beta - 2)               `_server`
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import ClientOptimizer, LocalTraining, local_training
from fedjax_fm.algorithms.reduce import total
from fedjax_fm.kernels import mask_entropy_bits, uniform
from fedjax_fm.types import (
    Algorithm,
    ClientOutput,
    Exchange,
    Task,
    Tree,
)


class FedPMState(NamedTuple):
    """Server state.

    The Beta posterior is alpha = prior + ones, beta = prior + count - ones.

    Attributes:
      delta: theta, f32 in [0, 1]: how probable it is that an entry is on.
      ones: f32, the (softened) masks since the last reset, summed.
      count: f32[], how many masks that were.
      round: i32[].
    """

    delta: Tree
    ones: Tree
    count: jax.Array
    round: jax.Array


class _FedPM(NamedTuple):
    """The hyper-parameters of `fedpm`, checked."""

    local: LocalTraining  # of the task as it came
    prior: float  # lambda0
    reset_every: int | None
    softening: float  # eps
    weights: Callable[[Tree], Tree]


def _whole_backbone(backbone: Tree) -> Tree:
    """The default of `weights`."""
    return backbone


def fedpm(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
    prior: float = 1.0,
    reset_every: int | None = 1,
    softening: float = 0.01,
    weights: Callable[[Tree], Tree] = _whole_backbone,
) -> Algorithm:
    """Federated probabilistic masks over a frozen random network.

        theta = (lambda0 - 1 + sum of m_k) / (2 (lambda0 - 1) + number of m_k)

    `delta` is theta, the probabilities, a tree like the random weights
    (`signed_constants`); start with 0.5, or with sigmoid(N(0, 1)) as the authors do.
    The task's loss is given `weights(backbone) * mask` in the place of delta.

    Sends: once a seed for the weights; down theta, 32 d bits; up one bool mask, d bits.
    Every mask counts the same, however many examples are behind it. A round without
    clients changes nothing. The model that is evaluated has the mask theta > 1/2
    (`threshold_masks`), which is not random.

    Metrics: `density`, the share p of ones in a mask; `bits_per_parameter`, the mask's
    entropy H2(p): what an entropy code of it takes, the model apart.

    Args:
      task: the loss; it need not know of masks.
      client_optimizer: of the scores s, starts afresh each round.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.
      prior: lambda0 >= 1, alpha and beta of the Beta prior. With 1 theta is the plain
        mean of the masks.
      reset_every: rounds after which the prior is forgotten; 1 is the authors' code,
        ceil(1 / participation) the paper, None never.
      softening: eps; masks count as eps and 1 - eps at the server, which reads a
        frequency p as p + eps (1 - 2 p), so that no score is infinite (authors' code:
        0.01). With 0 an entry on which all masks agree stays as it is for ever.
      weights: the part of the backbone that is masked; default all of it.

    Returns:
      An algorithm whose server state is `FedPMState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.
      ValueError: later, theta and the random weights have other shapes.

    References:
      Isik et al. 2022, arXiv 2209.15328, algorithms 1 and 2.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):  # the first entry is better left out
      ...     return batch["slope"] @ w, {}
      >>> method = fedpm(ffm.Task(loss), optax.sgd(20.0), local_steps=5, batch_size=1)
      >>> clients = [{"slope": jnp.array([[1.0, -1.0]])}] * 2
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(
      ...     method, population, backbone=jnp.ones(2), cohort_size=2
      ... )
      >>> state, metrics = simulator.run(simulator.init(jnp.full(2, 0.5)), 2)
      >>> simulator.model(state)[0].tolist()
      [0.0, 1.0]
    """
    checks.real("prior", prior, least=1)  # below, the posterior has no mode inside
    if reset_every is not None:
        checks.whole("reset_every", reset_every, least=1)
    checks.real("softening", softening, least=0, below=0.5)
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    method = _FedPM(
        local=local,
        prior=prior,
        reset_every=reset_every,
        softening=softening,
        weights=weights,
    )
    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=lambda backbone, message: partial(_client, method, backbone),
        server=partial(_server, method),
        reduce=total(partial(_softened, method)),
        batches=local.batches,
    )
    return Algorithm(init=_init, exchanges=(exchange,), model=partial(_model, method))


def _init(delta, key, setting) -> FedPMState:
    """The prior: no mask yet."""
    return FedPMState(
        delta=delta,
        ones=jax.tree.map(jnp.zeros_like, delta),
        count=jnp.float32(0),
        round=jnp.int32(0),
    )


def _loss_of_scores(method: _FedPM) -> Task:
    """The task of s: the loss of w m with m ~ Bern(sigmoid(s))."""
    task = method.local.task

    def straight_through(m, p):
        """The mask itself forward, exactly (x - x is 0); its gradient goes to theta."""
        return m.astype(p.dtype) + (p - jax.lax.stop_gradient(p))

    def loss(scores, backbone, batch, key):
        mask_key, loss_key = jax.random.split(key)
        theta = jax.tree.map(jax.nn.sigmoid, scores)
        masks = sample_masks(theta, mask_key)
        masks = jax.tree.map(straight_through, masks, theta)
        network = masked(method.weights(backbone), masks)
        return task.loss(network, backbone, batch, loss_key)

    return Task(loss, task.weight)


def _client(method: _FedPM, backbone, theta, state, data, key) -> ClientOutput:
    """Trains s from logit(theta); sends one mask."""
    train_key, mask_key = jax.random.split(key)
    theta = jax.tree.map(lambda p: jnp.clip(p, 0, 1), theta)  # a channel may overshoot
    scores = jax.tree.map(jax.scipy.special.logit, theta)
    on_scores = method.local._replace(task=_loss_of_scores(method))
    scores, metrics = on_scores.run(scores, backbone, data, train_key)
    masks = sample_masks(jax.tree.map(jax.nn.sigmoid, scores), mask_key)
    return ClientOutput(
        upload=masks,
        weight=jnp.float32(1),
        state=(),
        metrics={**metrics, **_mask_metrics(masks)},
    )


def _mask_metrics(masks: Tree) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The share of ones, and the entropy that follows from it."""
    leaves = jax.tree.leaves(masks)
    flat = jnp.concatenate([mask.reshape(-1) for mask in leaves])
    one = jnp.float32(1)
    return {
        "density": (jnp.mean(flat), one),
        "bits_per_parameter": (mask_entropy_bits(flat) / flat.size, one),
    }


def _softened(method: _FedPM, server, masks, weight):
    """A mask with eps for 0 and 1 - eps for 1, and that it is one."""
    high, low = 1 - method.softening, method.softening
    soft = jax.tree.map(lambda mask: weight * jnp.where(mask, high, low), masks)
    return soft, weight


def _server(method: _FedPM, state: FedPMState, aggregate, key):
    """Adds the masks to the posterior, or anew to the prior; theta is its mode."""
    new_ones, new_count = aggregate.value
    resets = jnp.bool_(False)
    if method.reset_every is not None:
        resets = state.round % method.reset_every == 0

    def added(old, new):
        return jnp.where(resets, 0, old) + new

    ones = jax.tree.map(added, state.ones, new_ones)
    count = added(state.count, new_count)
    excess = method.prior - 1  # alpha - 1 and beta - 1 before the first mask

    def mode(old, ones):
        theta = (excess + ones) / (2 * excess + jnp.maximum(count, 1))
        return jnp.where(count > 0, theta, old)

    after = FedPMState(
        delta=jax.tree.map(mode, state.delta, ones),
        ones=ones,
        count=count,
        round=state.round + 1,
    )
    return after, {}


def _model(method: _FedPM, server: FedPMState, own, backbone):
    """`Algorithm.model`: the network with the likelier mask, for server and clients."""
    masks = threshold_masks(server.delta)
    return masked(method.weights(backbone), masks), backbone


def sample_masks(theta: Tree, key: jax.Array) -> Tree:
    """A bool tree, every entry true with its own probability.

    Args:
      theta: probabilities; an entry is never true at 0, always at 1.
      key: leaf i is drawn from `fold_in(key, i)`.

    Returns:
      A tree like theta, of bool.
    """
    leaves, structure = jax.tree.flatten(theta)

    def draw(i, p):
        leaf_key = jax.random.fold_in(key, i)
        return uniform(leaf_key, p.size).reshape(p.shape) < p

    masks = [draw(i, p) for i, p in enumerate(leaves)]
    return jax.tree.unflatten(structure, masks)


def threshold_masks(theta: Tree, threshold: float = 0.5) -> Tree:
    """A bool tree, true where theta is above the threshold.

    Args:
      theta: probabilities.
      threshold: in [0, 1].

    Returns:
      A tree like theta, of bool: one network for the test, which is not random.

    Raises:
      TypeError, ValueError: the threshold is no number in [0, 1].
    """
    checks.real("threshold", threshold, least=0, most=1)
    return jax.tree.map(lambda p: p > threshold, theta)


def masked(weights: Tree, masks: Tree) -> Tree:
    """The network that is left: weights * masks.

    Args:
      weights: the random weights.
      masks: a tree of the same shapes, bool or numbers.

    Returns:
      A tree like weights.

    Raises:
      ValueError: the trees differ.
    """

    def shapes(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), tree)

    expected, found = shapes(weights), shapes(masks)
    if problem := trees.difference(expected, found):
        raise ValueError(f"masks and random weights differ: {problem}")
    return jax.tree.map(lambda w, m: w * m.astype(w.dtype), weights, masks)


def signed_constants(shapes: Tree, key: jax.Array, gain: float = math.e) -> Tree:
    """A tree of random weights -c or c, c = gain / sqrt(fan_in).

    Args:
      shapes: arrays or shapes with at least two axes; the last is the output, all
        others together are the fan-in.
      key: a seed is all that a client must be sent.
      gain: above 0; e is the authors' code.

    Returns:
      A tree of those shapes, f32.

    Raises:
      TypeError, ValueError: the gain is no number above 0, or a leaf has fewer axes.
    """
    checks.real("gain", gain, above=0)
    leaves, structure = jax.tree.flatten(shapes)
    for leaf in leaves:
        if len(leaf.shape) < 2:
            raise ValueError(
                f"a leaf of shape {leaf.shape} has no fan-in; make a bias one "
                "more row of its matrix"
            )

    def draw(i, shape):
        leaf_key, fan_in = jax.random.fold_in(key, i), math.prod(shape[:-1])
        signs = jax.random.rademacher(leaf_key, shape, jnp.float32)
        return gain / math.sqrt(fan_in) * signs

    weights = [draw(i, leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, weights)
