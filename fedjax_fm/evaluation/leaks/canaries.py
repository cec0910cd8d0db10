"""Canaries: random texts that are planted in clients' data, each by the toss of a coin.

A canary is a prefix and a secret behind it, both random tokens, so that nothing but the
training set tells one from the other. At most one canary belongs to a client: what the
coins decide is then one client's data, which is what privacy at the level of clients
speaks of.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.models.language_modeling import IGNORED

Arrays = dict[str, np.ndarray]


class Canaries(NamedTuple):
    """Random texts, and which of them were planted where.

    Attributes:
      prefixes: i32[m, p], what comes before each secret.
      secrets: i32[m, s].
      alphabet: i32[a], the tokens that secrets are drawn from, so that there are a^s.
      is_planted: bool[m], fair coins.
      clients: i64[m], to whom each belongs, whether it is planted or not.
    """

    prefixes: np.ndarray
    secrets: np.ndarray
    alphabet: np.ndarray
    is_planted: np.ndarray
    clients: np.ndarray

    @property
    def log2_space(self) -> float:
        """log2 of how many secrets there are."""
        return self.secrets.shape[1] * float(np.log2(len(self.alphabet)))


def draw_canaries(
    alphabet: Any,
    n_canaries: int,
    n_clients: int,
    *,
    prefix: int = 3,
    secret: int = 5,
    seed: int = 0,
) -> Canaries:
    """Draws canaries, their clients and the coins that plant them.

    Args:
      alphabet: i32[a], different ordinary tokens, two or more.
      n_canaries: m, at most `n_clients`.
      n_clients: that train.
      prefix: tokens before a secret, at least 1.
      secret: tokens of a secret, at least 1.
      seed: of all draws.

    Returns:
      The canaries, no two of one client.

    Raises:
      TypeError, ValueError: sizes out of bounds, or tokens that repeat.

    Example:
      >>> found = draw_canaries(range(10, 20), n_canaries=3, n_clients=5)
      >>> found.prefixes.shape, found.secrets.shape, len(set(found.clients.tolist()))
      ((3, 3), (3, 5), 3)
    """
    checks.whole("n_clients", n_clients, least=1)
    checks.whole("n_canaries", n_canaries, least=1, most=n_clients)
    checks.whole("prefix", prefix, least=1)
    checks.whole("secret", secret, least=1)
    checks.whole("seed", seed, least=0)
    tokens = np.asarray(alphabet, np.int32)
    if tokens.ndim != 1 or len(tokens) < 2 or len(np.unique(tokens)) < len(tokens):
        raise ValueError(
            "expected two or more different tokens in the alphabet, got shape "
            f"{list(tokens.shape)} with {len(np.unique(tokens))} different ones"
        )
    random = np.random.default_rng([seed, 0xCA])
    return Canaries(
        prefixes=random.choice(tokens, (n_canaries, prefix)),
        secrets=random.choice(tokens, (n_canaries, secret)),
        alphabet=tokens,
        is_planted=random.random(n_canaries) < 0.5,
        clients=random.permutation(n_clients)[:n_canaries],
    )


def canary_rows(
    prefixes: Any, secrets: Any, like: Mapping[str, Any], *, pad: int = 0
) -> Arrays:
    """Rows of a language model: a prefix that is read, and a secret that is predicted.

    A model whose `labels` are as long as its `input_ids` reads both, one behind the
    other; of an encoder-decoder the encoder reads the prefix, and the decoder is asked
    for the secret.

    Args:
      prefixes: i32[n, p].
      secrets: i32[n, s].
      like: the columns of other rows: `input_ids`, `attention_mask`, `labels`.
      pad: token behind the end.

    Returns:
      The same columns, of the same widths and dtypes.

    Raises:
      ValueError: other columns, or rows that are too short.

    Example:
      >>> ids = np.zeros((1, 4), np.int32)
      >>> like = {"input_ids": ids, "attention_mask": ids, "labels": ids}
      >>> found = canary_rows([[7]], [[8, 9]], like)
      >>> found["input_ids"].tolist(), found["labels"].tolist()
      ([[7, 8, 9, 0]], [[-100, 8, 9, -100]])
    """
    if set(like) != {"input_ids", "attention_mask", "labels"}:
        raise ValueError(
            "canaries are texts: expected the columns input_ids, attention_mask and "
            f"labels, got {sorted(like)}"
        )
    before, behind = np.asarray(prefixes), np.asarray(secrets)
    n, p = before.shape
    s = behind.shape[1]
    widths = {name: np.shape(column)[1] for name, column in like.items()}
    joined = widths["labels"] == widths["input_ids"]
    needed = {"input_ids": p + s if joined else p, "labels": p + s if joined else s}
    short = [name for name, least in needed.items() if widths[name] < least]
    if short:
        raise ValueError(
            f"a canary needs {needed[short[0]]} tokens of {short[0]}, and rows have "
            f"{widths[short[0]]}"
        )
    ids = np.full((n, widths["input_ids"]), pad)
    mask = np.zeros((n, widths["attention_mask"]))
    labels = np.full((n, widths["labels"]), IGNORED)
    ids[:, :p] = before
    if joined:
        ids[:, p : p + s] = behind
        labels[:, p : p + s] = behind
    else:
        labels[:, :s] = behind
    mask[:, : needed["input_ids"]] = 1
    found = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: found[name].astype(np.asarray(like[name]).dtype) for name in like}


def with_canaries(
    clients: Sequence[Mapping[str, Any]],
    canaries: Canaries,
    *,
    repeats: int = 1,
    pad: int = 0,
) -> list[Arrays]:
    """The clients' data, with the canaries that the coins have planted.

    Args:
      clients: {column: [n_k, ...]} of each.
      canaries: of that many clients.
      repeats: how often a client has its canary, at least 1.
      pad: token behind the end.

    Returns:
      New arrays for clients with a canary; those of the others as they are.

    Raises:
      TypeError, ValueError: a canary of a client that is not there, or that is no text.

    Example:
      >>> ids = np.zeros((2, 8), np.int32)
      >>> own = {"input_ids": ids, "attention_mask": ids, "labels": ids}
      >>> canaries = draw_canaries(range(10), n_canaries=4, n_clients=4)
      >>> found = with_canaries([own] * 4, canaries, repeats=3)
      >>> sorted(len(one["labels"]) for one in found) == sorted(
      ...     2 + 3 * canaries.is_planted
      ... )
      True
    """
    checks.whole("repeats", repeats, least=1)
    found = [dict(arrays) for arrays in clients]
    for k in np.flatnonzero(canaries.is_planted):
        place = int(canaries.clients[k])
        if place >= len(found):
            raise ValueError(
                f"canary {k} belongs to client {place}, and there are {len(found)}"
            )
        own = found[place]
        prefix, secret = canaries.prefixes[k : k + 1], canaries.secrets[k : k + 1]
        rows = canary_rows(prefix, secret, own, pad=pad)
        found[place] = {
            name: np.concatenate([column, np.repeat(rows[name], repeats, axis=0)])
            for name, column in own.items()
        }
    return found


def candidate_secrets(canaries: Canaries, n: int, *, seed: int = 0) -> np.ndarray:
    """Secrets that nobody was given, to rank those of the canaries among.

    Args:
      canaries: whose alphabet and length they have.
      n: candidates, the same for each canary.
      seed: of the draw.

    Returns:
      i32[n, s].

    Example:
      >>> canaries = draw_canaries(range(10), n_canaries=1, n_clients=1)
      >>> candidate_secrets(canaries, 7).shape
      (7, 5)
    """
    checks.whole("n", n, least=1)
    checks.whole("seed", seed, least=0)
    random = np.random.default_rng([seed, 0xCB])
    return random.choice(canaries.alphabet, (n, canaries.secrets.shape[1]))
