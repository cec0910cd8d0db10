"""Words of Shakespeare's roles, and the model that says the next."""

import functools
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import tasks
from fedjax_fm.experiments.shared.plays import is_of_tuning, roles
from fedjax_fm.study.judged import joined

READ = 4  # words
OTHER = 0  # the symbol of words beyond the vocabulary
Arrays = dict[str, np.ndarray]


class Data(NamedTuple):
    """Users' words."""

    clients: list[Arrays]  # {"read": i32[n, 4], "label": i32[n]}
    test: Arrays  # of other users


def _words(speeches: list[str]) -> list[str]:
    return " ".join(speeches).lower().split()


@functools.cache
def vocabulary(size: int) -> dict[str, int]:
    """{word: number from 1} of the commonest words of the tuning plays.

    Args:
      size: how many, with the symbol for all others.
    """
    counted: Counter[str] = Counter()
    for role in roles().values():
        if is_of_tuning(role.play):
            counted.update(_words(role.speeches))
    commonest = sorted(counted, key=lambda word: (-counted[word], word))
    return {word: k + 1 for k, word in enumerate(commonest[: size - 1])}


def windows(words: list[str], numbers: dict[str, int]) -> Arrays:
    """Each known word of a text, behind the four before it.

    Args:
      words: of a user.
      numbers: of `vocabulary`.
    """
    codes = np.array([numbers.get(word, OTHER) for word in words], np.int32)
    read = np.lib.stride_tricks.sliding_window_view(codes, READ)[:-1]
    label = codes[READ:]
    known = label != OTHER
    return {"read": read[known].copy(), "label": label[known]}


def data(config: Any, seed: int, split: str) -> Data:
    """Draws the roles of a split that train, and those that are the test."""
    numbers = vocabulary(config.vocabulary)
    texts = [
        _words(role.speeches)[: config.most]
        for _, role in sorted(roles().items())
        if is_of_tuning(role.play) == (split == "tuning")
    ]
    users = [windows(text, numbers) for text in texts if len(text) >= config.least]
    order = np.random.default_rng(seed).permutation(len(users))
    n_test = round(config.test_share * len(users))
    test = joined([users[k] for k in order[:n_test]])
    return Data([users[k] for k in order[n_test:]], test)


def logits(w: Any, backbone: Any, batch: dict, key: Any) -> jax.Array:
    """f32[n, vocabulary], by the embeddings that read."""
    read = w["embedding"][batch["read"]].reshape(len(batch["read"]), -1)
    said = jnp.tanh(read @ w["inner"])
    return said @ w["embedding"].T + w["bias"][None]


TASK = tasks.from_logits(logits)


def weights(config: Any, seed: int) -> dict[str, jax.Array]:
    """Before training, of deviation 1 / sqrt(inputs)."""
    rng = np.random.default_rng(seed)
    n_read = READ * config.width

    def draw(n_in: int, n_out: int, scale: float) -> jax.Array:
        return jnp.asarray(scale * rng.normal(size=(n_in, n_out)), jnp.float32)

    return {
        "embedding": draw(config.vocabulary, config.width, config.width**-0.5),
        "inner": draw(n_read, config.width, n_read**-0.5),
        "bias": jnp.zeros(config.vocabulary),
    }
