"""Canaries in the clients' data of a run, for `fedjax-fm audit`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_fm.evaluation.leaks import Canaries, draw_canaries, with_canaries
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.finetune.templates import Asked
from fedjax_fm.finetune.tokens import Arrays
from fedjax_fm.runs.errors import UsageError

PREFIX, SECRET = 3, 5  # tokens


def canaries_of(
    settings: Settings, chat: Asked | None, n_clients: int, seed: int
) -> Canaries:
    """The canaries of a seed, the same whenever they are asked for.

    Args:
      settings: say how many.
      chat: has the tokenizer; None for models that write no text.
      n_clients: that train.
      seed: of the run.

    Returns:
      Canaries of ordinary tokens.

    Raises:
      UsageError: a classifier, or more canaries than clients.
    """
    if chat is None:
        raise UsageError(
            "--canaries plants random texts that a model learns to continue, and this "
            "run trains a classifier: leave it out"
        )
    if settings.canaries > n_clients:
        raise UsageError(
            f"--canaries {settings.canaries}: no client has two, and {n_clients} train; "
            "give fewer"
        )
    tokens = ordinary_tokens(chat.tokenizer)
    how = {"prefix": PREFIX, "secret": SECRET, "seed": seed}
    return draw_canaries(tokens, settings.canaries, n_clients, **how)


def ordinary_tokens(tokenizer: Any) -> np.ndarray:
    """Ids of the vocabulary that no special token has.

    Args:
      tokenizer: of the `tokenizers` library.

    Returns:
      i32[a], ascending.

    Example:
      >>> from tokenizers import Tokenizer, models
      >>> tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2}, "a"))
      >>> _ = tokenizer.add_special_tokens(["</s>"])
      >>> ordinary_tokens(tokenizer).tolist()
      [0, 1]
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=False).values()
    added = tokenizer.get_added_tokens_decoder()
    return np.array(sorted(set(vocabulary) - set(added)), np.int32)


def planted(
    settings: Settings, chat: Asked | None, train: Sequence[Arrays], seed: int
) -> list[Arrays]:
    """The clients' data, with the canaries that the coins of this seed have planted.

    Args:
      settings: say how many, and how often each.
      chat: has the tokenizer.
      train: of each client that trains.
      seed: of the run.

    Raises:
      UsageError: as `canaries_of`; rows that are too short.
    """
    found = canaries_of(settings, chat, len(train), seed)
    assert chat is not None  # `canaries_of` has seen to that
    how = {"repeats": settings.canary_repeats, "pad": chat.pad_token_id}
    try:
        return with_canaries(train, found, **how)
    except ValueError as error:
        raise UsageError(f"--canaries: {error}") from error
