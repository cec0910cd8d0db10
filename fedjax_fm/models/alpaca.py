"""Alpaca's instruction format, from the templates that upstream ships.

The files in `templates/` are upstream's, byte for byte: those of Alpaca-LoRA, which
FedIT (Zhang et al., 2023, arXiv 2305.05644) trains with. The end token follows every
answer and the prompt's labels are masked, as `Chat.encode` does for every template.

References:
  Taori et al., 2023, Stanford Alpaca: An Instruction-following LLaMA model.
"""

import json
from importlib.resources import files
from typing import Literal, get_args

from fedjax_fm import checks
from fedjax_fm.models.chat import Chat

AlpacaName = Literal["alpaca", "alpaca_short"]

# A user's message may carry an `input`; what its words contain is never read as part of
# the template.
TURNS = """
{%- for message in messages -%}
{%- if message.role == 'user' and loop.index == 1 -%}
{%- if message.input -%}{{ prompt_input.format(instruction=message.content, input=message.input) }}
{%- else -%}{{ prompt_no_input.format(instruction=message.content) }}{%- endif -%}
{%- elif message.role == 'assistant' and loop.index == 2 -%}{{ message.content }}{{ eos_token }}
{%- else -%}{{ raise_exception('Alpaca has one instruction and one answer, '
~ 'got ' ~ message.role ~ ' as message ' ~ loop.index) }}
{%- endif -%}
{%- endfor -%}
"""


def template(name: AlpacaName = "alpaca") -> dict[str, str]:
    """The fields of a template's file.

    Args:
      name: "alpaca" or "alpaca_short".

    Returns:
      {"prompt_input", "prompt_no_input", "response_split", "description"}: text each.

    Raises:
      ValueError: another name.

    Example:
      >>> template("alpaca_short")["response_split"]
      '### Response:'
    """
    checks.choice("name", name, get_args(AlpacaName))
    folder = files("fedjax_fm.models") / "templates"
    text = (folder / f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)


def alpaca(chat: Chat, name: AlpacaName = "alpaca") -> Chat:
    """The same tokenizer with Alpaca's template.

    A conversation is one message {"role": "user", "content": instruction, "input": text
    or missing} and one {"role": "assistant", "content": answer}.

    Args:
      chat: a tokenizer with any template; it must name an end token.
      name: "alpaca", which opens with a sentence about the task, or "alpaca_short",
        which does not.

    Returns:
      A new `Chat`; the given one stays as it is.

    Raises:
      ValueError: the tokenizer has no end token, so that an answer would never end; an
        unknown name; on rendering, other roles or turns.

    References:
      Taori et al., 2023, Stanford Alpaca.

    Example:
      >>> from tokenizers import Tokenizer, models as words
      >>> from fedjax_fm import models
      >>> tokenizer = Tokenizer(words.WordLevel({"[UNK]": 0, "</s>": 1}, "[UNK]"))
      >>> chat = models.Chat(tokenizer, "", {"eos_token": "</s>"}, 1, 1)
      >>> question = {"role": "user", "content": "Name a prime."}
      >>> answer = {"role": "assistant", "content": "7"}
      >>> print(models.alpaca(chat, "alpaca_short").text([question, answer]))
      ### Instruction:
      Name a prime.
      <BLANKLINE>
      ### Response:
      7</s>
    """
    if not chat.variables.get("eos_token"):
        raise ValueError(
            "Alpaca's format ends answers with the end token, and this tokenizer names "
            "none"
        )
    fields = template(name)
    prompts = {key: fields[key] for key in ("prompt_input", "prompt_no_input")}
    return chat._replace(
        template=TURNS, variables={**chat.variables, **prompts}, named=None
    )


def response(text: str, name: AlpacaName = "alpaca") -> str:
    r"""The answer within a rendered text, without the blanks around it.

    Args:
      text: what `Chat.text` or generation gives.
      name: of the template that it was rendered with.

    Returns:
      What follows the template's `response_split`.

    Raises:
      TypeError: `text` is no text.
      ValueError: it does not hold `response_split`.

    Example:
      >>> response("### Instruction:\nName a prime.\n\n### Response:\n7\n")
      '7'
    """
    checks.text("text", text)
    head, split, answer = text.partition(template(name)["response_split"])
    if not split:
        raise ValueError(
            f"the text has no {template(name)['response_split']!r}: {head[:60]!r}"
        )
    return answer.strip()
