"""DP-FedAvg and DP-FTRL: client-level differential privacy, with independent or correlated noise.

McMahan, Ramage, Talwar, Zhang, 2018, arXiv 1710.06963; Kairouz, McMahan, Song, Thakkar, Thakurta, Xu, 2021, arXiv
2103.00039; Xu et al., 2023, arXiv 2305.18465; adaptive clipping: Andrew, Thakkar, McMahan, Ramaswamy, 2021, arXiv 1905.03871.

    client:  D_k = w - w_k after local steps
    server:  D = (sum_k min(1, S / ||D_k||) D_k + sigma S (C^-1 z)_t) / m,  m planned;  w <- server_optimizer(w, D)
    clip:    S <- S exp(-eta (b - gamma)),  b = (clients within S + N(0, sigma_b^2)) / m
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import trees
from fedjax_fm.algorithms.local import ClientOptimizer, train
from fedjax_fm.privacy.clipping import clipped_mean
from fedjax_fm.privacy.noise import Noise
from fedjax_fm.types import Algorithm, Batches, ClientOutput, Exchange, Task, Tree


class AdaptiveClip(NamedTuple):
    """The clip norm follows the `quantile` of the clients' norms."""

    quantile: float = 0.5  # gamma
    rate: float = 0.2  # eta
    count_noise: float | None = None  # sigma_b, in clients; None: a twentieth of the cohort


class DpFedAvgState(NamedTuple):
    """Server state; the noise is part of it."""

    delta: Tree
    optimizer: Any
    noise: Any
    clip_norm: jax.Array  # f32[]
    round: jax.Array  # i32[]
    count_key: jax.Array  # of the noise on counts


def update_noise(noise_multiplier: float, count_noise: float) -> float:
    """The multiplier that the update needs, so that together with the noisy count it is worth `noise_multiplier`:
    (z^-2 - (2 sigma_b)^-2)^(-1/2) (Andrew et al. 2021, theorem 1)."""
    if noise_multiplier == 0:
        return 0.0
    left = noise_multiplier**-2 - (2 * count_noise) ** -2
    if left <= 0:
        raise ValueError(
            f"a count with noise {count_noise} spends more than noise_multiplier={noise_multiplier} allows in all; "
            f"expected count_noise > {noise_multiplier / 2}"
        )
    return left**-0.5


def dp_fedavg(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    noise: Noise,
    noise_multiplier: float,
    clip_norm: float,
    adaptive: AdaptiveClip | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Federated averaging whose every release is differentially private at the level of clients.

    Every client counts the same, and the denominator is the planned cohort: weights and realised numbers would leak.

    Args:
      noise: `privacy.independent()` (DP-FedAvg), `binary_tree(...)` or `banded(...)` (DP-FTRL).
      noise_multiplier: z, standard deviation of the noise on the sum in units of the clip norm; what the privacy is,
        `privacy.spent(sampler, noise, noise_multiplier, rounds, delta)` says.
      clip_norm: S, l2 over all of delta; infinity for none (then noise_multiplier must be 0).
      adaptive: moves the clip norm, at the price of more noise on the update; with independent noise only, as the
        sensitivity of correlated noise holds for one norm.

    Metrics: `clip_norm` of the round; with `adaptive` also `within_clip`, the noisy share of clients within it.
    """
    if noise_multiplier < 0 or not clip_norm > 0:
        raise ValueError(f"expected noise_multiplier >= 0 and clip_norm > 0, got {noise_multiplier} and {clip_norm}")
    if math.isinf(clip_norm) and (noise_multiplier > 0 or adaptive):
        raise ValueError("clip_norm=inf bounds nothing: give noise_multiplier=0 and no adaptive clip, or a finite norm")
    if adaptive and not noise.is_independent:
        raise ValueError("an adaptive clip norm needs independent noise: a correlated one spans rounds of one norm")
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    batches = Batches(batch_size, epochs, local_steps).checked()

    def init(delta, key, setting):
        noise_key, count_key = jax.random.split(key)
        norm = jnp.float32(clip_norm)
        return DpFedAvgState(delta, optimizer.init(delta), noise.init(delta, noise_key), norm, jnp.int32(0), count_key)

    def client(backbone, message):
        def one(delta, state, data, key):
            trained, metrics = train(task, client_optimizer, delta, backbone, data, key)
            return ClientOutput(trees.subtract(delta, trained), jnp.float32(1), state, metrics)

        return one

    def server(state, aggregate, key):
        mean, within, cohort_size = aggregate.value
        increment, noise_state = noise.draw(state.noise)
        multiplier, count_noise = noise_multiplier, 0.0
        if adaptive:
            count_noise = cohort_size / 20 if adaptive.count_noise is None else adaptive.count_noise
            multiplier = update_noise(noise_multiplier, count_noise)
        scale = multiplier * state.clip_norm / cohort_size if multiplier else 0.0
        noisy = jax.tree.map(lambda x, y: x + (scale * y).astype(x.dtype), mean, increment)
        updates, moments = optimizer.update(noisy, state.optimizer, state.delta)
        norm, metrics = state.clip_norm, {"clip_norm": state.clip_norm}
        if adaptive:
            counted = jax.random.normal(jax.random.fold_in(state.count_key, state.round))
            metrics["within_clip"] = within + count_noise / cohort_size * counted
            norm = norm * jnp.exp(-adaptive.rate * (metrics["within_clip"] - adaptive.quantile))
        after = optax.apply_updates(state.delta, updates)
        return DpFedAvgState(after, moments, noise_state, norm, state.round + 1, state.count_key), metrics

    reduce = clipped_mean(lambda state: state.clip_norm)
    exchange = Exchange(lambda state: state.delta, client, server, reduce, batches)
    return Algorithm(init, (exchange,))
