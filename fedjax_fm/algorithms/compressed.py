"""Parts of the methods that compress in the client: gradients, their own channel, checks.

Such a method encodes its uploads itself. The packed buffers travel as they are and are
billed by their lengths; the server decodes them where it adds them up.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.reduce import mean_of, total
from fedjax_fm.channels.arguments import checked_channel
from fedjax_fm.channels.laws import Contractive, Unbiased, delta_of
from fedjax_fm.types import Channel, ClientData, Reduce, Tree

PROBE = jax.ShapeDtypeStruct(
    (8,), jnp.float32
)  # a message, to ask a channel for its state


class Encoded(NamedTuple):
    """An upload that a method's own channel wrote.

    Attributes:
      encoded_by_the_method: u8[0], which a simulator's lossy uplink refuses by this
        name: two channels in a row would not be the one that the method knows.
      payload: its packed buffers.
    """

    encoded_by_the_method: jax.Array
    payload: Any


def encoded(channel: Channel, tree: Tree, key: jax.Array) -> Encoded:
    """A message, written by a channel that keeps nothing.

    Args:
      channel: without memory, as `unbiased` and `contractive` make sure.
      tree: floating leaves.
      key: the client's.
    """
    key = stream(key, Stream.ENCODE)
    payload, _ = channel.encode(channel.init(tree), tree, key)
    return marked(payload)


def shown(weight: jax.Array, message: Tree) -> jax.Array:
    """The weight of an upload, NaN where the message is not finite.

    The engine, which sees packed buffers only, then stops the run and names the client.

    Args:
      weight: f32[].
      message: what was encoded.
    """
    return jnp.where(trees.all_finite(message), weight, jnp.nan)


def marked(payload: Any) -> Encoded:
    """Packed buffers that no other channel encodes again.

    Args:
      payload: of a method's own channel.
    """
    return Encoded(jnp.zeros(0, jnp.uint8), payload)


class Arrived(NamedTuple):
    """What a server that keeps a mean over all clients reads of the uploads."""

    mean: Tree  # over those that arrived
    per_client: Tree  # the sum of those that arrived, divided by N


def mean_decoded(channel: Channel) -> Reduce:
    """The mean over the cohort, by weights, of what `encoded` wrote.

    Args:
      channel: that wrote it.
    """

    def finish(found, setting):
        return mean_of(*found)

    return _sum_decoded(channel)._replace(finish=finish)


def arrived_decoded(channel: Channel) -> Reduce:
    """The same, and how far it moves a mean over the whole population.

    Args:
      channel: that wrote the uploads.

    Returns:
      A reduction whose value is an `Arrived`.
    """

    def finish(found, setting):
        summed, _ = found
        per_client = jax.tree.map(lambda x: x / setting.n_clients, summed)
        return Arrived(mean_of(*found), per_client)

    return _sum_decoded(channel)._replace(finish=finish)


def _sum_decoded(channel: Channel) -> Reduce:
    """(sum of weighted messages, sum of weights)."""

    def lift(server, sent, weight):
        message = channel.decode(sent.payload)
        weighted = jax.tree.map(lambda x: weight * x, message)
        return weighted, jnp.asarray(weight, jnp.float32)

    return total(lift)


def counts_once(data: ClientData) -> jax.Array:
    """The weight of a client in a plain mean: 1, and 0 without an example.

    Args:
      data: the client's.
    """
    return (data.n_examples > 0).astype(jnp.float32)


# Channels


def unbiased(where: str, channel: Any, why: str) -> Channel:
    """`channel`, if it is unbiased and keeps nothing.

    Args:
      where: the method and its parameter, for the message.
      channel: what should be one.
      why: what the method needs it for, for the message.

    Raises:
      TypeError: no channel.
      ValueError: one that keeps a memory; one that is biased, or promises nothing.
    """
    without_memory(where, channel)
    if isinstance(channel.law, Unbiased):
        return channel
    raise ValueError(
        f"{where}: expected an unbiased channel, {why}, got one with "
        f"{_law_in_words(channel)}; take channels.quantize(...), ternary(), natural() "
        "or random_k(...), or ef21, which is for biased ones"
    )


def contractive(where: str, channel: Any) -> Channel:
    """`channel`, if it contracts and keeps nothing.

    Args:
      where: the method and its parameter, for the message.
      channel: what should be one.

    Raises:
      TypeError: no channel.
      ValueError: one that keeps a memory, or promises nothing of its error.
    """
    without_memory(where, channel)
    if channel.law is not None:
        return channel
    raise ValueError(
        f"{where}: expected a channel whose error is less than its message, got one "
        f"with {_law_in_words(channel)}; take channels.top_k(...), sign() or "
        "random_k(..., scaled=False)"
    )


def check_contracts(where: str, channel: Channel, n: int) -> None:
    """Refuses a channel that does not contract messages of this length.

    Args:
      where: the method and its parameter, for the message.
      channel: with a law.
      n: floats of a message.

    Raises:
      ValueError: its variance is as large as the message or larger.
    """
    delta = delta_of(channel.law, n)
    if delta > 0:
        return
    raise ValueError(
        f"{where}: of messages of {n} floats the error of this channel may be "
        f"{1 - delta:.3g} times the message, which does not contract; scale it down, "
        "as random_k(..., scaled=False) does, or take more bits or smaller blocks"
    )


def without_memory(where: str, channel: Any) -> Channel:
    """`channel`, if it keeps nothing between messages.

    Error feedback and anchors do.

    Args:
      where: the method and its parameter, for the message.
      channel: what should be one.

    Raises:
      TypeError: no channel.
      ValueError: one that keeps a memory.
    """
    checked_channel(where, channel)
    try:
        state = jax.eval_shape(channel.init, PROBE)
    except (TypeError, ValueError):
        return channel  # of rules for other leaves
    if jax.tree.leaves(state):
        raise ValueError(
            f"{where}: expected a channel without memory, as the method keeps what "
            "was not sent itself, got one that keeps a residual or an anchor; leave "
            "error_feedback(...) out and give the channel inside it"
        )
    return channel


def _law_in_words(channel: Channel) -> str:
    law = channel.law
    if isinstance(law, Contractive):
        return "law=Contractive (biased)"
    return f"law={'Unbiased' if isinstance(law, Unbiased) else law}"


def positive(name: str, value: Any) -> Any:
    """`value`, if it is a number above 0.

    Args:
      name: of the parameter, for the message.
      value: what should be one.
    """
    return checks.real(name, value, above=0)
