"""DP-FedAvg and DP-FTRL: client-level differential privacy.

The noise is independent from round to round, or correlated.

McMahan, Ramage, Talwar, Zhang, 2018, arXiv 1710.06963; Kairouz, McMahan, Song, Thakkar,
Thakurta, Xu, 2021, arXiv 2103.00039; Xu et al., 2023, arXiv 2305.18465; adaptive
clipping: Andrew, Thakkar, McMahan, Ramaswamy, 2021, arXiv 1905.03871.

    client:
        D_k = w - w_k after local steps                            `sends_update`
    server, m the planned cohort:
        mean = 1/m sum_k min(1, S / ||D_k||) D_k                   `clipped_mean`
        D = mean + sigma S (C^-1 z)_t / m                          `_noisy_mean`
        w <- server_optimizer(w, D)                                `_server`
    adaptive clip, b_k = [||D_k|| <= S]:
        b = (sum_k (b_k - 1/2) + N(0, sigma_b^2)) / m + 1/2        `_noisy_share`
        S <- S exp(-eta (b - gamma))                               `_next_norm`
"""

import math
from functools import partial
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
        """Self, or a TypeError or ValueError that names the value it refuses."""
        checks.real("quantile", self.quantile, least=0, most=1)
        checks.real("rate", self.rate, least=0)
        if self.count_noise is not None:
            checks.real("count_noise", self.count_noise, least=0)
        return self

    def noise_for(self, cohort_size: int) -> float:
        """The count noise sigma_b of a cohort.

        Args:
          cohort_size: clients, as planned.

        Returns:
          A standard deviation in clients.
        """
        return cohort_size / 20 if self.count_noise is None else self.count_noise


class DpFedAvgState(NamedTuple):
    """Server state.

    Attributes:
      delta: w.
      optimizer: the server optimizer's state.
      noise: the state of the noise on updates.
      clip_norm: f32[], S.
      round: i32[].
      count_key: of the noise on counts.
    """

    delta: Tree
    optimizer: Any
    noise: Any
    clip_norm: jax.Array
    round: jax.Array
    count_key: jax.Array


class _DpFedAvg(NamedTuple):
    """The hyper-parameters of `dp_fedavg`, checked."""

    server_optimizer: optax.GradientTransformation
    noise: Noise
    noise_multiplier: float  # sigma, of all that is released together
    clip_norm: float  # S of round 0
    adaptive: AdaptiveClip | None


def update_noise(noise_multiplier: float, count_noise: float) -> float:
    """The multiplier of an update beside which a noisy count is released.

    Together they spend what an update alone would with `noise_multiplier`:

        z_D = (z^-2 - (2 sigma_b)^-2)^(-1/2)

    Args:
      noise_multiplier: z, at least 0.
      count_noise: sigma_b, in clients; above z / 2.

    Returns:
      z_D; 0 where z is 0.

    Raises:
      TypeError, ValueError: a number out of bounds; a count that spends more than all.

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
    """Federated averaging with client-level differential privacy.

    Every client counts the same, and the denominator is the planned cohort: weights and
    realised numbers would leak.

    Metrics: `clip_norm` of the round; with `adaptive` also `within_clip`, the noisy
    share of clients within it; of an accounted method `epsilon`, spent so far.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; `lambda round:
        optax.adam(schedule(round))` follows a schedule.
      server_optimizer: applied to the noisy mean of (start - end); None means
        `optax.sgd(1.0)`.
      noise: `privacy.independent()` (DP-FedAvg), `binary_tree(...)` or `banded(...)`
        (DP-FTRL).
      noise_multiplier: z, standard deviation of the noise on the sum in units of the
        clip norm, of `privacy.multiplier_for` or of your own; 0 for none.
      clip_norm: S, l2 over all of delta; infinity for none (then noise_multiplier must
        be 0).
      adaptive: moves the clip norm, at the price of more noise on the update; with
        independent noise only, as the sensitivity of correlated noise holds for one
        norm.
      accounting: what a multiplier of your own is accounted for; one of
        `multiplier_for` brings it. A simulator then refuses another sampler and more
        rounds, and reports `epsilon`.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `DpFedAvgState`; clients keep nothing.

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
      McMahan et al. 2018, arXiv 1710.06963, algorithm 1; Kairouz et al. 2021, arXiv
      2103.00039, algorithm 1; adaptive clip: Andrew et al. 2021, arXiv 1905.03871,
      algorithm 1. Its first version (Thakkar, Andrew, McMahan 2019, arXiv 1905.03871v1)
      and TensorFlow Privacy's quantile query centre the count.

    Example:
      >>> from fedjax_fm import privacy
      >>> from fedjax_fm.population import samplers
      >>> sampler = samplers.poisson(1000, rate=0.02)
      >>> noise = privacy.independent()
      >>> z = privacy.multiplier_for(8.0, sampler, noise, rounds=20, delta=1e-5)
      >>> task = Task(lambda w, backbone, batch, key: ((batch["x"] - w) ** 2, {}))
      >>> how = {"noise": noise, "noise_multiplier": z, "clip_norm": 1.0}
      >>> method = dp_fedavg(task, optax.sgd(0.1), **how, local_steps=1, batch_size=8)
      >>> method.privacy.rounds, method.privacy.mechanism
      (20, 'Poisson sampling, rate 0.02')
    """
    _check(noise, noise_multiplier, clip_norm, adaptive)
    privacy = _privacy(noise, noise_multiplier, adaptive, accounting)
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    checks.server_optimizer("server_optimizer", server_optimizer)

    method = _DpFedAvg(
        server_optimizer=server_optimizer or optax.sgd(1.0),
        noise=noise,
        noise_multiplier=noise_multiplier,
        clip_norm=clip_norm,
        adaptive=adaptive,
    )
    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=sends_update(local, _counts_once),
        server=partial(_server, method),
        reduce=clipped_mean(lambda state: state.clip_norm),
        batches=local.batches,
    )
    return Algorithm(
        init=partial(_init, method), exchanges=(exchange,), privacy=privacy
    )


def _init(method: _DpFedAvg, delta, key, setting) -> DpFedAvgState:
    """The start; refuses a cohort that is too small for its count."""
    _update_multiplier(method, setting.cohort_size)
    update_key = stream(key, Stream.UPDATE_NOISE)
    return DpFedAvgState(
        delta=delta,
        optimizer=method.server_optimizer.init(delta),
        noise=method.noise.init(delta, update_key),
        clip_norm=jnp.float32(method.clip_norm),
        round=jnp.int32(0),
        count_key=stream(key, Stream.COUNT_NOISE),
    )


def _counts_once(data) -> jax.Array:
    """A client's weight: the number of its examples is private."""
    return jnp.float32(1)


