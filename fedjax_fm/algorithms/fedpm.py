"""FedPM: Sparse Random Networks for Communication-Efficient Federated Learning.

Isik, Pase, Gündüz, Weissman, Zorzi, 2022, arXiv 2209.15328. No weight is ever trained:
which entries of a frozen random network are on is what clients learn.

    client:  s <- logit(theta);  for each batch: m ~ Bern(sigmoid(s)), s <- s - eta *
             dloss(w * m) / dm * sigmoid'(s) sends one draw m_k ~ Bern(sigmoid(s_k))
    server:  alpha <- lambda0 + sum of m_k, beta <- lambda0 + sum of (1 - m_k);  theta
      <- (alpha - 1) / (alpha + beta - 2)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
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
    """Server state; the Beta posterior is alpha = prior + ones, beta = prior + count - ones."""

    delta: Tree  # theta, f32 in [0, 1]: how probable it is that an entry is on
    ones: Tree  # f32, the (softened) masks since the last reset, summed
    count: jax.Array  # f32[], how many masks that were
    round: jax.Array  # i32[]


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
    weights: Callable[[Tree], Tree] = lambda backbone: backbone,
) -> Algorithm:
    """Federated probabilistic masks over a frozen random network.

    `delta` is theta, the probabilities, a tree like the random weights
    (`signed_constants`); start with 0.5, or with sigmoid(N(0, 1)) as the authors do.
    The task's loss is given `weights(backbone) * mask` in the place of delta.

    Args:
      task: the loss; it need not know of masks.
      client_optimizer: of the scores s, starts afresh each round.
      epochs, local_steps, batch_size: as for `fedavg`.
      prior: lambda0 >= 1, alpha and beta of the Beta prior. With 1 theta is the plain
        mean of the masks.
      reset_every: rounds after which the prior is forgotten; 1 is the authors' code,
        ceil(1 / participation) the paper, None never.
      softening: eps; masks count as eps and 1 - eps at the server, which reads a
        frequency p as p + eps (1 - 2 p), so that no score is infinite (authors' code:
        0.01). With 0 an entry on which all masks agree stays as it is for ever.
      weights: the part of the backbone that is masked; default all of it.

    Sends: once a seed for the weights; down theta, 32 d bits; up one bool mask, d bits.
    The metric `bits_per_parameter` is the mask's entropy H2(p), p its share of ones
    (metric `density`): what an entropy code of it takes, the model apart. Every mask
    counts the same, however many examples are behind it. A round without clients
    changes nothing. The model that is evaluated has the mask theta > 1/2
    (`threshold_masks`), which no chance enters.
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
    task = local.task

    def init(delta, key, setting):
        return FedPMState(
            delta=delta,
            ones=jax.tree.map(jnp.zeros_like, delta),
            count=jnp.float32(0),
            round=jnp.int32(0),
        )

    def masked_loss(scores, backbone, batch, key):
        mask_key, loss_key = jax.random.split(key)
        theta = jax.tree.map(jax.nn.sigmoid, scores)

        # The mask itself forward, exactly (x - x is 0); its gradient goes to theta as it is.
        def through(m, p):
            return m.astype(p.dtype) + (p - jax.lax.stop_gradient(p))

        masks = jax.tree.map(through, sample_masks(theta, mask_key), theta)
        return task.loss(masked(weights(backbone), masks), backbone, batch, loss_key)

    on_scores = local._replace(task=Task(masked_loss, task.weight))

    def client(backbone, message):
        def one(theta, state, data, key):
            train_key, mask_key = jax.random.split(key)
            scores = jax.tree.map(
                lambda p: jax.scipy.special.logit(jnp.clip(p, 0, 1)), theta
            )  # a channel may overshoot
            scores, metrics = on_scores.run(scores, backbone, data, train_key)
            masks = sample_masks(jax.tree.map(jax.nn.sigmoid, scores), mask_key)
            flat = jnp.concatenate(
                [mask.reshape(-1) for mask in jax.tree.leaves(masks)]
            )
            share = {
                "density": jnp.mean(flat),
                "bits_per_parameter": mask_entropy_bits(flat) / flat.size,
            }
            share = {name: (value, jnp.float32(1)) for name, value in share.items()}
            return ClientOutput(
                upload=masks, weight=jnp.float32(1), state=(), metrics=metrics | share
            )

        return one

    def lift(server, masks, weight):
        def soft(mask):
            return jnp.where(mask, 1 - softening, softening)

        return jax.tree.map(lambda mask: weight * soft(mask), masks), weight

    def server(state, aggregate, key):
        ones, count = aggregate.value
        again = (
            jnp.bool_(False) if reset_every is None else state.round % reset_every == 0
        )
        ones = jax.tree.map(
            lambda old, new: jnp.where(again, 0, old) + new, state.ones, ones
        )
        count = jnp.where(again, 0, state.count) + count

        def mode(old, x):
            return jnp.where(
                count > 0,
                (prior - 1 + x) / (2 * (prior - 1) + jnp.maximum(count, 1)),
                old,
            )

        return FedPMState(
            delta=jax.tree.map(mode, state.delta, ones),
            ones=ones,
            count=count,
            round=state.round + 1,
        ), {}

    def model(server, own, backbone):
        return masked(weights(backbone), threshold_masks(server.delta)), backbone

    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=client,
        server=server,
        reduce=total(lift),
        batches=local.batches,
    )
    return Algorithm(init=init, exchanges=(exchange,), model=model)


def sample_masks(theta: Tree, key: jax.Array) -> Tree:
    """Bool tree, every entry true with its own probability: never at 0, always at 1."""
    leaves, structure = jax.tree.flatten(theta)

    def draw(i, p):
        return uniform(jax.random.fold_in(key, i), p.size).reshape(p.shape) < p

    return jax.tree.unflatten(structure, [draw(i, p) for i, p in enumerate(leaves)])


def threshold_masks(theta: Tree, threshold: float = 0.5) -> Tree:
    """Bool tree, true where theta is above the threshold.

    One network for the test, without chance.
    """
    checks.real("threshold", threshold, least=0, most=1)
    return jax.tree.map(lambda p: p > threshold, theta)


def masked(weights: Tree, masks: Tree) -> Tree:
    """Weights * masks; refuses trees that do not fit."""

    def shapes(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), tree)

    if problem := trees.difference(shapes(weights), shapes(masks)):
        raise ValueError(f"masks and random weights differ: {problem}")
    return jax.tree.map(lambda w, m: w * m.astype(w.dtype), weights, masks)


def signed_constants(shapes: Tree, key: jax.Array, gain: float = math.e) -> Tree:
    """A tree of random weights -c or c, c = gain / sqrt(fan_in) (gain e: authors' code).

    Args:
      shapes: arrays or shapes with at least two axes; the last is the output, all
        others together are the fan-in.
      key: the seed is all that a client must be sent.
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
        signs = jax.random.rademacher(jax.random.fold_in(key, i), shape, jnp.float32)
        return gain / math.sqrt(math.prod(shape[:-1])) * signs

    return jax.tree.unflatten(
        structure, [draw(i, leaf.shape) for i, leaf in enumerate(leaves)]
    )
