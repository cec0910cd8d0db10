"""Rows of preference pairs, in the forms in which they are usually stored.

prompt, chosen, rejected       texts
prompt, chosen, rejected       messages: of the prompt, and one answer each
chosen, rejected               messages: the same conversation, up to its last answer
"""

from typing import Any, NamedTuple

from fedjax_fm.models.conversations import plain_messages
from fedjax_fm.runs.errors import UsageError

Conversation = list[dict[str, Any]]
SIDES = ("chosen", "rejected")


class Pair(NamedTuple):
    """Two answers to one prompt.

    Attributes:
      prompt: messages, the last of which is not the assistant's.
      chosen: the answer that was preferred.
      rejected: the other one.
    """

    prompt: Conversation
    chosen: str
    rejected: str

    def answered(self, side: str) -> Conversation:
        """The conversation with one of the answers.

        Args:
          side: "chosen" or "rejected".
        """
        answer = {"role": "assistant", "content": getattr(self, side)}
        return [*self.prompt, answer]


def read(cells: dict[str, Any], where: str) -> Pair | str:
    """The pair of a row, or why the row holds none.

    Args:
      cells: {"chosen", "rejected" and perhaps "prompt": value}.
      where: the row, for messages.

    Returns:
      The pair; a reason where a part is missing or empty, or both answers are equal.

    Raises:
      UsageError: a value of another kind; two answers to different conversations.

    Example:
      >>> cells = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
      >>> read(cells, "row 0").answered("chosen")[-1]["content"]
      '4'
      >>> read(cells | {"rejected": "4 "}, "row 0")
      'equal answers, which say nothing of a preference'
    """
    before, answers = [], []
    for side in SIDES:
        if _is_missing(cells[side]):
            return f"missing {side} answer"
        context, answer = _answer(cells[side], where, side)
        if not answer.strip():
            return f"empty {side} answer"
        before.append(context)
        answers.append(answer)
    if before[0] != before[1]:
        raise UsageError(
            f"{where}: the chosen and the rejected answer follow different "
            "conversations; expected one prompt for both"
        )
    prompt = before[0] or _prompt(cells.get("prompt"), where)
    if not prompt:
        return "missing or empty prompt"
    if answers[0].strip() == answers[1].strip():
        return "equal answers, which say nothing of a preference"
    return Pair(prompt, *answers)


def _is_missing(value: Any) -> bool:
    """None, NaN and their like."""
    return value is None or (isinstance(value, float) and value != value)


def _prompt(value: Any, where: str) -> Conversation:
    """Messages of a prompt; none where it is missing or empty."""
    if _is_missing(value):
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": value}] if value.strip() else []
    messages = _messages(value, where, "prompt")
    if messages and messages[-1]["role"] == "assistant":
        raise UsageError(
            f"{where}: expected a prompt that ends before an answer, got one whose last "
            "message is the assistant's"
        )
    return messages


def _answer(value: Any, where: str, side: str) -> tuple[Conversation, str]:
    """(what comes before an answer, the answer)."""
    if isinstance(value, str):
        return [], value
    messages = _messages(value, where, f"{side} answer")
    last = messages[-1] if messages else {}
    answer = last.get("content")
    if last.get("role") != "assistant" or not isinstance(answer, str):
        raise UsageError(
            f"{where}: expected the {side} answer as text, or as messages whose last one "
            f"is the assistant's, got {value!r:.80}"
        )
    return messages[:-1], answer


def _messages(value: Any, where: str, what: str) -> Conversation:
    """A list of messages."""
    try:
        return plain_messages(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}, {what}: {error}") from error
