"""Pairs by user, in tokens: planted ones, or conversations with ratings."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_fm import datasets, peft, preferences
from fedjax_fm.datasets.table import Table
from fedjax_fm.experiments.shared.conversations import pretrained
from fedjax_fm.models.chat import Chat, load_chat
from fedjax_fm.population.splits import split_by_group
from fedjax_fm.runs.errors import UsageError

SPLIT_SEED = 2026  # of users that train, tune and test, the same for all seeds
SHARES = {"final": 0.55, "tuning": 0.25, "test": 0.2}  # of the pairs
SOURCES = ("planted", "rated")
PROMPT = "{prompt}"
Rows = dict[str, np.ndarray]


class Dealt(NamedTuple):
    """Pairs in tokens, and the model that reads them.

    Attributes:
      chat: its tokenizer and template.
      adapted: the model with LoRA.
      train: pairs of each client.
      drawn: the same pairs, the order of each drawn.
      held_out: pairs of other users.
      texts: the held-out pairs as texts.
    """

    chat: Chat
    adapted: peft.Adapted
    train: list[Rows]
    drawn: list[Rows]
    held_out: Rows
    texts: Table


def dealt(config: Any, seed: int, split: str) -> Dealt:
    """Pairs of clients that train, and of users that none of them is.

    While tuning, a quarter of that part's users are held out.

    Args:
      config: sizes.
      seed: of the clients, the order of pairs and the adapter.
      split: "tuning" or "final".
    """
    chat = load_chat(config.model)
    template = chat.text(messages(PROMPT), add_generation_prompt=True)

    def encoded(rows: Table) -> preferences.EncodedTable:
        return preferences.tokenize_pairs(
            rows,
            chat.tokenizer,
            length=config.length,
            pad_token_id=chat.pad_token_id,
            eos_token_id=chat.eos_token_id,
            template=template,
        )

    table = table_of(config.source)
    table = table.select(encoded(table).rows)  # those that fit
    part = split_by_group(table["user"], SHARES, SPLIT_SEED)
    random = np.random.default_rng(seed)
    names = _large(table["user"][part[split]], config.least, random)
    if split == "tuning":
        held = max(1, len(names) // 4)
        names, others = names[held:], names[:held]
        away = np.flatnonzero(np.isin(table["user"], others))
    else:
        away = part["test"]
    away = random.permutation(away)[: config.test]
    own = [
        table.select(np.flatnonzero(table["user"] == name)[: config.most])
        for name in names[: config.clients]
    ]
    mixed = [preferences.shuffled_pairs(rows, seed) for rows in own]
    test = table.select(away)
    method = peft.lora(config.rank, 2.0 * config.rank, targets="q_proj|v_proj")
    model = pretrained(config.model, "float32", "dense")
    return Dealt(
        chat=chat,
        adapted=peft.apply(model, method, jax.random.key(seed)),
        train=[encoded(rows).arrays for rows in own],
        drawn=[encoded(rows).arrays for rows in mixed],
        held_out=encoded(test).arrays,
        texts=test,
    )


def messages(prompt: str) -> list[dict[str, str]]:
    """A conversation that the prompt opens.

    The system says nothing: what SmolLM2 has there by default is two thirds of a row.

    Args:
      prompt: a user's.
    """
    return [{"role": "system", "content": ""}, {"role": "user", "content": prompt}]


@functools.cache
def table_of(source: str) -> Table:
    """`prompt`, `chosen`, `rejected` and `user` of all pairs.

    Args:
      source: "planted" or "rated".

    Raises:
      UsageError: another word.
    """
    if source == "planted":
        named = datasets.load("fedllm/chatbot-pa", source="stand-in", limit=2000)
        table, users = named.train, named.train["client"]
    elif source == "rated":
        table = datasets.rated_pairs(datasets.load_chitchat())
        users = table["person"]
    else:
        raise UsageError(f"expected source as one of {SOURCES}, got source={source!r}")
    columns = {name: table[name] for name in ("prompt", "chosen", "rejected")}
    return Table({**columns, "user": np.asarray(users)}, table.provenance)


def _large(users: np.ndarray, least: int, random: np.random.Generator) -> np.ndarray:
    """Users with enough pairs, in random order."""
    names, counts = np.unique(users, return_counts=True)
    return random.permutation(names[counts >= least])
