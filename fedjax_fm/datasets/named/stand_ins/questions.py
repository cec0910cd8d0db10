"""Stand-ins for FlowerTune's tasks and for Alpaca's, Dolly's and Commonsense's rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.datasets.named.benchmark import Request
from fedjax_fm.datasets.named.stand_ins.expressions import problem
from fedjax_fm.datasets.named.stand_ins.words import (
    CATEGORIES,
    pick,
    sentences,
    some,
    vocabulary,
)

LETTERS = "ABCD"
SENTIMENTS = ("negative", "neutral", "positive")

# Terms with definitions, a hand's breadth of anatomy and medicine.
GLOSSARY: dict[str, str] = {
    "femur": "the long bone of the thigh, from the hip to the knee",
    "tibia": "the larger of the two bones between knee and ankle",
    "clavicle": "the bone that joins the breastbone to the shoulder blade",
    "aorta": "the largest artery, which leaves the left side of the heart",
    "trachea": "the tube through which air passes from the throat to the lungs",
    "cornea": "the clear layer at the front of the eye",
    "retina": "the layer at the back of the eye that senses light",
    "pancreas": "the gland behind the stomach that makes insulin",
    "kidney": "the organ that filters the blood and makes urine",
    "spleen": "the organ in the upper left abdomen that removes old red blood cells",
    "diaphragm": "the muscle below the lungs that draws in the breath",
    "cochlea": "the coiled part of the inner ear that turns sound into signals",
    "anaemia": "a lack of red blood cells or of the pigment that carries oxygen",
    "gout": "painful swelling of joints by crystals of uric acid",
    "asthma": "attacks of narrow airways with wheezing and shortness of breath",
    "rickets": "soft bones in children who lack vitamin D",
    "scurvy": "bleeding gums and weakness from a lack of vitamin C",
    "measles": "a viral illness of children with fever, cough and a red rash",
    "tetanus": "stiff muscles and a locked jaw after a wound is infected",
    "glaucoma": "damage of the optic nerve, often by raised pressure in the eye",
    "cataract": "clouding of the lens of the eye",
    "insulin": "the hormone that lowers sugar in the blood",
    "adrenaline": "the hormone that quickens the heart in danger",
    "thyroxine": "the hormone of the thyroid gland that sets the pace of metabolism",
}

CLOZES = (
    "Which term means: {}?",
    "Fill in the term. ____ is {}.",
    "What is the name for {}?",
    "Name this: {}.",
)


class Choice(NamedTuple):
    """A question with four options, one of them right.

    Attributes:
      question: one line.
      options: four words.
      right: the number of the right one.
    """

    question: str
    options: list[str]
    right: int

    @property
    def text(self) -> str:
        """The question and its options, a line each."""
        lines = [
            f"{letter}. {option}"
            for letter, option in zip(LETTERS, self.options, strict=True)
        ]
        return "\n".join([self.question, *lines])


def choice(rng: np.random.Generator) -> Choice:
    """A question for the one of four words that belongs to a category.

    Args:
      rng: draws it.

    Example:
      >>> print(choice(np.random.default_rng(0)).text)
      Which of these is a tool?
      A. chisel
      B. cap
      C. Congo
      D. gold
    """
    kinds = some(rng, list(CATEGORIES), len(LETTERS))
    right = int(rng.integers(len(LETTERS)))
    options = [pick(rng, CATEGORIES[kind]) for kind in kinds]
    kind = kinds[right]
    article = "an" if kind[0] in "aeiou" else "a"
    return Choice(f"Which of these is {article} {kind}?", options, right)


def general(request: Request) -> list[dict[str, Any]]:
    """Four-option questions in the schema of flwrlabs/alpaca-gpt4.

    Args:
      request: how many rows.

    Returns:
      Rows of `instruction`, `input` (often not empty, and to be ignored), `output` (a
      letter) and `text`.
    """
    rows = []
    for _ in request.clients:
        drawn = choice(request.rng)
        answer = LETTERS[drawn.right]
        ignored = "Ignore this." if request.rng.random() < 0.5 else ""
        rows.append(_alpaca_row(drawn.text, ignored, answer))
    return rows


def finance(request: Request) -> list[dict[str, Any]]:
    """Three-way sentiment of real sentences in the schema of FinGPT's rows.

    A mean rating above 0.8 counts as positive, below -0.8 as negative.

    Args:
      request: how many rows.

    Returns:
      Rows of `input`, `output`, `instruction`.
    """
    rows = []
    for _ in request.clients:
        text, rating = pick(request.rng, sentences())
        answer = SENTIMENTS[1 + int(rating > 0.8) - int(rating < -0.8)]
        rows.append(
            {
                "input": text,
                "output": answer,
                "instruction": "What is the sentiment of this text? Please choose an "
                "answer from {negative/neutral/positive}.",
            }
        )
    return rows


def medical(request: Request) -> list[dict[str, Any]]:
    """Cloze questions from a glossary in the schema of the medical flashcards.

    Args:
      request: how many rows.

    Returns:
      Rows of `input` (the question), `output` (the term), `instruction` (always the
      same, and to be dropped).
    """
    rows = []
    for _ in request.clients:
        term = pick(request.rng, list(GLOSSARY))
        question = pick(request.rng, CLOZES).format(GLOSSARY[term])
        rows.append(
            {
                "input": question,
                "output": term,
                "instruction": "Answer this question truthfully",
            }
        )
    return rows


def code(request: Request) -> list[dict[str, Any]]:
    """Expressions to be written in the schema of flwrlabs/code-alpaca-20k.

    `expressions.agrees` judges an answer.

    Args:
      request: how many rows.

    Returns:
      Rows of `output` (an expression of a and b), `instruction`, `input` (what it is to
      compute).
    """
    rows = []
    for _ in request.clients:
        words, answer = problem(request.rng)
        rows.append(
            {
                "output": answer,
                "instruction": "Write an expression of a and b.",
                "input": words,
            }
        )
    return rows


def alpaca(request: Request) -> list[dict[str, Any]]:
    """Questions and lists, some with an input, in Alpaca's schema.

    Args:
      request: how many rows.

    Returns:
      Rows of `instruction`, `input`, `output`, `text`.
    """
    rows = []
    for _ in request.clients:
        if request.rng.random() < 0.5:
            drawn = choice(request.rng)
            answer = drawn.options[drawn.right]
            given = ", ".join(drawn.options)
            rows.append(_alpaca_row(drawn.question, given, answer))
        else:
            kind, members = _members(request.rng, 3)
            rows.append(
                _alpaca_row(f"Name three of the kind: {kind}.", "", ", ".join(members))
            )
    return rows


def dolly(request: Request) -> list[dict[str, Any]]:
    """One small task for each of Dolly's eight categories, in its schema.

    Args:
      request: how many rows.

    Returns:
      Rows of `instruction`, `context`, `response`, `category`.
    """
    rows = []
    for _ in request.clients:
        category = pick(request.rng, DOLLY_CATEGORIES)
        instruction, context, response = _dolly(category, request.rng)
        rows.append(
            {
                "instruction": instruction,
                "context": context,
                "response": response,
                "category": category,
            }
        )
    return rows


DOLLY_CATEGORIES = (
    "brainstorming", "classification", "closed_qa", "creative_writing", "general_qa",
    "information_extraction", "open_qa", "summarization",
)  # fmt: skip


def _dolly(category: str, rng: np.random.Generator) -> tuple[str, str, str]:
    """(instruction, context, response) of one of Dolly's categories."""
    kind, members = _members(rng, 3)
    listed = ", ".join(members)
    text = " ".join(some(rng, vocabulary(), 8))
    term = pick(rng, list(GLOSSARY))
    answers = {
        "brainstorming": (f"Give me ideas for a {kind}.", "", listed),
        "classification": (f"What kind of thing is this: {listed}?", "", kind),
        "closed_qa": ("Which word comes first?", text, text.split()[0]),
        "creative_writing": (
            f"Write a line about a {kind}.",
            "",
            f"The {members[0]} met the {members[1]} and the {members[2]}.",
        ),
        "general_qa": (f"What is {GLOSSARY[term]}?", "", term),
        "information_extraction": ("Extract the last word.", text, text.split()[-1]),
        "open_qa": (f"What does {term} mean?", "", GLOSSARY[term]),
        "summarization": ("Keep the first three words.", text, _first(text, 3)),
    }
    return answers[category]


