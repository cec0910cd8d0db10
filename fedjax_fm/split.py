"""A model cut in two places, for split learning.

The ends stay with a client, the middle with the server.

    batch -> embed -> activations | body | features -> head -> losses
             client                server             client

References:
  Gupta and Raskar, 2018, Distributed learning of deep neural network over multiple
  agents, arXiv 1810.06060; the U shape, in which labels stay with the client as well,
  is Vepakomma, Gupta, Swedish and Raskar's, 2018, arXiv 1812.00564.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_fm.types import Task, Tree

Batch = dict[str, jax.Array]


class Split(NamedTuple):
    """A model in three pieces, pure functions of a batch whose rows are independent.

    B rows; leaves are [B, ...] at the cuts.

    Attributes:
      embed: `(client, batch, key) -> (activations, context)`: activations are floats
        and differentiated, the context (an attention mask) is not; both are sent.
      body: `(server, activations, context) -> features`, floats.
      head: `(client, features, batch, key) -> (losses f32[B], {name: f32[B]})`; the key
        is the one that `embed` had.
      sent: shapes of one row of (activations, context), of `jax.ShapeDtypeStruct`.
      weight: `batch -> f32[B]`, as in `Task`; None counts each row as one.
    """

    embed: Callable[[Tree, Batch, jax.Array], tuple[Tree, Tree]]
    body: Callable[[Tree, Tree, Tree], Tree]
    head: Callable[
        [Tree, Tree, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
    ]
    sent: tuple[Tree, Tree]
    weight: Callable[[Batch], jax.Array] | None = None


def unsplit(split: Split) -> Task:
    """The same model in one piece: the task of delta = {"client": ..., "server": ...}.

    Args:
      split: the model in three pieces.
    """

    def loss(delta, backbone, batch, key):
        activations, context = split.embed(delta["client"], batch, key)
        features = split.body(delta["server"], activations, context)
        return split.head(delta["client"], features, batch, key)

    return Task(loss, split.weight)
