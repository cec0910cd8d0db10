"""What a language model knows of public texts, as it travels between tokenizers.

Of each position the k largest logits and their tokens, of each text its loss.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks
from fedjax_fm.channels.buffers import index_bits
from fedjax_fm.kernels import pack_bits, unpack_bits
from fedjax_fm.types import Tree

IGNORED = -100  # the label of a position that does not count


class Reader(NamedTuple):
    """One kind of language model, and the public texts as its tokenizer splits them.

    Attributes:
      logits: `(delta, backbone, batch) -> f32[B, T, V]`, of what each position predicts.
      public: {name: [n, ...]}, columns of the model, and `labels` i32[n, T]: the token
        that each position is to predict, -100 where it does not count.
      n_tokens: V.
    """

    logits: Callable[[Tree, Tree, dict[str, jax.Array]], jax.Array]
    public: dict[str, Any]
    n_tokens: int

    def checked(self, name: str) -> "Reader":
        """Itself, with arrays of jax, after a check of its values.

        Args:
          name: what the caller calls it, for the message.

        Raises:
          TypeError, ValueError: one of them makes no sense.
        """
        checks.whole(f"{name}.n_tokens", self.n_tokens, least=1)
        labels = self.public.get("labels")
        if labels is None or np.ndim(labels) != 2 or not len(labels):
            raise ValueError(
                f"expected {name}.public with labels i32[n, T] of one text at least, "
                f"got the columns {sorted(self.public)}"
            )
        sizes = {column: len(array) for column, array in self.public.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"{name}.public has columns of different lengths: {sizes}")
        return self._replace(public=jax.tree.map(jnp.asarray, dict(self.public)))


class Alignment(NamedTuple):
    """How a student reads what a teacher of another tokenizer knows.

    Attributes:
      positions: i32[n, T], the teacher's position for each of the student's, -1 for
        none; `models.align_texts` finds them.
      tokens: i32[V of the teacher], the student's tokens; `models.match_vocabulary`.
    """

    positions: Any
    tokens: Any

    def checked(self, name: str, student: Reader, teacher: Reader) -> "Alignment":
        """Itself, with arrays of jax, if it fits both.

        Args:
          name: what the caller calls it, for the message.
          student: who learns.
          teacher: who is read.

        Raises:
          ValueError: numbers of another shape, or out of their bounds.
        """
        shape = student.public["labels"].shape
        _, length = teacher.public["labels"].shape
        _check(f"{name}.positions", self.positions, shape, (-1, length))
        sizes = (teacher.n_tokens,)
        _check(f"{name}.tokens", self.tokens, sizes, (0, student.n_tokens))
        return Alignment(jnp.asarray(self.positions), jnp.asarray(self.tokens))


def _check(name: str, found: Any, shape: tuple, bounds: tuple[int, int]) -> None:
    """Refuses numbers of another shape or out of [low, high)."""
    found, (low, high) = np.asarray(found), bounds
    if found.shape != shape or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"expected {name} as whole numbers {list(shape)}, got {found.dtype}"
            f"{list(found.shape)}"
        )
    if found.size and not (low <= found.min() and found.max() < high):
        raise ValueError(
            f"expected {name} from {low} to {high - 1}, got {found.min()} to "
            f"{found.max()}"
        )


class Knowledge(NamedTuple):
    """What travels.

    Attributes:
      values: f32[n, T, k], the largest logits.
      tokens: u8[...], their tokens, ceil(log2 V) bits each.
      losses: f32[n], the mean cross-entropy of each text.
    """

    values: jax.Array
    tokens: jax.Array
    losses: jax.Array


class Target(NamedTuple):
    """A teacher's knowledge in the student's tokens.

    Attributes:
      values: f32[n, T, k], logits.
      tokens: i32[n, T, k], the student's.
      counts: bool[n, T], positions that have a counterpart.
      better: bool[n], texts that the teacher predicts better than the student.
    """

    values: jax.Array
    tokens: jax.Array
    counts: jax.Array
    better: jax.Array


def text_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy of each text, f32[B]; 0 of one without a label.

    Args:
      logits: f32[B, T, V].
      labels: i32[B, T], -100 where a position does not count.
    """
    counts = labels != IGNORED
    chosen = jnp.where(counts, labels, 0)[..., None]
    scores = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -jnp.take_along_axis(scores, chosen, axis=-1)[..., 0]
    total = jnp.sum(jnp.where(counts, losses, 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(counts, axis=-1), 1)


def knowledge_of(
    reader: Reader, delta: Tree, backbone: Tree, *, k: int, batch_size: int
) -> Knowledge:
    """What a model knows of all public texts, a batch at a time.

    Args:
      reader: the kind of model.
      delta: its trainable tree.
      backbone: its frozen one.
      k: logits of a position.
      batch_size: texts at a time; the last batch repeats the last text.
    """
    n = reader.public["labels"].shape[0]
    size = min(batch_size, n)
    positions = jnp.arange(-(-n // size) * size)
    rows = jnp.minimum(positions, n - 1).reshape(-1, size)

    def of_batch(rows):
        batch = {name: array[rows] for name, array in reader.public.items()}
        logits = reader.logits(delta, backbone, batch).astype(jnp.float32)
        values, tokens = jax.lax.top_k(logits, k)
        return values, tokens, text_losses(logits, batch["labels"])

    found = jax.lax.map(of_batch, rows)
    values, tokens, losses = (x.reshape(-1, *x.shape[2:])[:n] for x in found)
    codes = tokens.reshape(-1).astype(jnp.uint32)
    packed = pack_bits(codes, index_bits(reader.n_tokens))
    return Knowledge(values, packed, losses)


def translated(
    found: Knowledge, teacher: Reader, alignment: Alignment, own_losses: jax.Array
) -> Target:
    """A teacher's knowledge as a student reads it.

    Args:
      found: as it travelled.
      teacher: whose it is.
      alignment: of the student to the teacher.
      own_losses: f32[n], the student's of each text.
    """
    values = found.values
    width = index_bits(teacher.n_tokens)
    tokens = unpack_bits(found.tokens, width, values.size).reshape(values.shape)
    counts = alignment.positions >= 0
    at = jnp.where(counts, alignment.positions, 0)[..., None]
    tokens = jnp.take_along_axis(tokens.astype(jnp.int32), at, axis=1)
    return Target(
        values=jnp.take_along_axis(values, at, axis=1),
        tokens=alignment.tokens[tokens],
        counts=counts,
        better=found.losses < own_losses,
    )


def transfer_losses(
    logits: jax.Array, target: Target, labels: jax.Array, temperature: float
) -> jax.Array:
    """T^2 KL(teacher || student) of each text, over its aligned positions, f32[B].

    The teacher's probabilities are those of its k tokens among themselves. Texts that it
    predicts no better count 0.

    Args:
      logits: the student's, f32[B, T, V].
      target: of these texts.
      labels: i32[B, T], the student's.
      temperature: T.
    """
    scores = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    of_teacher = jax.nn.log_softmax(target.values / temperature)
    of_student = jnp.take_along_axis(scores, target.tokens, axis=-1)
    terms = jnp.exp(of_teacher) * (of_teacher - of_student)
    apart = temperature**2 * jnp.sum(terms, axis=-1)
    counts = target.counts & (labels != IGNORED)
    total = jnp.sum(jnp.where(counts, apart, 0.0), axis=-1)
    mean = total / jnp.maximum(jnp.sum(counts, axis=-1), 1)
    return jnp.where(target.better, mean, 0.0)
