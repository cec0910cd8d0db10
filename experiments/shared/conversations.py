"""Natural clients whose texts are conversations.

Split, then tokenised with the loss on the answers only.

groups of clients --+-- tuning groups, the same for every seed --+-- clients that train:
                    first texts train, last texts test +-- final groups
                    ----------------------------+-- unseen clients, of other groups: all
                    their texts test
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import fedjax_fm as ffm
from fedjax_fm import datasets, models, peft, tasks
from fedjax_fm.models.chat import Chat, load_chat
from fedjax_fm.population.splits import assert_disjoint

ANSWER_ROOM = 16  # tokens
SPLIT_SEED = 2026  # of tuning and final groups, the same for all seeds of a study
Conversation = list[dict[str, Any]]
Rows = dict[str, np.ndarray]  # {"input_ids", "attention_mask", "labels"} [n, T]


class Source(NamedTuple):
    """A table read as conversations; one row a text."""

    clients: np.ndarray  # str[n]
    groups: np.ndarray  # str[n]: clients of a group are never on both sides of a split
    say: Callable[
        [int, int], Conversation
    ]  # (row, how much shorter) -> messages, the last one the answer
    shortenings: (
        int  # say(row, n) shows less context for every n = 0 .. shortenings - 1
    )


class Texts(NamedTuple):
    """Tokens by client, and the model that reads them."""

    chat: Chat
    adapted: peft.Adapted
    task: ffm.Task
    train: list[Rows]  # packed rows
    seen: list[Rows]  # the same clients' last texts
    unseen: list[Rows]  # clients of other groups
    elsewhere: Rows  # text that no client has, every token counts
    prompts: list[Conversation]  # of unseen clients, with their answers


def load(source: Callable[[Any], Source], config: Any, seed: int, split: str) -> Texts:
    """Reads, splits, tokenises and packs.

    Args:
      source: given the configuration, what is said.
      config: see `language.Config`.
      seed: names groups, clients and texts.
      split: "tuning" or "final".
    """
    said, chat = source(config), load_chat(config.model)
    if config.template == "chat":
        said = said._replace(say=without_inputs(said.say))
    else:
        chat = models.alpaca(chat, config.template)
    training, unseen = deal_groups(said.groups, config, seed, split)
    random, is_final = np.random.default_rng(seed), split == "final"
    own = rows_of(said, training, config, config.clients, seed, is_final)
    away = rows_of(said, unseen, config, config.held_out_clients, seed, is_final)
    cut = [max(1, round(len(rows) * (1 - config.local_test_fraction))) for rows in own]
    train = [rows[:n] for rows, n in zip(own, cut, strict=True)]
    seen = [
        random.permutation(rows[n:])[: config.eval_rows]
        for rows, n in zip(own, cut, strict=True)
    ]
    away = [random.permutation(rows)[: config.eval_rows] for rows in away]
    assert_disjoint(
        train=np.concatenate(train),
        seen=np.concatenate(seen),
        unseen=np.concatenate(away),
    )
    # Round robin over the unseen clients, so that the prompts are not all of one.
    dealt = [
        rows[i] for i in range(config.eval_rows) for rows in away if i < len(rows)
    ][: config.prompts]

    def encoded(rows: np.ndarray) -> Rows:
        return chat.encode(
            [fitting(chat, said, int(row), config) for row in rows],
            config.max_length,
            truncate=True,
        )

    method = peft.lora(config.rank, 2.0 * config.rank, targets=config.targets)
    adapted = peft.apply(
        pretrained(config.model, config.dtype, config.frozen),
        method,
        jax.random.key(seed),
    )
    return Texts(
        chat=chat,
        adapted=adapted,
        task=tasks.language_modeling(adapted),
        train=[models.pack(encoded(rows), config.row_length) for rows in train],
        seen=list(map(encoded, seen)),
        unseen=list(map(encoded, away)),
        elsewhere=editorials(chat, config, random),
        prompts=[fitting(chat, said, int(row), config) for row in dealt],
    )


@functools.cache
def pretrained(name: str, dtype: str, frozen: str) -> Any:
    """The weights, once for all seeds."""
    return models.from_pretrained(name, dtype=dtype, frozen=frozen)


def deal_groups(
    groups: np.ndarray, config: Any, seed: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """(training, unseen) groups of the split."""
    names = np.random.default_rng(SPLIT_SEED).permutation(np.unique(groups))
    n, held_out = config.tuning_groups, config.held_out_groups
    if n + held_out >= len(names):
        raise ValueError(
            f"expected tuning_groups + held_out_groups < {len(names)}, the number "
            f"of groups, got {n + held_out}"
        )
    mine = names[n:]
    if split == "tuning":
        mine, held_out = names[:n], max(1, n // 3)
    mine = np.random.default_rng(seed).permutation(mine)
    return mine[held_out:], mine[:held_out]


def rows_of(
    source: Source,
    groups: np.ndarray,
    config: Any,
    wanted: int,
    seed: int,
    all_of_them: bool,
) -> list[np.ndarray]:
    """Texts of clients of the groups that have enough, evenly over the whole where
    there are too many.
    """
    names, first, counts = np.unique(
        source.clients, return_index=True, return_counts=True
    )
    large = names[(counts >= config.min_texts) & np.isin(source.groups[first], groups)]
    if all_of_them and len(large) < wanted:
        raise ValueError(
            f"{len(large)} clients with {config.min_texts} texts or more, "
            f"{wanted} were asked for; lower min_texts or the number of clients"
        )
    chosen = np.random.default_rng(seed).permutation(large)[:wanted]
    every = [np.flatnonzero(source.clients == name) for name in chosen]
    most = config.max_texts
    return [
        rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]
        for rows in every
    ]


def without_inputs(
    say: Callable[[int, int], Conversation],
) -> Callable[[int, int], Conversation]:
    """Chat templates know no `input`: it goes under the instruction."""

    def message(m: dict[str, Any]) -> dict[str, Any]:
        content = f"{m['content']}\n\n{m['input']}" if "input" in m else m["content"]
        return {"role": m["role"], "content": content}

    return lambda row, shorter: [message(m) for m in say(row, shorter)]


def fitting(chat: Chat, source: Source, row: int, config: Any) -> Conversation:
    """The conversation with the longest context that leaves room for an answer.

    With the shortest if none does.
    """
    messages: Conversation = []
    for shorter in range(source.shortenings):
        messages = source.say(row, shorter)
        if len(chat.prompt_ids(messages[:-1])) <= config.max_length - ANSWER_ROOM:
            break
    return messages


def editorials(chat: Chat, config: Any, random: np.random.Generator) -> Rows:
    """Modern sentences, plain text without a chat: what fine-tuning may make the model forget."""
    table = datasets.load_sentiment()
    rows = random.permutation(np.flatnonzero(table["domain"] == "editorials"))[
        : config.forgetting_rows
    ]
    tokens = models.tokenize(
        chat.tokenizer, list(table["text"][rows]), config.max_length, chat.pad_token_id
    )
    return {
        **tokens,
        "labels": np.where(
            tokens["attention_mask"] == 1, tokens["input_ids"], -100
        ).astype(np.int32),
    }
