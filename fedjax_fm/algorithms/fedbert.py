"""FedBERT: When Federated Learning Meets Pre-training.

Tian, Wan, Lyu, Yao, Jin, Sun, 2022, ACM Transactions on Intelligent Systems and
Technology 13(4). Split learning: client k holds c_k, embedding and head; the server
holds s, the body.

    step:    a_k = embed(c_k, batch)        up      z_k = body(s, a_k)          down
             dl_k/dz_k                      up      dl_k/da_k                   down s
             <- optimizer(s, sum_k p_k dl_k/ds),  c_k <- optimizer(c_k, dl_k/dc_k of
             head and embedding)
    round:   c_k <- c;  steps of all clients side by side;  c <- sum_k (n_k / n) c_k
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.local import client_weight
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.algorithms.reduce import stack, weighted_mean
from fedjax_fm.split import Split
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientOutput,
    Exchange,
    Repeat,
    Task,
    Tree,
    Unbilled,
)

ABSENT = jnp.iinfo(jnp.int32).max


class FedBERTState(NamedTuple):
    """Server state; what passes the cuts is kept by client, and means nothing between rounds."""

    delta: dict[str, Tree]  # {"client": c, "server": s}
    optimizer: Any  # of s
    places: (
        jax.Array
    )  # i32[N]: where a client is in the cohort's order, ABSENT if it is not
    sent: tuple[Tree, Tree]  # [N, B, ...]: activations and context
    features: Tree  # [N, B, ...]
    gradients: Tree  # [N, B, ...], with respect to the activations


class ClientPart(NamedTuple):
    """Client state."""

    part: Tree  # c_k
    optimizer: Any  # its own, from round to round
    head: Tree  # gradient of c_k through the head, until the one through the embedding is there
    # of this round, as key data: step i draws from fold_in(key, i), as in `local.train`
    key: jax.Array


def _by_client(stacked: Tree, places: jax.Array) -> Tree:
    """Leaves [C, ...] in the cohort's order -> [N, ...]; zeros for those who are absent."""
    return jax.tree.map(
        lambda x: jnp.take(x, places, axis=0, mode="fill", fill_value=0), stacked
    )


def _in_order(by_client: Tree, places: jax.Array, active: jax.Array) -> Tree:
    """Leaves [N, ...] -> [C, ...] in the cohort's order.

    Empty places repeat a client, so that nothing there is NaN.
    """
    ids = (
        jnp.zeros(active.shape, jnp.int32)
        .at[places]
        .set(jnp.arange(places.size, dtype=jnp.int32), mode="drop")
    )
    ids = jnp.where(active, ids, ids[jnp.argmax(active)])
    return jax.tree.map(lambda x: x[ids], by_client)


