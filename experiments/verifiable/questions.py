"""Made questions by client, in tokens: some with their answers, some with rewards."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_fm import datasets, peft, preferences
from fedjax_fm.datasets.table import Table
from fedjax_fm.experiments.shared.conversations import pretrained
from fedjax_fm.experiments.verifiable import small
from fedjax_fm.models.chat import Chat, load_chat
from fedjax_fm.runs.errors import UsageError

SEED = 2026  # of the questions that are made; seeds of the study draw from them
Rows = dict[str, np.ndarray]


class Asked(NamedTuple):
    """Questions of all clients, and the model that answers.

    Attributes:
      chat: its tokenizer and template.
      adapted: the model with LoRA.
      first: conversations of each client, all answers shown, for the first rounds.
      own: other questions of each client, as prompts with the right tokens.
      shown: the same questions as conversations.
      test: new questions of all kinds.
    """

    chat: Chat
    adapted: peft.Adapted
    first: list[Rows]
    own: list[Rows]
    shown: list[Rows]
    test: Table


def asked(config: Any, seed: int, split: str) -> Asked:
    """Questions of a split.

    Args:
      config: sizes.
      seed: of who has which questions, and of the adapter.
      split: "tuning" or "final"; their questions differ, those of the tests too.
    """
    need = config.clients * (config.first + config.own)
    made = datasets.make_reasoning(4 * (need + config.test), config.kinds, seed=SEED)
    name = "validation" if split == "tuning" else "test"
    random = np.random.default_rng(seed)
    first, own, test = [], [], []
    for kind in config.kinds:
        train, held = (
            np.flatnonzero((made["task"] == kind) & (made["split"] == part))
            for part in ("train", name)
        )
        # questions of the first half of the clients' part are for tuning alone
        middle = len(train) // 2
        part = train[:middle] if split == "tuning" else train[middle:]
        dealt = random.permutation(part)
        test.append(random.permutation(held)[: config.test])
        for rows in np.array_split(dealt, config.clients):
            first.append(rows[: config.first])
            own.append(rows[config.first : config.first + config.own])
    chat, adapted = model_of(config, made, seed)
    width = config.length + config.new_tokens
    return Asked(
        chat=chat,
        adapted=adapted,
        first=[_conversations(chat, made, rows, width) for rows in first],
        own=_prompts(chat, made, own, config.length),
        shown=[_conversations(chat, made, rows, width) for rows in own],
        test=made.select(np.concatenate(test)),
    )


def model_of(config: Any, made: Table, seed: int) -> tuple[Chat, peft.Adapted]:
    """What reads and answers: all of a small decoder, or LoRA in a pretrained one.

    Args:
      config: names the model.
      made: all questions.
      seed: of the weights that are new.
    """
    if config.model == small.NAME:
        chat = small.chat_of([*made["prompt"], *made["answer"]])
        room = config.length + config.new_tokens
        sizes = {"width": config.width, "layers": config.layers, "room": room}
        model, method = small.decoder(chat, **sizes, seed=seed), peft.full()
    else:
        chat = load_chat(config.model)
        model = pretrained(config.model, "float32", "dense")
        method = peft.lora(config.rank, 2.0 * config.rank, targets="q_proj|v_proj")
    return chat, peft.apply(model, method, jax.random.key(seed))


def prompt_of(chat: Chat, text: str) -> list[int]:
    """Token ids of a question and the opening of the answer.

    Args:
      chat: of the model.
      text: the question.
    """
    return chat.prompt_ids([{"role": "user", "content": text}])


def _conversations(chat: Chat, made: Table, rows: np.ndarray, width: int) -> Rows:
    """Questions and answers, of which answers are learned."""
    said = [
        [
            {"role": "user", "content": str(made["prompt"][row])},
            {"role": "assistant", "content": str(made["answer"][row])},
        ]
        for row in rows
    ]
    return chat.encode(said, width)


def _prompts(
    chat: Chat, made: Table, clients: list[np.ndarray], length: int
) -> list[Rows]:
    """Prompts of each client with the right tokens, all clients padded alike."""
    rows = np.concatenate(clients)
    found = preferences.encode_questions(
        [prompt_of(chat, str(made["prompt"][row])) for row in rows],
        [_answer(chat, made, int(row)) for row in rows],
        pad_token_id=chat.pad_token_id,
        length=length,
    )
    ends = np.cumsum([len(own) for own in clients])[:-1]
    parts = {name: np.split(column, ends) for name, column in found.items()}
    return [{name: parts[name][k] for name in parts} for k in range(len(clients))]


def _answer(chat: Chat, made: Table, row: int) -> list[int]:
    """The tokens that an answer is to have, the end of its turn among them."""
    text = str(made["answer"][row])
    if chat.eos_token_id is None:
        raise UsageError("a model without an end of texts: an answer would have no end")
    ids = chat.tokenizer.encode(text, add_special_tokens=False).ids
    return [*ids, chat.eos_token_id]
