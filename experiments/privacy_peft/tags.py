"""Sentences of the Brown corpus with tags, and MiniLM's last layer.

A user is two sentences of one text that follow each other; the head was trained on
public texts.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fedjax_fm.evaluation.leaks import Canaries
from fedjax_fm.experiments.gate.tasks import KINDS, Rows, read
from fedjax_fm.experiments.privacy_peft.clients import Arrays, Pool, rows_of
from fedjax_fm.experiments.shared.tail import (
    frozen_layers,
    hidden_states,
    preparation_of,
)
from fedjax_fm.experiments.shared.token_tail import EncoderTail
from fedjax_fm.models.language_modeling import IGNORED

SECRET = 4  # tags of a canary
PUBLIC_SHARE = 0.25  # of the texts that train
STEPS, RATE = 60, 1e-2  # of the public head, by Adam


@functools.lru_cache(maxsize=1)
def pool(config: Any) -> Pool:
    """Sentences as hidden states of the layers below the last one.

    Args:
      config: of the study.
    """
    found, kind = read("brown-tags"), KINDS["token"]
    pairs, users = drawn_users(found, config)
    whole = kind.whole(config.encoder, found.classes, 0)

    def as_read(tokens: Arrays) -> Arrays:
        kept = {name: tokens[name] for name in ("attention_mask", "labels")}
        return {"hidden": hidden_states(whole, tokens, 1), **kept}

    table = found.table.select(pairs.ravel())
    tokens = kind.encode(table, config.encoder, config.max_length)

    def canary(canaries: Canaries, seed: int) -> Arrays:
        return as_read(random_sentences(canaries.secrets, tokens, seed))

    made = Pool(
        model=EncoderTail(whole),
        rows=as_read(tokens),
        users=users,
        alphabet=np.arange(found.classes, dtype=np.int32),
        secret=SECRET,
        canary=canary,
        targets=r"^layer\.(intermediate|output)\.dense$",
        preparation=preparation_of(frozen_layers(whole, 1), *tokens["labels"].T.shape),
    )
    public = rows_of(made, users["tuning"], config.rows)
    return made._replace(model=with_public_head(made.model, public))


def drawn_users(found: Rows, config: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Users of each split: sentences of one text that follow each other.

    Args:
      found: the corpus.
      config: of the study.

    Returns:
      (row numbers i64[users, rows], {split: numbers of users}).
    """
    documents = found.table["document"]
    names = np.random.default_rng(2026).permutation(np.unique(documents[found.train]))
    public = names[: round(PUBLIC_SHARE * len(names))]
    is_public = np.isin(documents[found.train], public)
    rows = {
        "tuning": found.train[is_public],
        "validation": found.validation,
        "test": found.test,
        "final": found.train[~is_public],
    }
    sizes = {
        "tuning": config.tuning_clients,
        "validation": config.test,
        "test": config.test,
        "final": config.final_users,
    }
    parts = {
        name: users_of(documents, rows[name], config.rows, size)
        for name, size in sizes.items()
    }
    ends = np.cumsum([len(part) for part in parts.values()])
    numbers = np.split(np.arange(ends[-1]), ends[:-1])
    return np.concatenate(list(parts.values())), dict(zip(parts, numbers, strict=True))


def users_of(
    documents: np.ndarray, rows: np.ndarray, n_rows: int, n_users: int
) -> np.ndarray:
    """Cuts texts into users, and draws some.

    Args:
      documents: str[n], of every row of the corpus.
      rows: ascending numbers of those that are cut.
      n_rows: of a user.
      n_users: how many.

    Returns:
      i64[n_users, n_rows].

    Raises:
      ValueError: there are too few.
    """
    cut = []
    for name in np.unique(documents[rows]):
        own = rows[documents[rows] == name]
        whole = len(own) // n_rows * n_rows
        cut.append(own[:whole].reshape(-1, n_rows))
    found = np.concatenate(cut)
    if len(found) < n_users:
        raise ValueError(f"expected {n_users} users, the texts give {len(found)}")
    return np.random.default_rng(2026).permutation(found)[:n_users]


def random_sentences(tags: np.ndarray, tokens: Arrays, seed: int) -> Arrays:
    """Random pieces of words, each with a tag of its own.

    Args:
      tags: i32[m, s].
      tokens: of real sentences, whose pieces, first and last token are taken.
      seed: of the pieces.
    """
    m, s = tags.shape
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    first, last = ids[0, 0], ids[0, mask[0].sum() - 1]
    pieces = np.setdiff1d(ids[mask == 1], [first, last])
    made = {name: np.zeros((m, ids.shape[1]), np.int32) for name in tokens}
    made["labels"][:] = IGNORED
    chosen = np.random.default_rng([seed, 0xCC]).choice(pieces, (m, s))
    made["input_ids"][:, 0], made["input_ids"][:, s + 1] = first, last
    made["input_ids"][:, 1 : s + 1] = chosen
    made["labels"][:, 1 : s + 1] = tags
    made["attention_mask"][:, : s + 2] = 1
    return made


def with_public_head(tail: EncoderTail, public: Arrays) -> EncoderTail:
    """The last layer as it is, with a head that is trained on public sentences.

    Args:
      tail: with a random head; it is changed.
      public: sentences of the tuning users.
    """
    graphdef, state = nnx.split(tail)

    @jax.jit
    def states(state: Any, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).states(hidden, mask)

    read = states(state, public["hidden"], public["attention_mask"])
    counts = public["labels"] != IGNORED
    x, labels = read[counts], jnp.asarray(public["labels"][counts])
    adam = optax.adam(RATE)

    def mean(head: Any) -> jax.Array:
        scores = x @ head["kernel"] + head["bias"]
        nats = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        return nats.mean()

    def step(carry: Any, _: None) -> tuple[Any, None]:
        head, moments = carry
        updates, moments = adam.update(jax.grad(mean)(head), moments)
        return (optax.apply_updates(head, updates), moments), None

    old = tail.classifier
    head = {"kernel": old.kernel[...], "bias": old.bias[...]}
    (head, _), _ = jax.lax.scan(step, (head, adam.init(head)), length=STEPS)
    old.kernel[...], old.bias[...] = head["kernel"], head["bias"]
    return tail