# task: (what an answer is called, how many there are)
COMMONSENSE = {
    "boolq": ("true/false", 2),
    "piqa": ("solution", 2),
    "social_i_qa": ("answer", 3),
    "hellaswag": ("ending", 4),
    "winogrande": ("option", 2),
    "ARC-Easy": ("answer", 4),
    "ARC-Challenge": ("answer", 4),
    "openbookqa": ("answer", 4),
}


def commonsense(request: Request) -> list[dict[str, Any]]:
    """Questions of a category in the forms of the eight tasks of Commonsense-170k.

    Args:
      request: how many rows.

    Returns:
      Rows of `instruction`, `input` (empty), `output`, `answer`.
    """
    rows = []
    for _ in request.clients:
        name, n = COMMONSENSE[pick(request.rng, list(COMMONSENSE))]
        drawn = choice(request.rng)
        if name == "true/false":
            asked = int(request.rng.integers(len(LETTERS)))
            is_right = asked == drawn.right
            kind = drawn.question.removeprefix("Which of these is ").rstrip("?")
            question = f"Is {drawn.options[asked]} {kind}?\n\nAnswer format: true/false"
            answer = str(is_right).lower()
        else:
            right = int(request.rng.integers(n))
            words = [x for k, x in enumerate(drawn.options) if k != drawn.right]
            words = [*words[: n - 1], *[drawn.options[drawn.right]]][:n]
            words[right], words[-1] = words[-1], words[right]
            named = [f"{name}{k + 1}" for k in range(n)]
            pairs = zip(named, words, strict=True)
            lines = " ".join(f"{label}: {word}" for label, word in pairs)
            form = "/".join(named)
            question = f"{drawn.question}\n\n{lines}\n\nAnswer format: {form}"
            answer = named[right]
        rows.append(
            {
                "instruction": f"Please answer the following question: {question}",
                "input": "",
                "output": f"the correct answer is {answer}",
                "answer": answer,
            }
        )
    return rows


def _alpaca_row(instruction: str, given: str, output: str) -> dict[str, Any]:
    """A row of Alpaca's schema; `text`, which nothing here reads, is the prompt."""
    text = f"### Instruction:\n{instruction}\n\n### Response:\n{output}"
    return {"instruction": instruction, "input": given, "output": output, "text": text}


def _members(rng: np.random.Generator, n: int) -> tuple[str, list[str]]:
    """(category, n of its members in alphabetical order)."""
    kind = pick(rng, list(CATEGORIES))
    return kind, sorted(some(rng, CATEGORIES[kind], n))


def _first(text: str, n: int) -> str:
    """The first n words."""
    return " ".join(text.split()[:n])
