"""DP-FedAvg and DP-FTRL: client-level differential privacy, with independent or correlated noise.

McMahan, Ramage, Talwar, Zhang, 2018, arXiv 1710.06963; Kairouz, McMahan, Song, Thakkar,
Thakurta, Xu, 2021, arXiv 2103.00039; Xu et al., 2023, arXiv 2305.18465; adaptive
clipping: Andrew, Thakkar, McMahan, Ramaswamy, 2021, arXiv 1905.03871.

    client:  D_k = w - w_k after local steps
    server:  D = (sum_k min(1, S / ||D_k||) D_k + sigma S (C^-1 z)_t) / m,  m planned;
      w <- server_optimizer(w, D)
    clip:    S <- S exp(-eta (b - gamma)),  b = (sum_k (b_k - 1/2) + N(0, sigma_b^2)) /
      m + 1/2,  b_k = [||D_k|| <= S]
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer, local_training, sends_update
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.privacy.accounting import (
    Accounting,
    accounted_for,
    check_noise,
    privacy_of,
)
from fedjax_fm.privacy.clipping import clipped_mean
from fedjax_fm.privacy.noise import Noise
from fedjax_fm.types import (
    Algorithm,
    Exchange,
    Privacy,
    Task,
    Tree,
)


class AdaptiveClip(NamedTuple):
    """The clip norm follows the `quantile` of the clients' norms.

    Attributes:
      quantile: gamma, 0 to 1.
      rate: eta, at least 0.
      count_noise: sigma_b, standard deviation of the noise on the number of clients
        within the norm, in clients; None for a twentieth of the cohort.
    """

    quantile: float = 0.5
    rate: float = 0.2
    count_noise: float | None = None

    def checked(self) -> "AdaptiveClip":
        """Self, or an error that names the value that makes no sense."""
        checks.real("quantile", self.quantile, least=0, most=1)
        checks.real("rate", self.rate, least=0)
        if self.count_noise is not None:
            checks.real("count_noise", self.count_noise, least=0)
        return self

    def noise_for(self, cohort_size: int) -> float:
        """sigma_b of a cohort."""
        return cohort_size / 20 if self.count_noise is None else self.count_noise


class DpFedAvgState(NamedTuple):
    """Server state; the noise is part of it."""

    delta: Tree
    optimizer: Any
    noise: Any
    clip_norm: jax.Array  # f32[]
    round: jax.Array  # i32[]
    count_key: jax.Array  # of the noise on counts


def update_noise(noise_multiplier: float, count_noise: float) -> float:
    """The multiplier that the update needs beside a noisy count, to be worth
    `noise_multiplier` together.

        z_D = (z^-2 - (2 sigma_b)^-2)^(-1/2)

    Args:
      noise_multiplier: z, at least 0.
      count_noise: sigma_b, in clients; above z / 2.

    Formal guarantees:
      One client moves the update by at most S and the centred count by at most 1/2. In
      units of their noise these are 1 / z_D and 1 / (2 sigma_b), together 1 / z: what
      one Gaussian of multiplier z gives. One client replaced moves both by twice that.

    References:
      Andrew et al. 2021, arXiv 1905.03871, theorem 1.

    Example:
      >>> round(update_noise(1.0, 1.0), 4)
      1.1547
    """
    checks.real("noise_multiplier", noise_multiplier, least=0)
    checks.real("count_noise", count_noise, least=0)
    if noise_multiplier == 0:
        return 0.0
    if not 2 * count_noise > noise_multiplier:
        raise ValueError(
            f"a count with count_noise={count_noise} spends more than "
            f"noise_multiplier={noise_multiplier} allows in all; expected "
            f"count_noise > {noise_multiplier / 2:g}"
        )
    return (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5


def dp_fedavg(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    noise: Noise,
    noise_multiplier: float,
    clip_norm: float,
    adaptive: AdaptiveClip | None = None,
    accounting: Accounting | None = None,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Federated averaging whose releases are differentially private at the level of clients.

    Every client counts the same, and the denominator is the planned cohort: weights and
    realised numbers would leak.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; `lambda round:
        optax.adam(schedule(round))` follows a schedule.
      server_optimizer: applied to the noisy mean of (start - end); None means `optax.sgd(1.0)`.
      noise: `privacy.independent()` (DP-FedAvg), `binary_tree(...)` or `banded(...)` (DP-FTRL).
      noise_multiplier: z, standard deviation of the noise on the sum in units of the
        clip norm, of `privacy.multiplier_for` or of your own; 0 for none.
      clip_norm: S, l2 over all of delta; infinity for none (then noise_multiplier must be 0).
      adaptive: moves the clip norm, at the price of more noise on the update; with
        independent noise only, as the sensitivity of correlated noise holds for one
        norm.
      accounting: what a multiplier of your own is accounted for; one of
        `multiplier_for` brings it. A simulator then refuses another sampler and more
        rounds, and reports `epsilon`.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Metrics: `clip_norm` of the round; with `adaptive` also `within_clip`, the noisy
    share of clients within it; of an accounted method `epsilon`, spent so far.

    Formal guarantees:
      With the law, rounds and delta it was accounted for, what `privacy.spent` says
      holds of everything that is released together: the server's state after each round
      (delta, the optimizer's moments, the clip norm), the metrics `clip_norm`,
      `within_clip` and `epsilon`, and what is computed from them, on any channel down.

      Whatever a client sends, after any channel and whatever state it keeps (error
      feedback), contributes at most the clip norm and half a count. Stragglers and
      drop-outs contribute less or nothing. Clients that are not drawn by the law, or
      twice in a round, are beyond it.

      Not covered are the diagnostics of the simulator, which a deployment would not
      see: `loss` and the task's metrics, `clients`, `examples`, bytes, clients' states,
      evaluations on clients' data, and whether a run stopped because a client was not
      finite or a cohort too large. `Algorithm.privacy.released` names the metrics that
      are covered.

      The noise is drawn from the run's seed by jax.random in float32: who knows the
      seed can take it off, and two runs with one seed share it. Release one run a seed,
      and account for all that are. Choosing among runs by data (a sweep) spends too.

    Raises:
      TypeError, ValueError: a number out of bounds; noise without a bound; a count that
        spends more than all; noise that is not what `noise_multiplier` was made for.

    References:
      Thakkar, Andrew, McMahan 2019, arXiv 1905.03871v1, and TensorFlow Privacy's
      quantile query, which centre the count.

    Example:
      >>> from fedjax_fm import privacy
      >>> from fedjax_fm.population import samplers
      >>> sampler = samplers.poisson(1000, rate=0.02)
      >>> z = privacy.multiplier_for(8.0, sampler, privacy.independent(), rounds=20, delta=1e-5)
      >>> task = Task(lambda delta, backbone, batch, key: ((batch["x"] - delta) ** 2, {}))
      >>> how = {"noise": privacy.independent(), "noise_multiplier": z, "clip_norm": 1.0}
      >>> method = dp_fedavg(task, optax.sgd(0.1), **how, local_steps=1, batch_size=8)
      >>> method.privacy.rounds, method.privacy.mechanism
      (20, 'Poisson sampling, rate 0.02')
    """
    _check(noise, noise_multiplier, clip_norm, adaptive)
    privacy = _privacy(noise, noise_multiplier, adaptive, accounting)
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    checks.server_optimizer("server_optimizer", server_optimizer)

    def init(delta, key, setting):
        _multiplier(
            noise_multiplier, adaptive, setting.cohort_size
        )  # refuses a cohort too small for its count
        return DpFedAvgState(
            delta=delta,
            optimizer=optimizer.init(delta),
            noise=noise.init(delta, stream(key, Stream.UPDATE_NOISE)),
            clip_norm=jnp.float32(clip_norm),
            round=jnp.int32(0),
            count_key=stream(key, Stream.COUNT_NOISE),
        )

    def counts_once(data):  # the number of a client's examples is private
        return jnp.float32(1)

    def server(state, aggregate, key):
        mean, within, cohort_size = aggregate.value
        increment, noise_state = noise.draw(state.noise)
        multiplier = _multiplier(noise_multiplier, adaptive, cohort_size)
        scale = (
            multiplier * state.clip_norm / cohort_size if _is_some(multiplier) else 0.0
        )
        noisy = jax.tree.map(
            lambda x, z, w: _added(x, scale * z, w), mean, increment, state.delta
        )
        updates, moments = optimizer.update(noisy, state.optimizer, state.delta)
        norm, metrics = state.clip_norm, {"clip_norm": state.clip_norm}
        if adaptive is not None:
            share = _noisy_share(
                state, within, adaptive.noise_for(cohort_size) / cohort_size
            )
            norm = norm * jnp.exp(-adaptive.rate * (share - adaptive.quantile))
            metrics["within_clip"] = share
        after = DpFedAvgState(
            delta=optax.apply_updates(state.delta, updates),
            optimizer=moments,
            noise=noise_state,
            clip_norm=norm,
            round=state.round + 1,
            count_key=state.count_key,
        )
        return after, metrics

    reduce = clipped_mean(lambda state: state.clip_norm)
    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=sends_update(local, counts_once),
        server=server,
        reduce=reduce,
        batches=local.batches,
    )
    return Algorithm(init=init, exchanges=(exchange,), privacy=privacy)


