"""Natural clients whose texts are conversations.

Groups of clients are split, their texts are tokenised, and answers alone have a loss:

    groups --+-- tuning (the same for every seed) --+-- clients that train: their first
             |                                      |     texts train, their last ones test
             +-- final -----------------------------+-- unseen clients, of other groups:
                                                          all their texts test
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import fedjax_fm as ffm
from fedjax_fm import datasets, models, peft, tasks
from fedjax_fm.models.chat import Chat, load_chat
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.population.splits import assert_disjoint

ANSWER_ROOM = 16  # tokens
SPLIT_SEED = 2026  # of tuning and final groups, the same for all seeds of a study
Conversation = list[dict[str, Any]]
Rows = dict[str, np.ndarray]  # {"input_ids", "attention_mask", "labels"} [n, T]


class Source(NamedTuple):
    """A table read as conversations; one row a text."""

    clients: np.ndarray  # str[n]
    groups: np.ndarray  # str[n]: clients of a group are never on both sides of a split
    # say(row, n) -> messages, the last one the answer; less context for a larger n.
    say: Callable[[int, int], Conversation]
    shortenings: int  # values of n: 0, ..., shortenings - 1


class Texts(NamedTuple):
    """Tokens of all clients, and the model that reads them."""

    chat: Chat
    adapted: peft.Adapted
    task: ffm.Task
    train: list[Rows]  # packed rows of each client
    seen: list[Rows]  # the same clients' last texts
    unseen: list[Rows]  # of clients of other groups
    elsewhere: Rows  # text that no client has; every token counts
    prompts: list[Conversation]  # of unseen clients, with their answers


def load(source: Callable[[Any], Source], config: Any, seed: int, split: str) -> Texts:
    """Reads, splits, tokenises and packs the texts of a study.

    Args:
      source: a function of the configuration that reads the texts.
      config: a `language.Config`.
      seed: of groups, clients and texts.
      split: "tuning" or "final".

    Returns:
      All texts in tokens, and the adapted model.
    """
    said, chat = source(config), load_chat(config.model)
    if config.template == "chat":
        said = said._replace(say=without_inputs(said.say))
    else:
        chat = models.alpaca(chat, config.template)
    training, unseen = deal_groups(said.groups, config, seed, split)
    random = np.random.default_rng(seed)
    how = {"seed": seed, "all_of_them": split == "final"}
    own = rows_of(said, training, config, wanted=config.clients, **how)
    away = rows_of(said, unseen, config, wanted=config.held_out_clients, **how)
    train, last = [], []
    for rows in own:
        share = 1 - config.local_test_fraction
        n = max(1, round(len(rows) * share))
        train.append(rows[:n])
        last.append(rows[n:])
    seen = [random.permutation(rows)[: config.eval_rows] for rows in last]
    away = [random.permutation(rows)[: config.eval_rows] for rows in away]
    assert_disjoint(
        train=np.concatenate(train),
        seen=np.concatenate(seen),
        unseen=np.concatenate(away),
    )
    # Round robin over the unseen clients, so that the prompts are not all of one.
    dealt = [rows[i] for i in range(config.eval_rows) for rows in away if i < len(rows)]

    def encoded(rows: np.ndarray) -> Rows:
        texts = [fitting(chat, said, int(row), config) for row in rows]
        return chat.encode(texts, config.max_length, truncate=True)

    method = peft.lora(config.rank, 2.0 * config.rank, targets=config.targets)
    model = pretrained(config.model, config.dtype, config.frozen)
    adapted = peft.apply(model, method, jax.random.key(seed))
    return Texts(
        chat=chat,
        adapted=adapted,
        task=tasks.language_modeling(adapted),
        train=[models.pack(encoded(rows), config.row_length) for rows in train],
        seen=[encoded(rows) for rows in seen],
        unseen=[encoded(rows) for rows in away],
        elsewhere=editorials(chat, config, random),
        prompts=[
            fitting(chat, said, int(row), config) for row in dealt[: config.prompts]
        ],
    )


@functools.cache
def pretrained(name: str, dtype: str, frozen: str) -> Any:
    """The model, read once for all seeds."""
    return models.from_pretrained(name, dtype=dtype, frozen=frozen)


def deal_groups(
    groups: np.ndarray, config: Any, seed: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """The groups of a split.

    Args:
      groups: str[texts], of each text.
      config: has the numbers of tuning and held-out groups.
      seed: of the dealing.
      split: "tuning" or "final".

    Returns:
      (training groups, unseen groups).

    Raises:
      ValueError: there are too few groups.
    """
    random = np.random.default_rng(SPLIT_SEED)
    names = random.permutation(np.unique(groups))
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
    *,
    wanted: int,
    seed: int,
    all_of_them: bool,
) -> list[np.ndarray]:
    """Row numbers of the texts of each client that has enough of them.

    Args:
      source: all texts.
      groups: whose clients are taken.
      config: has the least and the most texts of a client; of more texts some are
        taken, spread evenly.
      wanted: clients.
      seed: of the choice of clients.
      all_of_them: whether fewer clients are an error.

    Raises:
      ValueError: there are fewer clients, and all are wanted.
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
    found = []
    for name in chosen:
        rows = np.flatnonzero(source.clients == name)
        n = min(config.max_texts, len(rows))
        places = np.linspace(0, len(rows) - 1, n)
        found.append(rows[places.astype(int)])
    return found


def without_inputs(
    say: Callable[[int, int], Conversation],
) -> Callable[[int, int], Conversation]:
    """Puts the `input` of messages under their text, as chat templates have none.

    Args:
      say: of a `Source`.

    Returns:
      The same with other messages.
    """

    def message(m: dict[str, Any]) -> dict[str, Any]:
        content = f"{m['content']}\n\n{m['input']}" if "input" in m else m["content"]
        return {"role": m["role"], "content": content}

    return lambda row, shorter: [message(m) for m in say(row, shorter)]


def fitting(chat: Chat, source: Source, row: int, config: Any) -> Conversation:
    """The conversation with the longest context that leaves room for an answer.

    Args:
      chat: counts tokens.
      source: of the text.
      row: of the text.
      config: has the longest conversation, in tokens.

    Returns:
      The messages; those with the shortest context if none leaves room.
    """
    messages: Conversation = []
    for shorter in range(source.shortenings):
        messages = source.say(row, shorter)
        prompt = chat.prompt_ids(messages[:-1])
        if len(prompt) <= config.max_length - ANSWER_ROOM:
            break
    return messages


def editorials(chat: Chat, config: Any, random: np.random.Generator) -> Rows:
    """Plain modern sentences, on which a rise of the perplexity is forgetting.

    Args:
      chat: has the tokenizer.
      config: has the number of sentences and their longest length.
      random: draws them.
    """
    table = datasets.load_sentiment()
    all_of_them = np.flatnonzero(table["domain"] == "editorials")
    rows = random.permutation(all_of_them)[: config.forgetting_rows]
    texts = list(table["text"][rows])
    tokens = models.tokenize(
        chat.tokenizer, texts, config.max_length, chat.pad_token_id
    )
    is_real = tokens["attention_mask"] == 1
    labels = np.where(is_real, tokens["input_ids"], IGNORED)
    return {**tokens, "labels": labels.astype(np.int32)}
