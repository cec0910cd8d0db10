"""Stand-ins for conversations and preferences of many users."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedjax_fm.datasets.named.benchmark import Request
from fedjax_fm.datasets.named.stand_ins.words import (
    CATEGORIES,
    pick,
    some,
    vocabulary,
    weights_of,
)

# Zero to ten, in the eight languages of Fed-Aya.
NUMBERS: dict[str, tuple[str, ...]] = {
    "Standard Arabic": ("صفر", "واحد", "اثنان", "ثلاثة", "أربعة", "خمسة", "ستة",
                        "سبعة", "ثمانية", "تسعة", "عشرة"),
    "English": ("zero", "one", "two", "three", "four", "five", "six", "seven",
                "eight", "nine", "ten"),
    "Spanish": ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete",
                "ocho", "nueve", "diez"),
    "French": ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept",
               "huit", "neuf", "dix"),
    "Portuguese": ("zero", "um", "dois", "três", "quatro", "cinco", "seis", "sete",
                   "oito", "nove", "dez"),
    "Russian": ("ноль", "один", "два", "три", "четыре", "пять", "шесть", "семь",
                "восемь", "девять", "десять"),
    "Telugu": ("సున్నా", "ఒకటి", "రెండు", "మూడు", "నాలుగు", "ఐదు", "ఆరు", "ఏడు",
               "ఎనిమిది", "తొమ్మిది", "పది"),
    "Simplified Chinese": ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九",
                           "十"),
}  # fmt: skip
LANGUAGES = tuple(NUMBERS)
KINDS = tuple(CATEGORIES)


def sums(request: Request) -> list[dict[str, Any]]:
    """Sums of number words, most of a client's in one language (Fed-Aya's schema).

    Args:
      request: the client of each row.

    Returns:
      Rows of `client`, `instruction`, `response`.
    """
    rng = request.rng
    shares = weights_of(rng, request.n_clients, len(LANGUAGES), alpha=0.1)
    rows = []
    for client in request.clients.tolist():
        language = LANGUAGES[int(rng.choice(len(LANGUAGES), p=shares[client]))]
        question, answer = _sum(rng, language)
        rows.append(
            {"client": f"{client}", "instruction": question, "response": answer}
        )
    return rows


def lists(request: Request) -> list[dict[str, Any]]:
    """Lists of a category, as long and as right as each client's habit has it.

    A client's mean length is log-normal; between none and a half of its lists hold a
    word of another category: length and quality differ between annotators.

    Args:
      request: the client of each row.

    Returns:
      Rows of `client`, `instruction`, `response`.
    """
    rng, n = request.rng, max(request.n_clients, 1)
    lengths = np.clip(np.exp(rng.normal(1.0, 0.5, n)), 1, 7)
    carelessness = rng.uniform(0, 0.5, n)
    rows = []
    for client in request.clients.tolist():
        kind = pick(rng, KINDS)
        length = int(np.clip(rng.poisson(lengths[client]), 1, 8))
        members = some(rng, CATEGORIES[kind], length)
        if rng.random() < carelessness[client]:
            members[-1] = _stranger(rng, kind)
        rows.append(
            {
                "client": f"{client}",
                "instruction": f"Name {length} of the kind: {kind}.",
                "response": ", ".join(members),
            }
        )
    return rows


def topics(request: Request) -> list[dict[str, Any]]:
    """Lists of a category, each client with few categories (Fed-WildChat, one turn).

    Args:
      request: the client of each row.

    Returns:
      Rows of `client`, `instruction`, `response`.
    """
    rng = request.rng
    shares = weights_of(rng, request.n_clients, len(KINDS), alpha=0.3)
    rows = []
    for client in request.clients.tolist():
        kind = KINDS[int(rng.choice(len(KINDS), p=shares[client]))]
        members = ", ".join(some(rng, CATEGORIES[kind], 3))
        question = f"Tell me of three things of the kind {kind}."
        rows.append(
            {"client": f"{client}", "instruction": question, "response": members}
        )
    return rows


def several_turns(request: Request) -> list[dict[str, Any]]:
    """Talks of one to four questions, each about the answer before it.

    Args:
      request: the client of each row.

    Returns:
      Rows of `client`, `conversations` (a list of {"from", "value"}).
    """
    rng = request.rng
    shares = weights_of(rng, request.n_clients, len(KINDS), alpha=0.3)
    rows = []
    for client in request.clients.tolist():
        kind = KINDS[int(rng.choice(len(KINDS), p=shares[client]))]
        members = some(rng, CATEGORIES[kind], 4)
        said = []
        for number in range(int(rng.integers(1, 5))):
            first = f"Name one of the kind {kind}."
            question = (
                first if number == 0 else f"One other than {members[number - 1]}."
            )
            said.append({"from": "human", "value": question})
            said.append({"from": "gpt", "value": members[number]})
        rows.append({"client": f"{client}", "conversations": said})
    return rows


def preferences(request: Request) -> list[dict[str, Any]]:
    """A right list and one with a word of another category (Fed-ChatbotPA's schema).

    Args:
      request: the client of each row.

    Returns:
      Rows of `client`, `instruction`, `chosen`, `rejected`.
    """
    rng = request.rng
    rows = []
    for client in request.clients.tolist():
        kind = pick(rng, KINDS)
        members = some(rng, CATEGORIES[kind], 3)
        wrong = list(members)
        wrong[int(rng.integers(3))] = _stranger(rng, kind)
        rows.append(
            {
                "client": f"{client}",
                "instruction": f"Name 3 of the kind: {kind}.",
                "chosen": ", ".join(members),
                "rejected": ", ".join(wrong),
            }
        )
    return rows


def aya(request: Request) -> list[dict[str, Any]]:
    """Sums of number words by annotator, in the schema of the Aya collection.

    Args:
      request: the client of each row.

    Returns:
      Rows of `inputs`, `targets`, `language`, `language_code`, `annotation_type`,
      `user_id`.
    """
    rng = request.rng
    of_client = rng.integers(len(LANGUAGES), size=max(request.n_clients, 1))
    rows = []
    for client in request.clients.tolist():
        language = LANGUAGES[int(of_client[client])]
        question, answer = _sum(rng, language)
        rows.append(
            {
                "inputs": question,
                "targets": answer,
                "language": language,
                "language_code": language[:3].lower(),
                "annotation_type": "original-annotations",
                "user_id": f"user {client}",
            }
        )
    return rows


def oasst(request: Request) -> list[dict[str, Any]]:
    """Trees of a question and an answer, in the schema of OpenAssistant.

    Args:
      request: the client of each answer.

    Returns:
      Two rows for each: `message_id`, `parent_id`, `user_id`, `text`, `role`, `lang`.
    """
    rng = request.rng
    rows = []
    for number, client in enumerate(request.clients.tolist()):
        language = pick(rng, LANGUAGES)
        question, answer = _sum(rng, language)
        common = {"lang": language[:2].lower()}
        rows.append(
            {
                **common,
                "message_id": f"q{number}",
                "parent_id": None,
                "user_id": f"asker {number}",
                "text": question,
                "role": "prompter",
            }
        )
        rows.append(
            {
                **common,
                "message_id": f"a{number}",
                "parent_id": f"q{number}",
                "user_id": f"user {client}",
                "text": answer,
                "role": "assistant",
            }
        )
    return rows


def next_words(request: Request) -> list[dict[str, Any]]:
    """Texts from a chain of words: after each come three words, one of them mostly.

    A client leaves the chain for a word of its own in one step of ten.

    Args:
      request: the client of each row.

    Returns:
      Rows of `client`, `tokens`.
    """
    rng, words = request.rng, vocabulary(500)
    after = np.random.default_rng(0).integers(len(words), size=(len(words), 3))
    favourite = rng.integers(len(words), size=max(request.n_clients, 1))
    rows = []
    for client in request.clients.tolist():
        place, text = int(rng.integers(len(words))), []
        for _ in range(int(rng.integers(5, 20))):
            text.append(words[place])
            step = int(rng.choice(4, p=(0.7, 0.1, 0.1, 0.1)))
            place = int(after[place, step]) if step < 3 else int(favourite[client])
        name = f"test {client}" if request.test else f"{client}"
        rows.append({"client": name, "tokens": " ".join(text)})
    return rows


def _sum(rng: np.random.Generator, language: str) -> tuple[str, str]:
    """(a sum of two number words, the word for what it comes to), at most ten."""
    words = NUMBERS[language]
    first = int(rng.integers(0, 6))
    second = int(rng.integers(0, 6))
    return f"{words[first]} + {words[second]} = ?", words[first + second]


def _stranger(rng: np.random.Generator, kind: str) -> str:
    """A word of another category."""
    return pick(rng, CATEGORIES[pick(rng, [other for other in KINDS if other != kind])])