def _check(
    noise: Noise,
    noise_multiplier: float,
    clip_norm: float,
    adaptive: AdaptiveClip | None,
) -> None:
    check_noise(noise)
    checks.real("noise_multiplier", noise_multiplier, least=0)
    checks.real("clip_norm", clip_norm, above=0, infinite=True)
    unbounded = _is_number(clip_norm) and math.isinf(clip_norm)
    if unbounded and (adaptive is not None or _is_some(noise_multiplier)):
        raise ValueError(
            f"clip_norm={clip_norm} bounds nothing: give noise_multiplier=0 and "
            "no adaptive clip, or a finite norm"
        )
    if adaptive is None:
        return
    if not isinstance(adaptive, AdaptiveClip):
        raise TypeError(
            f"expected AdaptiveClip(quantile, rate, count_noise) or None, got adaptive={adaptive!r}"
        )
    adaptive.checked()
    if not noise.is_independent:
        raise ValueError(
            "an adaptive clip norm needs independent noise: a correlated one "
            "spans rounds of one norm"
        )
    if not _is_number(noise_multiplier):
        raise TypeError(
            "an adaptive clip divides a noise_multiplier that is a number: it cannot be swept"
        )
    if adaptive.count_noise is not None:
        update_noise(noise_multiplier, adaptive.count_noise)


