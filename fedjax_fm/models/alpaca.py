"""Alpaca's instruction format, from the templates that upstream ships (`templates/`,
byte for byte).

Taori et al., 2023, Stanford Alpaca; the files are those of Alpaca-LoRA, which FedIT
(arXiv 2305.05644) trains with. The end token follows every answer and the prompt's
labels are masked, as `Chat.encode` does for every template.
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
    """The file's fields: `prompt_input`, `prompt_no_input`, `response_split`, `description`."""
    checks.choice("name", name, get_args(AlpacaName))
    return json.loads(
        (files("fedjax_fm.models") / "templates" / f"{name}.json").read_text(
            encoding="utf-8"
        )
    )


def alpaca(chat: Chat, name: AlpacaName = "alpaca") -> Chat:
    """The same tokenizer, speaking Alpaca.

    One message {"role": "user", "content": instruction, "input": text or missing}, one
    {"role": "assistant", "content": answer}.

    Raises:
      ValueError: the tokenizer has no end token, so that an answer would never end; on
        rendering, other roles or turns.
    """
    if not chat.variables.get("eos_token"):
        raise ValueError(
            "Alpaca's format ends answers with the end token, and this tokenizer names none"
        )
    fields = template(name)
    prompts = {key: fields[key] for key in ("prompt_input", "prompt_no_input")}
    return chat._replace(
        template=TURNS, variables={**chat.variables, **prompts}, named=None
    )


def response(text: str, name: AlpacaName = "alpaca") -> str:
    """The answer within a rendered text, without the blanks around it (the template's
    `response_split`).
    """
    checks.text("text", text)
    head, split, answer = text.partition(template(name)["response_split"])
    if not split:
        raise ValueError(
            f"the text has no {template(name)['response_split']!r}: {head[:60]!r}"
        )
    return answer.strip()
