"""Hierarchical averaging: clients, edge servers, and a server above them.

Liu, Zhang, Song and Letaief, Client-Edge-Cloud Hierarchical Federated Learning, 2019,
arXiv 1905.06641, with an aggregation at every tier in every round.

    client k:  sends D_k = w - w_k to the edge server of its group
    tier 1:    D_g = sum_k n_k D_k / n_g,  n_g = sum_k n_k over the group; sends C_1(D_g)
    tier 2:    the same of the groups below it, and so on
    server:    w <- server_optimizer(w, mean of the last tier by n)

Weighted means of weighted means are the mean of all, so that without lossy channels it is
FedAvg; what differs is which wire carries how much.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer, local_training, sends_update
from fedjax_fm.algorithms.parts import in_f32
from fedjax_fm.algorithms.reduce import kept, mean_of
from fedjax_fm.channels.arguments import checked_channel
from fedjax_fm.channels.identity import identity
from fedjax_fm.types import Algorithm, Channel, Exchange, Setting, Stack, Task, Tree


class Tier(NamedTuple):
    """Aggregators of one height.

    Attributes:
      groups: how many there are.
      channel: what each of them sends its mean through, upwards.
      members: i32[units below], the aggregator of each client (of the first tier) or of
        each aggregator below; None cuts them into runs of equal length.
    """

    groups: int
    channel: Channel = identity()
    members: Sequence[int] | None = None


class HierarchicalState(NamedTuple):
    """Server state.

    Attributes:
      delta: w.
      optimizer: the server optimizer's state.
      channels: of each tier, the states of its aggregators' channels, leaves [G, ...].
    """

    delta: Tree
    optimizer: Any
    channels: tuple


class _Up(NamedTuple):
    """What one tier hands to the next."""

    values: Tree  # leaves [units, ...]
    weights: jax.Array  # f32[units], 0 for those without an upload


def hierarchical(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    tiers: Sequence[Tier] = (),
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAvg through tiers of aggregators, each with a channel of its own.

    Sends: clients, as for `fedavg`, to and from their edge servers: `uplink_bytes` and
    `downlink_bytes`. The tiers above stand in the metrics `tier_1_uplink_bytes`,
    `tier_1_downlink_bytes`, `tier_2_...`: what the aggregators of the tier send upwards
    in packed buffers, and the model that each of them is sent, both of those with a
    client whose upload arrived. These are f32: exact up to 16 MB, to seven digits beyond;
    `tier_1_senders` is always exact.

    Memory: all uploads of the cohort at once.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round.
      server_optimizer: as for `fedavg`; None means `optax.sgd(1.0)`.
      tiers: from the clients upwards, without the server; none is FedAvg.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `HierarchicalState`; clients keep nothing.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.
      ValueError: when a simulation begins: `members` are not as many as there are units
        below, or name an aggregator that is not there.

    References:
      Liu et al. 2019, arXiv 1905.06641, algorithm 1 with one edge round a cloud round.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> method = hierarchical(
      ...     task, optax.sgd(0.5), tiers=[Tier(2)], local_steps=1, batch_size=4
      ... )
      >>> clients = [{"x": jnp.full(n, float(n))} for n in (1, 2, 3, 4)]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=4)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> state.delta.tolist()  # 0.5 (1 + 4 + 9 + 16) / 10
      1.5
      >>> metrics["tier_1_uplink_bytes"].tolist(), metrics["uplink_bytes"].tolist()
      ([8.0], [16])
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    checks.server_optimizer("server_optimizer", server_optimizer)
    heights = tuple(_checked(tier, i) for i, tier in enumerate(tiers, start=1))
    optimizer = server_optimizer or optax.sgd(1.0)
    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=sends_update(local),
        server=partial(_server, optimizer, heights),
        reduce=kept()._replace(finish=_with_size),
        batches=local.batches,
    )
    return Algorithm(init=partial(_init, optimizer, heights), exchanges=(exchange,))


class _Cohort(NamedTuple):
    """A cohort's uploads, and how many clients there are in all."""

    stack: Stack
    n_clients: int


def _with_size(found: Stack, setting: Setting) -> _Cohort:
    return _Cohort(found, setting.n_clients)


def _checked(tier: Any, height: int) -> Tier:
    """A tier whose numbers make sense."""
    name = f"tiers[{height - 1}]"
    checks.instance(name, tier, Tier, "write hierarchical.Tier(groups=4)")
    checks.whole(f"{name}.groups", tier.groups, least=1)
    checked_channel(f"{name}.channel", tier.channel)
    return tier


