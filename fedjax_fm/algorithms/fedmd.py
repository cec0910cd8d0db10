"""FedMD: Heterogenous Federated Learning via Model Distillation.

Li, Wang, 2019, arXiv 1910.03581, algorithm 1; distances and order as in the authors'
code. Party k keeps its model f_k.

    start:     f_k is trained on public examples with labels (transfer learning), then on its own
    round, on public examples x:  sends f_k(x);  consensus(x) = 1/m sum_k f_k(x);  each
               is sent the consensus digest: f_k is moved towards it;  revisit: f_k is
               trained on its own examples again
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from fedjax_fm import checks, trees
from fedjax_fm.algorithms import distillation
from fedjax_fm.algorithms.distillation import Architecture, Average, Distance, n_rows
from fedjax_fm.algorithms.local import train
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientOutput,
    Exchange,
    Reduce,
    Tree,
    Unbilled,
)

DIGEST = (
    2**32 - 1
)  # names the digest's key under the client's; steps, which are named too, are fewer


class Party(NamedTuple):
    """Client state: a model, flat, in as many entries as the largest architecture has."""

    weights: jax.Array  # f32[largest]
    started: (
        jax.Array
    )  # bool[]: False: it has not taken part, its model is its architecture's start


class FedMDState(NamedTuple):
    """Server state. It has no model: `delta` holds the starts and never changes."""

    delta: tuple[Tree, ...]
    groups: jax.Array  # i32[N]
    public: dict[str, jax.Array]  # {name: [n, ...]}
    rows: jax.Array  # i32[B], the public examples of this round
    consensus: jax.Array  # f32[B, K], logits of the mean of the last round
    parties: jax.Array  # f32[], how many it is the mean of; nobody: it is that of zeros


class Message(NamedTuple):
    """Both ends have the public examples and the starts.

    Only the consensus is billed, where there is one.
    """

    known: Any  # (groups, examples, start)
    consensus: Any = ()


def model_of(start: Tree, party: Party) -> Tree:
    """The model of one party, of the architecture of `start`; its start before it took part."""
    flat, unravel = ravel_pytree(start)
    return unravel(
        jnp.where(party.started, party.weights[: flat.size].astype(flat.dtype), flat)
    )


def fedmd(
    architectures: Sequence[Architecture],
    groups: Sequence[int] | np.ndarray,
    public: dict[str, Any],
    *,
    n_classes: int,
    n_public: int | None = None,
    average: Average = "logits",
    distance: Distance | None = None,
    digest_optimizer: optax.GradientTransformation | None = None,
    digest_epochs: int = 1,
    digest_batch_size: int = 256,
    start_epochs: int = 25,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Parties with private models agree on what they say of public examples.

    `delta` and the simulator's `backbone` are tuples with one tree for each
    architecture. A round is two exchanges for each architecture: all answer, then all
    digest and revisit; each is a program of its own, over its own clients.

    Args:
      architectures: loss, logits and optimizer of the private model of each.
      groups: [N], which of them each party has.
      public: {name: array[n, ...]}; their labels serve the transfer learning, which
        comes before: `fedavg` with one client whose examples are the public ones gives
        each architecture's delta.
      n_classes: K.
      n_public: B, public examples drawn anew each round; default all of them, in order.
        The authors: 5000.
      average: of the parties' logits (the paper's), or of their probabilities.
      distance: of logits f32[B, K] from the consensus, minimised by the digest; default
        `mean_absolute` as in the authors' code, and `kl` for probabilities, whose
        logits are known up to a constant only.
      digest_optimizer: default Adam at 1e-3; starts afresh each round, as does the private one.
      digest_epochs, digest_batch_size: passes over the B examples; the authors: 1, 256.
      start_epochs: of each party on its own examples when it first takes part; the
        authors: at most 25.
      epochs, local_steps, batch_size: of the revisit, as for `fedavg`.

    Sends: up and down f32[B, K], however large the models; those never leave their
    parties. `simulator.model(state, k)` has one entry for each architecture, of which
    that of `groups[k]` is party k's; the server has the starts only.
    """
    architectures = distillation.checked_architectures(architectures)
    checks.server_optimizer("digest_optimizer", digest_optimizer)
    n_groups = len(architectures)
    groups = distillation.checked_groups(groups, n_groups, public, average)
    n = n_rows(public)
    n_used: int = (
        n if n_public is None else checks.whole("n_public", n_public, least=1, most=n)
    )
    checks.whole("n_classes", n_classes, least=1)
    checks.whole("digest_epochs", digest_epochs, least=0)
    checks.whole("digest_batch_size", digest_batch_size, least=1)
    checks.whole("start_epochs", start_epochs, least=0)
    if average == "probabilities" and distance is distillation.mean_absolute:
        raise ValueError(
            "logits of mean probabilities are known up to a constant: expected a "
            "distance that ignores it"
        )
    distance = distance or (
        distillation.mean_absolute if average == "logits" else distillation.kl
    )
    digest = digest_optimizer or optax.adam(1e-3)
    digest_steps = digest_epochs * -(-n_used // digest_batch_size)
    revisits = Batches(batch_size, epochs, local_steps).checked()
    starts = Batches(batch_size, epochs=max(start_epochs, 1))

    def drawn(key: jax.Array) -> jax.Array:
        return jnp.arange(n) if n_used == n else jax.random.permutation(key, n)[:n_used]

    def init(delta, key, setting):
        distillation.check_sizes(delta, groups, n_groups, setting.n_clients)
        examples = jax.tree.map(jnp.asarray, public)
        nothing = jnp.zeros((n_used, n_classes), jnp.float32), jnp.float32(0)
        return FedMDState(delta, jnp.asarray(groups), examples, drawn(key), *nothing)

    def client_init(delta, key):
        return Party(
            jnp.zeros(max(map(trees.size, delta)), jnp.float32), jnp.bool_(False)
        )

    def kept(party: Party, delta: Tree) -> Party:
        flat = ravel_pytree(delta)[0].astype(jnp.float32)
        return Party(party.weights.at[: flat.size].set(flat), jnp.bool_(True))

    def known(state: FedMDState, group: int) -> Unbilled:
        return Unbilled(
            (
                state.groups,
                distillation.take(state.public, state.rows),
                state.delta[group],
            )
        )

    def takes(group: int):
        return lambda message, client, key: message.known[0][client] == group

    def ask(group: int, architecture: Architecture) -> Exchange:
        """A party that is here for the first time trains; each says what it thinks."""

        def client(backbone, message):
            def one(message: Message, party: Party, data, key):
                _, examples, start = message.known
                delta = model_of(start, party)
                if start_epochs:
                    data = data._replace(
                        n_steps=jnp.where(party.started, 0, data.n_steps)
                    )
                    delta, _ = train(
                        architecture.task,
                        architecture.optimizer,
                        delta,
                        backbone[group],
                        data,
                        key,
                    )
                said = distillation.all_logits(
                    architecture.logits,
                    delta,
                    backbone[group],
                    examples,
                    digest_batch_size,
                )
                return ClientOutput(
                    upload=distillation.opinion(said, average),
                    weight=jnp.float32(1),
                    state=kept(party, delta),
                )

            return one

        def server(state: FedMDState, aggregate, key):
            """`consensus` is a sum until the last group has answered."""
            said, parties = aggregate.value
            if group:
                said, parties = state.consensus + said, state.parties + parties
            if group + 1 == n_groups:
                said = distillation.agreed(said / jnp.maximum(parties, 1), average)
            return state._replace(consensus=said, parties=parties), {}

        total = Reduce(
            lift=lambda server, sent, weight: (sent, weight),
            finish=lambda total, setting: total,
        )

        def broadcast(state):
            return Message(known(state, group))

        return Exchange(
            broadcast=broadcast,
            client=client,
            server=server,
            reduce=total,
            batches=starts,
            selects=takes(group),
        )

    def tell(group: int, architecture: Architecture) -> Exchange:
        """Digest and revisit; nothing comes back."""

        def client(backbone, message):
            def one(message: Message, party: Party, data, key):
                _, examples, start = message.known
                delta = model_of(start, party)
                step = distillation.distiller(
                    architecture.logits,
                    backbone[group],
                    examples,
                    message.consensus,
                    distance=distance,
                    optimizer=digest,
                    batch_size=min(digest_batch_size, n_used),
                    key=jax.random.fold_in(key, DIGEST),
                )
                delta, _ = jax.lax.fori_loop(
                    0, digest_steps, step, (delta, digest.init(delta))
                )
                delta, metrics = train(
                    architecture.task,
                    architecture.optimizer,
                    delta,
                    backbone[group],
                    data,
                    key,
                )
                return ClientOutput(
                    upload=(),
                    weight=jnp.float32(1),
                    state=kept(party, delta),
                    metrics=metrics,
                )

            return one

        def server(state: FedMDState, aggregate, key):
            return (
                state._replace(rows=drawn(key)) if group + 1 == n_groups else state
            ), {}

        nothing = Reduce(
            lift=lambda server, sent, weight: (), finish=lambda total, setting: total
        )

        def broadcast(state):
            return Message(known(state, group), state.consensus)

        return Exchange(
            broadcast=broadcast,
            client=client,
            server=server,
            reduce=nothing,
            batches=revisits,
            selects=takes(group),
        )

    each = tuple(enumerate(architectures))

    def model(server: FedMDState, party: Party | None, backbone):
        if party is None:
            return server.delta, backbone
        return tuple(model_of(start, party) for start in server.delta), backbone

    exchanges = (*(ask(*pair) for pair in each), *(tell(*pair) for pair in each))
    return Algorithm(
        init=init, exchanges=exchanges, client_init=client_init, model=model
    )
