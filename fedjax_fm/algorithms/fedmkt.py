"""FedMKT: Federated Mutual Knowledge Transfer for Large and Small Language Models.

Fan, Ma, Kang, Gu, Song, Fan, Chen, Yang, 2024, arXiv 2406.02224, and FATE-LLM's code.
Clients have small models, the server a large one, and they share public texts x:

    client k:  trains f_k on its own texts; sends its k largest logits of x, and losses
    server:    of each text the client of the lowest loss is the teacher, if it is lower
               than the server's own
               F <- steps on (1 - share) CE + share T^2 KL(teacher || F)
               sends its own largest logits of x, and losses
    client k:  the same with the server as teacher, where that predicts a text better
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.compressed import counts_once
from fedjax_fm.algorithms.fedmkt_transfer import FedMKT, best_of, transferred
from fedjax_fm.algorithms.knowledge import (
    Alignment,
    Knowledge,
    Reader,
    translated,
)
from fedjax_fm.algorithms.local import ClientOptimizer, local_training
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.reduce import nothing, stack
from fedjax_fm.types import (
    Algorithm,
    ClientOutput,
    Exchange,
    Task,
    Tree,
    Unbilled,
)


class Models(NamedTuple):
    """Where both kinds of models start: the delta of a simulation.

    Attributes:
      server: of the large model.
      client: of the small ones.
    """

    server: Tree
    client: Tree


class FedMKTState(NamedTuple):
    """Server state.

    Attributes:
      delta: the large model, and where the small ones start.
      backbone: the large model's.
      knowledge: of the large model, after the round.
      public: of the large and the small models, with both alignments.
    """

    delta: Models
    backbone: Tree
    knowledge: Knowledge
    public: Any


def fedmkt(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    client: Reader,
    server: Reader,
    to_client: Alignment,
    to_server: Alignment,
    server_backbone: Tree = (),
    top_k: int = 128,
    share: float = 0.9,
    temperature: float = 1.0,
    transfer_optimizer: optax.GradientTransformation | None = None,
    transfer_epochs: int = 1,
    transfer_batch_size: int = 4,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """A large model at the server and small ones at clients teach each other.

    Start with `simulator.init(Models(server=..., client=...))`; the simulator's backbone
    is the small models'. Clients' models are of one architecture, and their own. No
    weights travel. A teacher's loss is that of its own tokens, which another tokenizer
    makes more or fewer of.

    Sends: up and down of each public position k logits of 32 bits and k tokens of
    ceil(log2 V) bits, of each text a loss of 32 bits, whatever the models' sizes. A
    round keeps what all clients of the cohort sent. The public texts and alignments are
    known at both ends.

    Metrics: `taught`, the share of public texts of which a client was the server's
    teacher.

    Args:
      task: the loss of a small model on the client's own texts.
      client_optimizer: of that training, starts afresh each round.
      client: the small models.
      server: the large one.
      to_client: how clients read the server, student's positions first.
      to_server: how the server reads clients.
      server_backbone: the large model's frozen part, in few bits if you like; it lies in
        the server state and is never differentiated.
      top_k: logits of a position that are sent, at most V; 128 in FATE-LLM.
      share: of the distillation, the rest is cross-entropy on the public texts; 0.9 in
        FATE-LLM.
      temperature: T, above 0.
      transfer_optimizer: of both kinds of models on public texts, starts afresh each
        time; None means `optax.adam(1e-3)`.
      transfer_epochs: passes over the public texts.
      transfer_batch_size: public texts a step.
      epochs: full passes over a client's own data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `FedMKTState`; a client keeps its model. The
      server's model is the large one with its backbone.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds, alignments
        that do not fit the readers; later, a delta that is no `Models`.

    References:
      Fan et al. 2024, arXiv 2406.02224; FATE-LLM.

    Example:
      >>> import fedjax_fm as ffm
      >>> from fedjax_fm.algorithms.knowledge import text_losses
      >>> def logits(w, backbone, batch):  # of two tokens, whatever the text
      ...     return jnp.broadcast_to(w, (*batch["labels"].shape, 2))
      >>> def loss(w, backbone, batch, key):
      ...     return text_losses(logits(w, (), batch), batch["labels"]), {}
      >>> zeros = jnp.zeros((1, 3), jnp.int32)  # public, and the client's own
      >>> reader = Reader(logits, {"labels": zeros}, n_tokens=2)
      >>> same = Alignment(positions=jnp.arange(3)[None], tokens=jnp.arange(2))
      >>> how = {"client": reader, "server": reader, "to_client": same, "to_server": same}
      >>> how |= {"transfer_optimizer": optax.sgd(1.0), "local_steps": 5, "batch_size": 1}
      >>> method = fedmkt(Task(loss), optax.sgd(1.0), **how)
      >>> population = ffm.Population.from_clients([{"labels": zeros}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> start = simulator.init(Models(jnp.zeros(2), jnp.zeros(2)))
      >>> state, metrics = simulator.run(start, 3)
      >>> bool(state.delta.server[0] > state.delta.server[1] + 1)  # it never saw the text
      True
      >>> metrics["uplink_bytes"].tolist()  # 3 positions of 2 logits and bits, a loss
      [29, 29, 29]
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    for name, reader in (("client", client), ("server", server)):
        how = "write Reader(logits, public, n_tokens)"
        checks.instance(name, reader, Reader, how)
    for name, one in (("to_client", to_client), ("to_server", to_server)):
        checks.instance(name, one, Alignment, "write Alignment(positions, tokens)")
    client, server = client.checked("client"), server.checked("server")
    checks.server_optimizer("transfer_optimizer", transfer_optimizer)
    method = FedMKT(
        local=local,
        client=client,
        server=server,
        to_client=to_client.checked("to_client", client, server),
        to_server=to_server.checked("to_server", server, client),
        backbone=server_backbone,
        k=checks.whole("top_k", top_k, least=1),
        share=checks.real("share", share, least=0, most=1),
        temperature=checks.real("temperature", temperature, above=0),
        optimizer=transfer_optimizer or optax.adam(1e-3),
        epochs=checks.whole("transfer_epochs", transfer_epochs, least=1),
        batch_size=checks.whole("transfer_batch_size", transfer_batch_size, least=1),
    )
    upward = Exchange(
        broadcast=lambda state: Unbilled(state.public),
        client=partial(_sends, method),
        server=partial(_learns, method),
        reduce=stack(partial(best_of, method)),
        batches=local.batches,
    )
    downward = Exchange(
        broadcast=lambda state: (state.knowledge, Unbilled(state.public)),
        client=partial(_is_taught, method),
        server=lambda state, aggregate, key: (state, {}),
        reduce=nothing(),
        batches=local.batches,
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=(upward, downward),
        client_init=lambda delta, key: delta.client,
        model=_model,
    )


class Public(NamedTuple):
    """Arrays that both ends have, in the state so that no program holds them."""

    client: dict[str, jax.Array]
    server: dict[str, jax.Array]
    to_client: Alignment
    to_server: Alignment


def _init(method: FedMKT, delta, key, setting) -> FedMKTState:
    """The large model and what it knows."""
    if not isinstance(delta, Models):
        raise TypeError(
            f"expected the delta Models(server, client), got {checks.shown(delta)}"
        )
    delta, backbone = jax.tree.map(jnp.asarray, (delta, method.backbone))
    public = Public(
        client=method.client.public,
        server=method.server.public,
        to_client=method.to_client,
        to_server=method.to_server,
    )
    return FedMKTState(
        delta=delta,
        backbone=backbone,
        knowledge=method.knows(method.server, delta.server, backbone),
        public=public,
    )


def _sends(method: FedMKT, backbone: Tree, public: Public):
    """Trains on own texts, and says what it knows of the public ones."""
    reader = method.client._replace(public=public.client)

    def one(message, own, data, key):
        own, metrics = method.local.run(own, backbone, data, key)
        return ClientOutput(
            upload=method.knows(reader, own, backbone),
            weight=counts_once(data),
            state=own,
            metrics=metrics,
        )

    return one


def _learns(method: FedMKT, state: FedMKTState, aggregate, key):
    """The server's steps, and what it knows then."""
    reader = method.server._replace(public=state.public.server)
    teacher = method.client._replace(public=state.public.client)
    own = state.knowledge.losses
    target = translated(aggregate.value, teacher, state.public.to_server, own)
    given = (reader, target, state.delta.server, state.backbone)
    trained = transferred(method, *given, key=key)
    # A round without clients changes nothing.
    anyone = aggregate.n_clients > 0
    server = trees.select(anyone, trained, state.delta.server)
    after = state._replace(
        delta=state.delta._replace(server=server),
        knowledge=method.knows(reader, server, state.backbone),
    )
    return after, {"taught": jnp.mean(target.better.astype(jnp.float32))}


def _is_taught(method: FedMKT, backbone: Tree, message):
    """The client's steps with the server as teacher."""

    def one(message, own, data, key):
        found, public = message
        reader = method.client._replace(public=public.client)
        teacher = method.server._replace(public=public.server)
        losses = method.knows(reader, own, backbone).losses
        target = translated(found, teacher, public.to_client, losses)
        own_key = stream(key, Stream.BESIDE_STEPS)
        taught = transferred(method, reader, target, own, backbone, key=own_key)
        return ClientOutput(upload=(), weight=jnp.float32(1), state=taught)

    return one


def _model(state: FedMKTState, own: Tree | None, backbone: Tree):
    """`Algorithm.model`: the large model, or a client's small one."""
    if own is None:
        return state.delta.server, state.backbone
    return own, backbone