def _members(tiers: tuple[Tier, ...], n_clients: int) -> list[np.ndarray]:
    """i32[units below] of each tier: who aggregates them."""
    found, below = [], n_clients
    for height, tier in enumerate(tiers, start=1):
        if tier.members is None:
            own = np.arange(below) * tier.groups // below
        else:
            own = np.asarray(tier.members)
        name = f"tiers[{height - 1}].members"
        if own.shape != (below,) or not np.issubdtype(own.dtype, np.integer):
            raise ValueError(
                f"expected {name} as {below} whole numbers, the aggregator of each unit "
                f"below, got {own.dtype}{list(own.shape)}"
            )
        if own.min() < 0 or own.max() >= tier.groups:
            raise ValueError(
                f"expected {name} from 0 to {tier.groups - 1}, got {own.min()} to "
                f"{own.max()}"
            )
        found.append(own.astype(np.int32))
        below = tier.groups
    return found


def _init(
    optimizer: optax.GradientTransformation,
    tiers: tuple[Tier, ...],
    delta: Tree,
    key: jax.Array,
    setting: Setting,
) -> HierarchicalState:
    """The model, and the channels of all aggregators."""
    _members(tiers, setting.n_clients)  # refuses what does not fit

    def states(tier: Tier) -> Any:
        one = tier.channel.init(jax.eval_shape(in_f32, delta))
        return jax.tree.map(lambda x: jnp.stack([x] * tier.groups), one)

    return HierarchicalState(
        delta=delta,
        optimizer=optimizer.init(in_f32(delta)),
        channels=tuple(states(tier) for tier in tiers),
    )


def _server(
    optimizer: optax.GradientTransformation,
    tiers: tuple[Tier, ...],
    state: HierarchicalState,
    aggregate,
    key: jax.Array,
):
    """Tier by tier upwards, then the server's step."""
    cohort: _Cohort = aggregate.value
    found, ids = cohort.stack, cohort.stack.ids
    values, weights = found.values
    up = _Up(in_f32(values), jnp.where(found.active, weights, 0.0))
    channels, metrics, units = [], {}, jnp.clip(ids, 0, cohort.n_clients - 1)
    for height, members in enumerate(_members(tiers, cohort.n_clients), start=1):
        tier, own = tiers[height - 1], state.channels[height - 1]
        # Of the first tier the units are the cohort's clients, above all aggregators.
        groups = jnp.asarray(members)[units] if height == 1 else jnp.asarray(members)
        up = _means(up, groups, tier.groups)
        tier_key = jax.random.fold_in(key, height)
        up, own, bits = _sent(tier, own, up, tier_key)
        channels.append(own)
        metrics |= _bill(height, up, bits, state.delta)
    total = jax.tree.map(lambda x: jnp.tensordot(up.weights, x, axes=1), up.values)
    mean = mean_of(total, jnp.sum(up.weights))
    updates, moments = optimizer.update(mean, state.optimizer, in_f32(state.delta))
    after = HierarchicalState(
        delta=optax.apply_updates(state.delta, updates),
        optimizer=moments,
        channels=tuple(channels),
    )
    return after, metrics


def _means(up: _Up, groups: jax.Array, n: int) -> _Up:
    """The weighted mean of each group; zeros of one without an upload."""
    weights = jax.ops.segment_sum(up.weights, groups, n)
    divisor = jnp.where(weights > 0, weights, 1.0)

    def mean(x):
        shape = (-1, *[1] * (x.ndim - 1))
        # An upload that did not arrive is zeros; its weight is 0, too.
        total = jax.ops.segment_sum(up.weights.reshape(shape) * x, groups, n)
        return total / divisor.reshape(shape)

    return _Up(jax.tree.map(mean, up.values), weights)


def _sent(
    tier: Tier, states: Any, up: _Up, key: jax.Array
) -> tuple[_Up, Any, jax.Array]:
    """The tier's means as they are received, its channels' states, bits of each."""
    channel = tier.channel

    def one(state, value, weight, key):
        payload, after = channel.encode(state, value, key)
        # One without an upload sends nothing and keeps what it has.
        kept_state = jax.tree.map(
            lambda new, old: jnp.where(weight > 0, new, old), after, state
        )
        bits = jnp.asarray(channel.bits(payload), jnp.uint32)
        received = channel.decode(payload)
        return received, kept_state, jnp.where(weight > 0, bits, 0)

    keys = jax.random.split(key, tier.groups)
    values, states, bits = jax.vmap(one)(states, up.values, up.weights, keys)
    return _Up(values, up.weights), states, bits


def _bill(height: int, up: _Up, bits: jax.Array, delta: Tree) -> dict[str, jax.Array]:
    """What the aggregators of one tier have sent and were sent."""
    senders = jnp.sum(up.weights > 0).astype(jnp.float32)
    whole_bytes = (bits + 7) // 8
    model = identity()
    payload, _ = model.encode((), delta, jax.random.key(0))
    n_bytes = (model.bits(payload) + 7) // 8
    return {
        f"tier_{height}_uplink_bytes": jnp.sum(whole_bytes.astype(jnp.float32)),
        f"tier_{height}_downlink_bytes": senders * n_bytes,
        f"tier_{height}_senders": senders,
    }
