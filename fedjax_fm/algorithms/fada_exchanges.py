"""The exchanges of a round of FADA, in their order, and what clients do in them."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.compressed import counts_once
from fedjax_fm.algorithms.fada_losses import spread_in_clusters
from fedjax_fm.algorithms.fada_networks import EXTRACTOR, OF_TARGET
from fedjax_fm.algorithms.fada_parts import FADAClient, FADAMethod
from fedjax_fm.algorithms.fada_server import adapt, by_client, tell
from fedjax_fm.algorithms.fada_source import ALIGN, Rows, chosen
from fedjax_fm.algorithms.reduce import kept, nothing
from fedjax_fm.types import ClientOutput, Exchange, Repeat


def exchanges_of(method: FADAMethod) -> tuple[Exchange | Repeat, ...]:
    """All of them.

    Args:
      method: the hyper-parameters.
    """
    step = _features(method), _source_step(method), _target_step(method)
    loop = Repeat(method.local_steps, step)
    return _begin(method), loop, _collect(method), _weigh(method)


def _begin(method: FADAMethod) -> Exchange:
    """The target gets its parts, and sources do if they begin with them."""

    def one(message, mine, data, key):
        parts = {**mine.parts, **message}
        state = mine._replace(parts=parts, start=message)
        return ClientOutput(upload=(), weight=jnp.float32(1), state=state)

    return Exchange(
        broadcast=lambda state: chosen(state.delta, OF_TARGET),
        client=_each(one),
        server=lambda state, aggregate, key: (state, {}),
        reduce=nothing(),
        batches=method.batches,
        selects=_the_target(method) if method.begin == "own" else None,
    )


def _features(method: FADAMethod) -> Exchange:
    """Up the features of a step; the identifiers learn from them."""

    def client(backbone, message):
        def one(message, mine, data, key):
            rows = _rows(method, data, data.repeat, key)
            features = _seen(method, mine.parts[EXTRACTOR], backbone, rows)
            upload = features, rows.mask
            return ClientOutput(upload=upload, weight=jnp.float32(1), state=mine)

        return one

    return Exchange(
        broadcast=lambda state: (),
        client=client,
        server=partial(tell, method),
        reduce=kept(),
        batches=method.batches,
        same_entries=False,  # of other examples each time
    )


def _source_step(method: FADAMethod) -> Exchange:
    """Down the gradients of a source's features; its own losses."""

    def client(backbone, message):
        def one(gradients, mine, data, key):
            i = data.repeat
            rows = _rows(method, data, i, key)
            moved = _aligned(method, mine, backbone, rows=rows, gradients=gradients)
            after = method.source.run(moved.parts, moved.moments, backbone, rows)
            parts, moments, loss = after
            state = mine._replace(parts=parts, moments=moments)
            count = jnp.sum(rows.mask).astype(jnp.float32)
            return ClientOutput(
                upload=(),
                weight=jnp.float32(1),
                state=trees.select(i < data.n_steps, state, mine),
                metrics={"loss": (loss * count, count)},
            )

        return one

    def selects(message, client, key):
        return client != method.target

    return _gradients_down(method, client)._replace(selects=selects)


def _target_step(method: FADAMethod) -> Exchange:
    """Down the gradients of the target's features, of all sources together."""

    def client(backbone, message):
        def one(gradients, mine, data, key):
            i = data.repeat
            rows = _rows(method, data, i, key)
            moved = _aligned(method, mine, backbone, rows=rows, gradients=gradients)
            state = trees.select(i < data.n_steps, moved, mine)
            return ClientOutput(upload=(), weight=jnp.float32(1), state=state)

        return one

    return _gradients_down(method, client)._replace(selects=_the_target(method))


def _gradients_down(method: FADAMethod, client: Callable) -> Exchange:
    """Each client is sent its own rows of the gradients; nothing goes up."""
    return Exchange(
        broadcast=lambda state: state.gradients,
        client=client,
        server=lambda state, aggregate, key: (state, {}),
        reduce=nothing(),
        batches=method.batches,
        address=lambda message, state, client: message[client],
    )


