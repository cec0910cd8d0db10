"""FedMKT's transfer: who teaches which text, and the steps of who learns.

Fan, Ma, Kang, Gu, Song, Fan, Chen, Yang, 2024, arXiv 2406.02224.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm.algorithms.distillation import descent, take
from fedjax_fm.algorithms.knowledge import (
    Alignment,
    Knowledge,
    Reader,
    Target,
    knowledge_of,
    text_losses,
    transfer_losses,
)
from fedjax_fm.algorithms.local import LocalTraining
from fedjax_fm.channels.buffers import index_bits
from fedjax_fm.kernels import pack_bits, unpack_bits
from fedjax_fm.types import Setting, Stack, Tree


class FedMKT(NamedTuple):
    """The hyper-parameters of `fedmkt`, checked; its arguments say what they are."""

    local: LocalTraining
    client: Reader
    server: Reader
    to_client: Alignment
    to_server: Alignment
    backbone: Tree
    k: int
    share: float
    temperature: float
    optimizer: optax.GradientTransformation
    epochs: int
    batch_size: int

    def knows(self, reader: Reader, delta: Tree, backbone: Tree) -> Knowledge:
        """What a model knows of the public texts.

        Args:
          reader: the kind of model.
          delta: its trainable tree.
          backbone: its frozen one.
        """
        k = min(self.k, reader.n_tokens)
        how = {"k": k, "batch_size": self.batch_size}
        return knowledge_of(reader, delta, backbone, **how)


def best_of(method: FedMKT, found: Stack, setting: Setting) -> Knowledge:
    """Of each text what the client of the lowest loss knows; infinite without one.

    Args:
      method: the hyper-parameters.
      found: what all clients sent.
      setting: not read.
    """
    sent, weights = found.values
    counts = found.active & (weights > 0)
    losses = jnp.where(counts[:, None], sent.losses, jnp.inf)
    best = jnp.argmin(losses, axis=0)
    texts = jnp.arange(losses.shape[1])
    n = sent.values[0].size
    width = index_bits(method.client.n_tokens)
    tokens = jax.vmap(lambda packed: unpack_bits(packed, width, n))(sent.tokens)
    chosen = tokens.reshape(sent.values.shape)[best, texts]
    return Knowledge(
        values=sent.values[best, texts],
        tokens=pack_bits(chosen.reshape(-1), width),
        losses=losses[best, texts],
    )


def transferred(
    method: FedMKT,
    reader: Reader,
    target: Target,
    delta: Tree,
    backbone: Tree,
    *,
    key: jax.Array,
) -> Tree:
    """A model after its steps on the public texts.

    Args:
      method: the hyper-parameters.
      reader: the kind of model.
      target: what its teacher knows.
      delta: its trainable tree.
      backbone: its frozen one.
      key: of the order of texts.
    """
    n = reader.public["labels"].shape[0]
    size = min(method.batch_size, n)

    def losses(delta, rows):
        batch = take(reader.public, rows)
        logits = reader.logits(delta, backbone, batch)
        own = Target(*(x[rows] for x in target))
        labels = batch["labels"]
        apart = transfer_losses(logits, own, labels, method.temperature)
        return (1 - method.share) * text_losses(logits, labels) + method.share * apart

    how = {"optimizer": method.optimizer, "batch_size": size, "key": key}
    step = descent(losses, n, **how)
    start = (delta, method.optimizer.init(delta))
    n_steps = method.epochs * -(-n // size)
    return jax.lax.fori_loop(0, n_steps, step, start)[0]