def fedbert(
    split: Split,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation,
    *,
    local_steps: int,
    batch_size: int,
) -> Algorithm:
    """Split learning of `delta = {"client": ..., "server": ...}`, the clients of a
    round in parallel.

    Sequential training is the same with one client a round, `samplers.cyclic(n_clients,
    1)`: clients take turns, and each starts from the body and the client part that the
    one before it left.

    Args:
      split: the model and its two cuts.
      client_optimizer: of client parts; each client keeps its state, so that one client
        is centralised training.
      server_optimizer: of the body, one update a step. `optax.set_to_zero()` freezes it.
      local_steps: steps a round, the same for all; a straggler that ends earlier no
        longer counts, but is still billed.
      batch_size: rows a client and step.

    Sends: each step the activations and their gradients, the features and theirs, 4 B L
    h values for hidden states [B, L, h], and the context; each round the client part
    both ways. Labels and what is masked stay with the client. An uplink channel meets
    all uploads; downlink channels are refused, since clients are sent different things.

    The server does the body's forward pass twice, as nothing but arrays of fixed shape
    can wait for the gradients. It holds three arrays of B rows per client of the
    population, fewer bytes than the clients' own parts: meant for silos.
    """
    checks.instance("split", split, Split, "write Split(embed, body, head, sent)")
    for name, optimizer in (
        ("client_optimizer", client_optimizer),
        ("server_optimizer", server_optimizer),
    ):
        checks.instance(
            name,
            optimizer,
            optax.GradientTransformation,
            "write for example optax.adam(1e-3)",
        )
    batches = Batches(batch_size, steps=local_steps).checked()
    head_task = Task(
        lambda both, _, batch, key: split.head(both[0], both[1], batch, key),
        split.weight,
    )
    body: Callable = jax.vmap(split.body, (None, 0, 0))

    def init(delta, key, setting):
        rows = (setting.n_clients, batch_size)

        def zeros(shapes):
            return jax.tree.map(lambda s: jnp.zeros((*rows, *s.shape), s.dtype), shapes)

        sent = zeros(split.sent)
        features = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype),
            jax.eval_shape(body, delta["server"], *sent),
        )
        places = jnp.full(setting.n_clients, ABSENT)
        moments = server_optimizer.init(delta["server"])
        return FedBERTState(
            delta=delta,
            optimizer=moments,
            places=places,
            sent=sent,
            features=features,
            gradients=zeros(split.sent[0]),
        )

    def client_init(delta, key):
        part = delta["client"]
        none = jax.tree.map(jnp.zeros_like, part)
        return ClientPart(
            part=part,
            optimizer=client_optimizer.init(part),
            head=none,
            key=jnp.zeros_like(jax.random.key_data(key)),
        )

    # Clients

    def read(mine: ClientPart, data, i):
        batch, mask = data.batch(i)
        return batch, mask, jax.random.fold_in(jax.random.wrap_key_data(mine.key), i)

    def smashed(mine: ClientPart, data, i) -> ClientOutput:
        batch, _, key = read(mine, data, i)
        return ClientOutput(
            upload=split.embed(mine.part, batch, key), weight=jnp.float32(1), state=mine
        )

    def start(part, mine, data, key):
        return smashed(
            mine._replace(part=part, key=jax.random.key_data(key)), data, jnp.int32(0)
        )

    def through_head(features, mine, data, i):
        batch, mask, key = read(mine, data, i)

        def loss(*both):
            return masked_loss(head_task, both, (), batch, mask, key)

        (head, upload), metrics = jax.grad(loss, argnums=(0, 1), has_aux=True)(
            mine.part, features
        )
        on = i < data.n_steps
        metrics = jax.tree.map(lambda x: jnp.where(on, x, 0.0), metrics)
        return ClientOutput(
            upload=upload,
            weight=metrics["loss"][1],
            state=mine._replace(head=head),
            metrics=metrics,
        )

    def updated(gradients, mine: ClientPart, data, i) -> ClientPart:
        batch, _, key = read(mine, data, i)
        _, pull = jax.vjp(lambda part: split.embed(part, batch, key)[0], mine.part)
        (through_embedding,) = pull(gradients)
        gradient = trees.add(through_embedding, mine.head)
        updates, moments = client_optimizer.update(gradient, mine.optimizer, mine.part)
        new = (optax.apply_updates(mine.part, updates), moments)
        part, moments = trees.select(i < data.n_steps, new, (mine.part, mine.optimizer))
        return mine._replace(part=part, optimizer=moments)

    def end(message, mine, data, i):
        mine = updated(message["gradients"], mine, data, i)
        upload = trees.subtract(message["start"], mine.part)
        return ClientOutput(
            upload=upload, weight=client_weight(head_task, data), state=mine
        )

    # The server

    def forward(state: FedBERTState, aggregate, key):
        (sent, _), active, ids = aggregate.value
        at = jnp.where(active, ids, ABSENT)
        places = (
            jnp.full_like(state.places, ABSENT)
            .at[at]
            .set(jnp.arange(at.size, dtype=jnp.int32), mode="drop")
        )
        sent = _by_client(sent, places)
        features = body(state.delta["server"], *_in_order(sent, places, active))
        return state._replace(
            places=places, sent=sent, features=_by_client(features, places)
        ), {}

    def backward(state: FedBERTState, aggregate, key):
        sent, weights = (
            aggregate.value.values
        )  # weight 0: an empty place, or a client that was lost on the way
        total = jnp.sum(weights)
        shares = weights / jnp.where(total > 0, total, 1.0)

        def weighted(x, factor):
            return x * factor.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)

        activations, context = _in_order(state.sent, state.places, weights > 0)
        server = state.delta["server"]
        _, pull = jax.vjp(
            lambda server, activations: body(server, activations, context),
            server,
            activations,
        )
        gradient, back = pull(jax.tree.map(lambda x: weighted(x, shares), sent))
        back = jax.tree.map(
            lambda x: weighted(x, 1 / jnp.where(shares > 0, shares, 1.0)), back
        )  # each of its own loss
        updates, moments = server_optimizer.update(gradient, state.optimizer, server)
        new = (optax.apply_updates(server, updates), moments)
        server, moments = trees.select(total > 0, new, (server, state.optimizer))
        delta = {**state.delta, "server": server}
        return state._replace(
            delta=delta, optimizer=moments, gradients=_by_client(back, state.places)
        ), {}

    def average(state: FedBERTState, aggregate, key):
        client = trees.subtract(state.delta["client"], aggregate.value)
        return state._replace(delta={**state.delta, "client": client}), {}

    # The round

    keep = stack(lambda kept, setting: kept)

    def of_client(tree, client):
        return jax.tree.map(lambda x: x[client], tree)

    def each(message, state, client):
        return of_client(message, client)

    def work(one):
        return lambda backbone, message: one  # nothing is done once for all clients

    def features_down(at):
        def one(mine, state, data, key):
            return through_head(mine, state, data, at(data))

        return Exchange(
            broadcast=lambda state: state.features,
            client=work(one),
            server=backward,
            reduce=keep,
            batches=batches,
            address=each,
        )

    in_turn, last = lambda data: data.repeat, lambda data: jnp.int32(local_steps - 1)

    def onward(mine, state, data, key):
        return smashed(updated(mine, state, data, data.repeat), data, data.repeat + 1)

    gradients_down = Exchange(
        broadcast=lambda state: state.gradients,
        client=work(onward),
        server=forward,
        reduce=keep,
        batches=batches,
        address=each,
    )
    closing = Exchange(
        broadcast=lambda state: {
            "gradients": state.gradients,
            "start": Unbilled(state.delta["client"]),
        },
        client=work(lambda mine, state, data, key: end(mine, state, data, last(data))),
        server=average,
        reduce=weighted_mean(),
        batches=batches,
        address=lambda message, state, client: {
            "gradients": of_client(message["gradients"], client),
            "start": Unbilled(message["start"]),
        },
    )
    opening = Exchange(
        broadcast=lambda state: state.delta["client"],
        client=work(start),
        server=forward,
        reduce=keep,
        batches=batches,
    )
    loop = Repeat(local_steps - 1, (features_down(in_turn), gradients_down))
    middle = (loop,) if local_steps > 1 else ()
    return Algorithm(
        init=init,
        exchanges=(opening, *middle, features_down(last), closing),
        client_init=client_init,
    )