def _privacy(
    noise: Noise,
    noise_multiplier: float,
    adaptive: AdaptiveClip | None,
    accounting: Accounting | None,
) -> Privacy:
    released = ("clip_norm",) if adaptive is None else ("clip_norm", "within_clip")
    if not _is_number(
        noise_multiplier
    ):  # a lane of a sweep, which asks the host what is accounted for
        return privacy_of(None, 0.0, released)
    accounted = accounted_for(noise, noise_multiplier, accounting)
    if noise_multiplier == 0:
        return Privacy(mechanism="none: noise_multiplier=0")
    return privacy_of(accounted, noise_multiplier, released)


def _multiplier(
    noise_multiplier: float, adaptive: AdaptiveClip | None, cohort_size: int
) -> float:
    """Of the update's noise."""
    if adaptive is None:
        return noise_multiplier
    try:
        return update_noise(noise_multiplier, adaptive.noise_for(cohort_size))
    except ValueError as error:
        raise ValueError(
            f"{error} (cohort_size={cohort_size}; the default is a twentieth of it)"
        ) from None


def _noisy_share(
    state: DpFedAvgState, within: jax.Array, deviation: float
) -> jax.Array:
    """The share of clients within the norm as it is released."""
    key = jax.random.fold_in(state.count_key, state.round)
    return within + deviation * jax.random.normal(key, (), jnp.float32)


def _added(mean: jax.Array, noise: jax.Array, like: jax.Array) -> jax.Array:
    """Mean and noise in float32, then in the type of delta.

    A mean rounded before its noise moves by whole steps.
    """
    return (mean + noise).astype(like.dtype)


def _is_number(value: Any) -> bool:
    return not isinstance(value, Tracer)


def _is_some(multiplier: Any) -> bool:
    """Whether there is noise, as far as is known of a value that is traced."""
    return not _is_number(multiplier) or multiplier > 0
