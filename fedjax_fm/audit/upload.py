"""One client's upload of a run, made anew: what its own method sends, as it is received."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.audit.findings import LEAKS, NOTHING, Finding, skipped
from fedjax_fm.audit.subject import Subject
from fedjax_fm.engine.billing import unwrapped
from fedjax_fm.evaluation.leaks import Interval, copies_in_upload
from fedjax_fm.finetune import methods
from fedjax_fm.finetune.data import length
from fedjax_fm.finetune.tokens import Arrays
from fedjax_fm.types import (
    Algorithm,
    Batches,
    Channel,
    ClientData,
    Exchange,
    Setting,
    Tree,
)

NAME = "upload: examples as they are"


class Sender(NamedTuple):
    """A client at work.

    Attributes:
      algorithm: its method.
      delta: the server's trainable tree.
      backbone: the frozen one.
      rows: {column: [n, ...]}, all its examples.
      setting: numbers of clients.
    """

    algorithm: Algorithm
    delta: Tree
    backbone: Tree
    rows: Arrays
    setting: Setting


def upload_of(sender: Sender, channel: Channel | None, key: jax.Array) -> Tree:
    """What the server receives of one client in its first exchange of a round.

    Args:
      sender: the client and its method.
      channel: on the way up; None: none.
      key: of the client and the channel.

    Returns:
      The decoded upload.

    Raises:
      ValueError: a method that repeats its exchanges within a round.
    """
    exchange = sender.algorithm.exchanges[0]
    if not isinstance(exchange, Exchange):
        raise ValueError("the method repeats its exchanges within a round")
    of_server, of_client, own = jax.random.split(key, 3)
    server = sender.algorithm.init(sender.delta, of_server, sender.setting)
    state = sender.algorithm.client_init(sender.delta, of_client)
    message, number = unwrapped(exchange.broadcast(server)), jnp.int32(0)
    mine = message
    if exchange.address is not None:
        mine = exchange.address(message, state, number)
    one = exchange.client(sender.backbone, message)
    data = client_data(sender.rows, exchange.batches)
    upload = one(mine, state, data, own).upload
    if channel is None:
        return upload
    payload, _ = channel.encode(channel.init(upload), upload, own)
    return channel.decode(payload)


def client_data(rows: Arrays, batches: Batches) -> ClientData:
    """A client's examples in their own order, batch after batch.

    Args:
      rows: {column: [n, ...]}.
      batches: how a client walks them.
    """
    n, size = length(rows), batches.batch_size
    columns = {name: jnp.asarray(column) for name, column in rows.items()}
    per_epoch = -(-n // size)
    steps = batches.steps or per_epoch * (batches.epochs or 1)

    def batch(i: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        places = i % per_epoch * size + jnp.arange(size)
        inside = jnp.minimum(places, n - 1)
        return {name: column[inside] for name, column in columns.items()}, places < n

    zero = jnp.int32(0)
    return ClientData(
        id=zero,
        round=zero,
        n_examples=jnp.int32(n),
        n_steps=jnp.int32(steps),
        batch=batch,
        repeat=zero,
    )


def audited(subject: Subject) -> list[Finding]:
    """Looks for the first client's examples in its upload.

    Args:
      subject: the run.
    """
    settings, data = subject.settings, subject.data
    rate = settings.learning_rate[0]
    delta, backbone = subject.model.parts
    sender = Sender(
        algorithm=methods.algorithm_of(settings, data, rate),
        delta=delta,
        backbone=backbone,
        rows=data.train[0],
        setting=Setting(len(data.train), min(settings.cohort, len(data.train))),
    )
    channel = methods.channel_of(settings.uplink)
    try:
        upload = upload_of(sender, channel, jax.random.key(subject.seed))
    except (TypeError, ValueError, NotImplementedError) as error:
        return [skipped(NAME, f"the client alone sends nothing: {error}")]
    return [of_upload(upload, data.train[0])]


def of_upload(upload: Tree, rows: Arrays) -> Finding:
    """The line of an upload.

    Args:
      upload: of one client.
      rows: its examples.
    """
    names = [name for name in rows if name in ("input_ids", "labels", "pixel_values")]
    few = {name: np.asarray(rows[name])[:64] for name in names}
    copies = copies_in_upload(upload, few)
    n = len(next(iter(few.values())))
    found = {one.example for one in copies}
    share = Interval(len(found) / n, len(found) / n, len(found) / n)
    note = f"{n} examples of one client; columns {', '.join(few)}"
    if copies:
        note += f"; the first in {copies[0].leaf}"
    return Finding(
        name=NAME,
        measure="share found",
        figure=share,
        chance=0.0,
        verdict=LEAKS if copies else NOTHING,
        note=note,
    )
