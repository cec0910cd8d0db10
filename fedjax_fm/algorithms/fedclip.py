"""FedCLIP: Fast Generalization and Personalization for CLIP in Federated Learning.

Lu, Hu, Wang, Xie, 2023, arXiv 2302.13485. Clients hold pairs of images and texts; all of
CLIP is frozen but attention adapters (`peft.attention_adapter`), w:

    client:  w_k <- w;  for each batch of two pairs or more:
             w_k <- optimizer(w_k, the symmetric cross-entropy of its similarities)
             sends w - w_k
    server:  w <- w - mean over the clients (w - w_k)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.compressed import counts_once
from fedjax_fm.algorithms.local import ClientOptimizer, Sums, optimizer_of, over_steps
from fedjax_fm.algorithms.losses import check_trainable
from fedjax_fm.algorithms.parts import DeltaState
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.tasks.contrastive import PairFeatures, contrastive_losses
from fedjax_fm.types import Algorithm, Batches, ClientOutput, Exchange, Tree

Features = Callable[[Tree, Tree, dict[str, jax.Array], Any], PairFeatures]
NUMBER = jax.ShapeDtypeStruct((), jnp.float32)


class _FedCLIP(NamedTuple):
    """What `fedclip` was given, checked."""

    features: Features
    client_optimizer: ClientOptimizer
    weighted: bool


def fedclip(
    features: Features,
    client_optimizer: ClientOptimizer,
    *,
    weighted: bool = False,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages adapters that clients train by the contrastive loss of their own pairs.

    Sends: down w, up w - w_k; of one tower's adapter with d features 2 (d^2 + d) numbers
    each. Images and texts stay with the client.

    The negatives of a pair are the other pairs of its batch, also those with the same
    text, as in the authors' code. A batch of one pair has none: it is skipped, moves
    neither adapters nor optimizer, and does not count in the metric `loss`.

    Args:
      features: `(delta, backbone, batch, key) -> PairFeatures`, as
        `tasks.pair_features(adapted)` makes it.
      client_optimizer: starts afresh each round; the authors' is
        `optax.adamw(5e-5, b2=0.98, eps=1e-6, weight_decay=0.2)`.
      weighted: whether clients count by their pairs; the authors count each as one.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: pairs a step, at least 2.

    Returns:
      An algorithm whose server state is `DeltaState`; clients keep nothing. Scores by
      names are those of `tasks.zero_shot`.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      Lu et al. 2023, arXiv 2302.13485, algorithm 1;
      github.com/microsoft/PersonalizedFL, fedclip.

    Example:
      >>> import fedjax_fm as ffm
      >>> def features(w, backbone, batch, key):
      ...     return PairFeatures(w * batch["image"], batch["text"], jnp.float32(1))
      >>> how = {"local_steps": 4, "batch_size": 2}
      >>> method = fedclip(features, optax.sgd(1.0), **how)
      >>> pairs = {"image": jnp.array([[1.0, 9], [-1, 9]]), "text": jnp.eye(2)}
      >>> population = ffm.Population.from_clients([pairs, pairs])
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.ones(2)), 9)
      >>> metrics["loss"][-1] < metrics["loss"][0]  # the second feature is ignored
      np.True_
    """
    if not callable(features):
        raise TypeError(
            "expected features(delta, backbone, batch, key) -> PairFeatures, got "
            f"features={checks.shown(features)}"
        )
    checks.client_optimizer("client_optimizer", client_optimizer)
    checks.flag("weighted", weighted)
    checks.whole("batch_size", batch_size, least=2)
    method = _FedCLIP(features, client_optimizer, weighted)

    def server(state, aggregate, key):
        return DeltaState(trees.subtract(state.delta, aggregate.value)), {}

    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=_client(method),
        server=server,
        reduce=weighted_mean(),
        batches=Batches(batch_size, epochs, local_steps).checked(),
    )
    return Algorithm(
        init=lambda delta, key, setting: DeltaState(delta), exchanges=(exchange,)
    )


def _client(method: _FedCLIP) -> Callable:
    """`Exchange.client`: local steps of the adapters."""

    def client(backbone, message):
        def one(adapters, state, data, key):
            trained, metrics = _trained(method, adapters, backbone, data=data, key=key)
            examples = data.n_examples.astype(jnp.float32)
            return ClientOutput(
                upload=trees.subtract(adapters, trained),
                weight=examples if method.weighted else counts_once(data),
                state=state,
                metrics=metrics,
            )

        return one

    return client


def _trained(
    method: _FedCLIP, adapters: Tree, backbone: Tree, data, key
) -> tuple[Tree, Sums]:
    """The adapters after all steps, and the loss over pairs that had a negative."""
    check_trainable(adapters)
    optimizer = optimizer_of(method.client_optimizer, data.round)

    def mean_loss(adapters, batch, mask, key):
        found = method.features(adapters, backbone, batch, key)
        losses = contrastive_losses(found.similarities(), mask)
        total = jnp.sum(losses)
        return total / jnp.maximum(jnp.sum(mask), 1), total

    def step(i, carry):
        batch, mask = data.batch(i)
        step_key = jax.random.fold_in(key, i)
        gradient = jax.grad(mean_loss, has_aux=True)
        gradients, total = gradient(carry[0], batch, mask, step_key)
        updates, moments = optimizer.update(gradients, carry[1], carry[0])
        after = (optax.apply_updates(carry[0], updates), moments)
        n_pairs = jnp.sum(mask)
        has_negatives = n_pairs > 1
        count = jnp.where(has_negatives, n_pairs, 0).astype(jnp.float32)
        return trees.select(has_negatives, after, carry), {"loss": (total, count)}

    start = (adapters, optimizer.init(adapters))
    (trained, _), sums = over_steps(data, step, start, {"loss": (NUMBER, NUMBER)})
    return trained, sums