def _collect(method: FADAMethod) -> Exchange:
    """Up the round's change of every source."""

    def one(message, mine, data, key):
        now = chosen(mine.parts, OF_TARGET)
        return ClientOutput(
            upload=trees.subtract(now, mine.start),
            weight=counts_once(data),
            state=mine._replace(start=now),
        )

    def selects(message, client, key):
        return client != method.target

    def server(state, aggregate, key):
        changes, weights = aggregate.value.values
        found = aggregate.value._replace(values=(changes, weights > 0))
        changes, present = by_client(found, len(state.present))
        return state._replace(changes=changes, present=present), {}

    return Exchange(
        broadcast=lambda state: (),
        client=_each(one),
        server=server,
        reduce=kept(),
        batches=method.batches,
        selects=selects,
    )


def _weigh(method: FADAMethod) -> Exchange:
    """Down all changes to the target, up its gains and what it has learned itself."""

    def broadcast(state):
        if len(state.present) == 1:  # no source: nothing has no shape that travels
            return state.changes
        return jax.tree.map(lambda x: jnp.delete(x, method.target, 0), state.changes)

    def client(backbone, message):
        def one(changes, mine, data, key):
            rows = _rows_of_round(method, data, key)
            gains = _gains(method, mine.parts[EXTRACTOR], backbone, rows, changes)
            own = trees.subtract(mine.parts[EXTRACTOR], mine.start[EXTRACTOR])
            return ClientOutput(
                upload=(gains, own), weight=counts_once(data), state=mine
            )

        return one

    return Exchange(
        broadcast=broadcast,
        client=client,
        server=partial(adapt, method),
        reduce=kept(),
        batches=method.batches,
        selects=_the_target(method),
        same_entries=False,  # gains of other examples each round
    )


def _each(one: Callable) -> Callable:
    """`Exchange.client` of what computes nothing once for all clients."""
    return lambda backbone, message: one


def _the_target(method: FADAMethod) -> Callable:
    """`Exchange.selects` of the target alone."""
    return lambda message, client, key: client == method.target


# The client


def _rows(method: FADAMethod, data, i, key) -> Rows:
    """The rows of step i, the label apart; none after the client's last step."""
    batch, mask = data.batch(i)
    inputs = {name: x for name, x in batch.items() if name != method.label}
    return Rows(
        inputs=inputs,
        labels=batch[method.label],
        mask=mask & (i < data.n_steps),
        key=key,
    )


def _rows_of_round(method: FADAMethod, data, key) -> Rows:
    """The rows of all steps of a round, one step behind the other."""

    def one(i):
        rows = _rows(method, data, i, key)
        return rows.inputs, rows.labels, rows.mask

    def joined(x):
        return x.reshape(-1, *x.shape[2:])

    steps = jax.lax.map(one, jnp.arange(method.local_steps))
    inputs, labels, mask = jax.tree.map(joined, steps)
    return Rows(inputs=inputs, labels=labels, mask=mask, key=key)


def _seen(method: FADAMethod, extractor, backbone, rows: Rows) -> jax.Array:
    """Features as others see them, without dropout; zeros where no row is real."""
    features = method.networks.extract(extractor, backbone, rows.inputs, None)
    return jnp.where(rows.mask[:, None], features, 0.0)


def _aligned(
    method: FADAMethod, mine: FADAClient, backbone, *, rows: Rows, gradients
) -> FADAClient:
    """The extractor after its step along what it was sent."""

    def features(extractor):
        return _seen(method, extractor, backbone, rows)

    _, pull = jax.vjp(features, mine.parts[EXTRACTOR])
    (slope,) = pull(gradients)
    step = {EXTRACTOR: slope}
    parts, moments = method.source.updated(ALIGN, mine.parts, mine.moments, step)
    return mine._replace(parts=parts, moments=moments)


def _gains(method: FADAMethod, extractor, backbone, rows: Rows, changes):
    """f32[N - 1]: by how much each source's change tightens the clusters."""
    how = {"clusters": method.clusters, "steps": method.cluster_steps}

    def after(change):
        changed = trees.add(extractor, change)
        features = _seen(method, changed, backbone, rows)
        return spread_in_clusters(features, rows.mask, **how)

    def behind_none(x):
        return jnp.concatenate([jnp.zeros_like(x[:1]), x])

    # One loop, so that k-means is compiled once.
    spreads = jax.lax.map(after, jax.tree.map(behind_none, changes[EXTRACTOR]))
    return spreads[0] - spreads[1:]
