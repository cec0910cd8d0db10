"""Clients of either task, as the last layer reads them.

people, or documents --+-- a fixed part, for tuning (no seed of the study sees it)
                       +-- the others, for all seeds
of a person the last messages judge, and the first ones train
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from fedjax_fm import models, systems
from fedjax_fm.experiments.lora_rules import clients as of_tags
from fedjax_fm.experiments.lora_rules.rules import TARGETS as OF_ENCODER
from fedjax_fm.experiments.privacy_peft.conversations import (
    DENSE,
    TARGETS,
    commonest,
    messages,
    next_of,
)
from fedjax_fm.experiments.shared.conversations import SPLIT_SEED, pretrained
from fedjax_fm.experiments.shared.tail import preparation_of
from fedjax_fm.experiments.shared.token_tail import (
    DecoderTail,
    decoder_states,
    frozen_decoder,
)
from fedjax_fm.models.chat import load_chat

Arrays = dict[str, np.ndarray]
TUNING = 0.25  # of the people


class Dealt(NamedTuple):
    """Clients, and the last layer that is trained on them.

    Attributes:
      model: reads `hidden` and `attention_mask`.
      targets: modules that LoRA adapts.
      trains_head: whether every part trains the head beside it.
      train: arrays of each client, with `labels`.
      own: arrays that judge the same clients.
      preparation: frozen layers of the rows that train.
    """

    model: nnx.Module
    targets: str
    trains_head: bool
    train: list[Arrays]
    own: list[Arrays]
    preparation: systems.Preparation


def deal(config: Any, seed: int, split: str) -> Dealt:
    """Deals the clients of a split.

    Args:
      config: of the study.
      seed: of the clients and, of tags, of the head.
      split: "tuning" or "final".
    """
    if config.task == "conversations":
        return people(config, seed, split)
    dealt = of_tags.deal(config, seed, split)
    return Dealt(
        model=dealt.model,
        targets=OF_ENCODER,
        trains_head=True,
        train=dealt.train,
        own=dealt.own,
        preparation=dealt.preparation,
    )


def people(config: Any, seed: int, split: str) -> Dealt:
    """People who have written enough.

    Args:
      config: of the study.
      seed: of the people.
      split: "tuning" or "final".
    """
    texts = messages(config.sentences + config.judging)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(texts))
    n_tuning = round(TUNING * len(texts))
    tuning, final = order[:n_tuning], order[n_tuning:]
    mine = tuning if split == "tuning" else final
    chosen = np.random.default_rng(seed).choice(mine, config.clients, replace=False)
    vocabulary = words(config, tuple(tuning))
    read = [as_read(config, texts[person], vocabulary) for person in chosen]
    n, model = config.sentences, pretrained(config.decoder, *DENSE)
    frozen, n_rows = frozen_decoder(model), n * config.clients
    return Dealt(
        model=DecoderTail(model, vocabulary),
        targets=TARGETS,
        trains_head=False,
        train=[{name: x[:n] for name, x in rows.items()} for rows in read],
        own=[{name: x[n:] for name, x in rows.items()} for rows in read],
        preparation=preparation_of(frozen, config.max_length, n_rows),
    )


@functools.lru_cache(maxsize=1)
def words(config: Any, people: tuple[int, ...]) -> np.ndarray:
    """The commonest tokens that some people write, i32[V], ascending.

    Args:
      config: of the study.
      people: places of theirs among all who have written enough.
    """
    texts = messages(config.sentences + config.judging)
    written = [text for person in people for text in texts[person]]
    tokens = tokenized(config, written)
    pad = load_chat(config.decoder).pad_token_id
    return commonest(tokens["input_ids"], config.vocabulary, pad)


def as_read(config: Any, texts: list[str], vocabulary: np.ndarray) -> Arrays:
    """Hidden states before the last layer, and which of the tokens comes next.

    Args:
      config: of the study.
      texts: of a person; as many as train and judge are read.
      vocabulary: the tokens that are asked for.
    """
    tokens = tokenized(config, texts[: config.sentences + config.judging])
    return {
        "hidden": decoder_states(pretrained(config.decoder, *DENSE), tokens),
        "attention_mask": tokens["attention_mask"],
        "labels": next_of(tokens, vocabulary),
    }


def tokenized(config: Any, texts: list[str]) -> Arrays:
    """Ids and masks of some texts, cut to the configuration's length.

    Args:
      config: of the study.
      texts: any.
    """
    chat = load_chat(config.decoder)
    length, pad = config.max_length, chat.pad_token_id
    return models.tokenize(chat.tokenizer, texts, length, pad)