def _server(method: _DpFedAvg, state: DpFedAvgState, aggregate, key):
    """Adds the noise, takes the server's step and moves the clip norm."""
    mean, within, cohort_size = aggregate.value
    noisy, noise_state = _noisy_mean(method, state, mean, cohort_size)
    updates, moments = method.server_optimizer.update(
        noisy, state.optimizer, state.delta
    )
    norm, metrics = state.clip_norm, {"clip_norm": state.clip_norm}
    if method.adaptive is not None:
        share = _noisy_share(method.adaptive, state, within, cohort_size)
        norm = _next_norm(method.adaptive, norm, share)
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


def _noisy_mean(
    method: _DpFedAvg, state: DpFedAvgState, mean: Tree, cohort_size: int
) -> tuple[Tree, Any]:
    """(D = mean + sigma S (C^-1 z)_t / m, the next state of the noise)."""
    increment, noise_state = method.noise.draw(state.noise)
    multiplier, scale = _update_multiplier(method, cohort_size), 0.0
    if _is_some(multiplier):
        scale = multiplier * state.clip_norm / cohort_size

    def added(x, z, w):
        """In float32, then in the type of delta.

        A mean rounded before its noise would move by whole steps.
        """
        return (x + scale * z).astype(w.dtype)

    return jax.tree.map(added, mean, increment, state.delta), noise_state


def _noisy_share(
    adaptive: AdaptiveClip, state: DpFedAvgState, within: jax.Array, cohort_size: int
) -> jax.Array:
    """b, the share of clients within the norm as it is released."""
    deviation = adaptive.noise_for(cohort_size) / cohort_size
    key = jax.random.fold_in(state.count_key, state.round)
    return within + deviation * jax.random.normal(key, (), jnp.float32)


def _next_norm(adaptive: AdaptiveClip, norm: jax.Array, share: jax.Array) -> jax.Array:
    """S exp(-eta (b - gamma))."""
    return norm * jnp.exp(-adaptive.rate * (share - adaptive.quantile))


def _update_multiplier(method: _DpFedAvg, cohort_size: int) -> float:
    """The multiplier of the update's noise, more where a noisy count is released."""
    if method.adaptive is None:
        return method.noise_multiplier
    try:
        count_noise = method.adaptive.noise_for(cohort_size)
        return update_noise(method.noise_multiplier, count_noise)
    except ValueError as error:
        raise ValueError(
            f"{error} (cohort_size={cohort_size}; the default is a twentieth of it)"
        ) from None


def _check(
    noise: Noise,
    noise_multiplier: float,
    clip_norm: float,
    adaptive: AdaptiveClip | None,
) -> None:
    """Refuses noise, bounds and clips that do not fit together."""
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
            "expected AdaptiveClip(quantile, rate, count_noise) or None, "
            f"got adaptive={adaptive!r}"
        )
    adaptive.checked()
    if not noise.is_independent:
        raise ValueError(
            "an adaptive clip norm needs independent noise: a correlated one "
            "spans rounds of one norm"
        )
    if not _is_number(noise_multiplier):
        raise TypeError(
            "an adaptive clip divides a noise_multiplier that is a number: "
            "it cannot be swept"
        )
    if adaptive.count_noise is not None:
        update_noise(noise_multiplier, adaptive.count_noise)


def _privacy(
    noise: Noise,
    noise_multiplier: float,
    adaptive: AdaptiveClip | None,
    accounting: Accounting | None,
) -> Privacy:
    """What a simulator holds the method to."""
    released = ("clip_norm",) if adaptive is None else ("clip_norm", "within_clip")
    if not _is_number(noise_multiplier):  # a lane of a sweep: the host accounts for it
        return privacy_of(None, 0.0, released)
    accounted = accounted_for(noise, noise_multiplier, accounting)
    if noise_multiplier == 0:
        return Privacy(mechanism="none: noise_multiplier=0")
    return privacy_of(accounted, noise_multiplier, released)


def _is_number(value: Any) -> bool:
    """Whether it is known while the round is traced; a sweep's is not."""
    return not isinstance(value, Tracer)


def _is_some(multiplier: Any) -> bool:
    """Whether there is noise, as far as is known of a value that is traced."""
    return not _is_number(multiplier) or multiplier > 0
