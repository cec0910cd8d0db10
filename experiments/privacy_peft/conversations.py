"""What people of chitchat write, a user a person, and SmolLM2's last layer."""

import functools
from typing import Any

import numpy as np

from fedjax_fm import datasets, models
from fedjax_fm.evaluation.leaks import Canaries, canary_rows
from fedjax_fm.experiments.privacy_peft.clients import Arrays, Pool, split_users
from fedjax_fm.experiments.shared.conversations import pretrained
from fedjax_fm.experiments.shared.tail import preparation_of
from fedjax_fm.experiments.shared.token_tail import (
    DecoderTail,
    decoder_states,
    frozen_decoder,
)
from fedjax_fm.models.chat import load_chat
from fedjax_fm.models.language_modeling import IGNORED

LEAST_WORDS = 8
MOST = 40  # messages of a person, of which the vocabulary is made
DENSE = ("float32", "dense")
TARGETS = r"mlp\.(up_proj|down_proj)$"  # of LoRA and its kin


@functools.lru_cache(maxsize=1)
def pool(config: Any) -> Pool:
    """All messages as hidden states of the layers below the last one.

    A token is asked for only where it is one of the commonest of the public messages.

    Args:
      config: of the study.
    """
    chat, model = load_chat(config.decoder), pretrained(config.decoder, *DENSE)

    def tokenized(texts: list[str]) -> Arrays:
        length, pad = config.max_length, chat.pad_token_id
        return models.tokenize(chat.tokenizer, texts, length, pad)

    texts = messages(config.rows)
    tokens = tokenized([text for own in texts for text in own[: config.rows]])
    users = split_users(
        len(texts),
        tuning=config.tuning_clients,
        validation=config.test,
        test=config.test,
    )
    public = tokenized([text for user in users["tuning"] for text in texts[user]])
    vocabulary = commonest(public["input_ids"], config.vocabulary, chat.pad_token_id)

    def as_read(tokens: Arrays) -> Arrays:
        return {
            "hidden": decoder_states(model, tokens),
            "attention_mask": tokens["attention_mask"],
            "labels": next_of(tokens, vocabulary),
        }

    def canary(canaries: Canaries, seed: int) -> Arrays:
        like = {name: tokens[name][:1] for name in tokens}
        pairs = vocabulary[canaries.prefixes], vocabulary[canaries.secrets]
        both = {**like, "labels": like["input_ids"]}
        found = canary_rows(*pairs, both, pad=chat.pad_token_id)
        read = as_read({name: found[name] for name in like})
        before_secret = canaries.prefixes.shape[1] - 1
        read["labels"] = np.full_like(found["labels"], IGNORED)
        read["labels"][:, before_secret] = canaries.secrets[:, 0]
        return read

    return Pool(
        model=DecoderTail(model, vocabulary),
        rows=as_read(tokens),
        users=users,
        alphabet=np.arange(len(vocabulary), dtype=np.int32),
        secret=1,
        canary=canary,
        targets=TARGETS,
        preparation=preparation_of(frozen_decoder(model), *tokens["input_ids"].T.shape),
    )


def messages(rows: int) -> list[list[str]]:
    """Messages of some length of each person who has enough, the first `MOST`.

    Args:
      rows: that a person has at least.
    """
    table = datasets.load_chitchat()
    said: dict[str, list[str]] = {}
    for person, spoken in zip(table["person"], table["messages"], strict=True):
        own = said.setdefault(str(person), [])
        for message in spoken:
            content = str(message["content"])
            is_own = message["role"] == "assistant"
            if is_own and len(content.split()) >= LEAST_WORDS:
                own.append(content)
    return [own[:MOST] for _, own in sorted(said.items()) if len(own) >= rows]


def commonest(ids: np.ndarray, size: int, pad: int) -> np.ndarray:
    """The commonest tokens, i32[V], ascending.

    Args:
      ids: of texts.
      size: V at most.
      pad: is no token.
    """
    names, counts = np.unique(ids[ids != pad], return_counts=True)
    first = np.argsort(-counts, kind="stable")[:size]
    return np.sort(names[first]).astype(np.int32)


def next_of(tokens: Arrays, vocabulary: np.ndarray) -> np.ndarray:
    """Which token comes next, as its place in the vocabulary, or -100.

    Args:
      tokens: {"input_ids", "attention_mask"}: [n, T].
      vocabulary: ascending.
    """
    follows = np.roll(tokens["input_ids"], -1, axis=1)
    is_real = np.roll(tokens["attention_mask"], -1, axis=1) == 1
    is_real[:, -1] = False
    place = np.searchsorted(vocabulary, follows).clip(max=len(vocabulary) - 1)
    is_known = is_real & (vocabulary[place] == follows)
    return np.where(is_known, place, IGNORED).astype(np.int32)
