"""How a prompt and its answer become one text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_fm import models
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.models.chat import Chat, end_tokens
from fedjax_fm.models.locate import locate
from fedjax_fm.models.tokens import without_padding
from fedjax_fm.models.weights import WeightError, read_config
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.settings import nearest

NAMED = ("chat", "alpaca", "alpaca_short", "flan")
FLAN = "{prompt}\n{response}"  # the prompt, a line's end, the target
_PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
# The first message is put into the text before the answer. Braces in it stay as they are.
_OWN = """
{%- for message in messages -%}
{%- if message.role == 'user' and loop.index == 1 -%}
{{ own_before }}{{ message.content }}{{ own_between }}
{%- elif message.role == 'assistant' and loop.index == 2 -%}
{{ message.content }}{{ own_after }}{{ eos_token }}
{%- else -%}{{ raise_exception('this template has one prompt and one answer, got '
~ message.role ~ ' as message ' ~ loop.index) }}
{%- endif -%}
{%- endfor -%}
"""


class OneQuestion(NamedTuple):
    """How an encoder-decoder is asked: the prompt alone, as its tokenizer ends it.

    Attributes:
      tokenizer: of the `tokenizers` library.
      eos_token_ids: at any of which an answer ends.
      pad_token_id: fills rows.
    """

    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    def prompt_ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of the one question.

        Args:
          messages: one, of a user.

        Raises:
          UsageError: others, or more.
        """
        roles = [message["role"] for message in messages]
        if roles != ["user"]:
            raise UsageError(f"an encoder-decoder takes one prompt, got {roles}")
        (question,) = folded(list(messages), "plain")
        with without_padding(self.tokenizer) as plain:
            return plain.encode(question["content"]).ids


Asked = Chat | OneQuestion


def one_question(model: str) -> OneQuestion:
    """How this encoder-decoder is asked.

    Args:
      model: a folder or hub id.
    """
    fields = read_config(locate(model).folder)
    return OneQuestion(
        tokenizer=models.load_tokenizer(model),
        eos_token_ids=end_tokens(model),
        pad_token_id=fields.get("pad_token_id") or 0,
    )


def chat_of(settings: Settings) -> Chat:
    """The tokenizer of the model with the template that is asked for.

    Args:
      settings: have the model and the template.

    Returns:
      A chat; whatever is trained ends with the end token.

    Raises:
      UsageError: an unknown template; the model has no template of its own; a template
        without a place for the prompt or the answer.
    """
    name, model = settings.template, settings.model
    if name == "chat":
        try:
            return models.load_chat(model)
        except WeightError as error:
            raise UsageError(
                f"{error}; --template alpaca or your own '{{prompt}} ... {{response}}' "
                "needs none"
            ) from error
    if name.endswith(".jinja"):
        return models.load_chat(model, template=_read(Path(name)))
    if name in ("alpaca", "alpaca_short"):
        chat = models.alpaca(models.load_chat(model, template=_PLAIN), name)
        return chat._replace(template=opening(chat) + chat.template)
    text = FLAN if name == "flan" else name
    if "{prompt}" not in text and "{response}" not in text:
        raise UsageError(nearest(name, NAMED, "template"))
    return own(models.load_chat(model, template=_PLAIN), text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the template {path}: {error}") from error


def opening(chat: Chat) -> str:
    """The begin token, where the tokenizer itself puts it before every text.

    A base model has read no text without it; a template has to write it.

    Args:
      chat: with its tokenizer.
    """
    word = chat.variables.get("bos_token")
    if not word:
        return ""
    with without_padding(chat.tokenizer) as plain:
        first = plain.encode("").ids[:1]
    return word if first == [chat.tokenizer.token_to_id(word)] else ""


def own(chat: Chat, text: str) -> Chat:
    r"""The same tokenizer with a template of one prompt and one answer.

    Args:
      chat: names an end token.
      text: with {prompt} and, behind it, {response}; \n is a line's end.

    Returns:
      A new chat.

    Raises:
      UsageError: the text loses the prompt or the answer, or has one twice or in the
        wrong order; there is no end token.

    Example:
      >>> from tokenizers import Tokenizer, models as words
      >>> tokenizer = Tokenizer(words.WordLevel({"[UNK]": 0, "</s>": 1}, "[UNK]"))
      >>> chat = models.Chat(tokenizer, "", {"eos_token": "</s>"}, 1, 1)
      >>> asked = own(chat, "Q: {prompt}\\nA: {response}")
      >>> asked.text([{"role": "user", "content": "1 + 1?"}])
      'Q: 1 + 1?\nA: '
    """
    text = text.replace("\\n", "\n")
    for part in ("{prompt}", "{response}"):
        if text.count(part) != 1:
            raise UsageError(
                f"the template {text!r} has {part} {text.count(part)} times; it needs "
                "{prompt} once and, behind it, {response} once"
            )
    before, _, rest = text.partition("{prompt}")
    between, mark, after = rest.partition("{response}")
    if not mark:
        raise UsageError(f"the template {text!r} has the answer before its prompt")
    if not chat.variables.get("eos_token"):
        raise UsageError(
            "the tokenizer names no end token, so that no answer would end"
        )
    before = opening(chat) + before
    parts = {"own_before": before, "own_between": between, "own_after": after}
    return chat._replace(
        template=_OWN, variables={**chat.variables, **parts}, named=None
    )


def folded(messages: list[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    r"""Puts the input of a prompt under it, unless the template has a place for it.

    Args:
      messages: of a conversation.
      template: its name.

    Example:
      >>> folded([{"role": "user", "content": "Sum up.", "input": "Long."}], "chat")
      [{'role': 'user', 'content': 'Sum up.\n\nLong.'}]
    """
    if template in ("alpaca", "alpaca_short"):
        return messages
    found = []
    for message in messages:
        message = dict(message)
        about = message.pop("input", None)
        if about:
            message["content"] = f"{message['content']}\n\n{about}"
        found.append(message)
    return found
