"""Prompt templates of the named benchmarks, each with the SHA-256 of its text.

A template is a Jinja program, as `fedjax_fm.models.Chat` runs it: give it to a chat by
`chat._replace(template=template.text, named=None)`. What opens an answer ends where the
authors' loss begins, so that `Chat.encode` finds the answer by the characters of the
text. Special tokens that a tokenizer sets before every text are not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

TASK = "Below is an instruction that describes a task"
WITH_INPUT = f"{TASK}, paired with an input that provides further context. "
REQUEST = "Write a response that appropriately completes the request."
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions."
)

# One instruction and one answer: anything else is refused, not cut.
_GUARD = (
    "{% if messages|length > 2 or messages[0].role != 'user' %}"
    "{{ raise_exception('this template has one instruction and one answer, got '"
    " ~ messages|length ~ ' messages, the first of ' ~ messages[0].role) }}"
    "{% endif %}"
)


@dataclass(frozen=True)
class Template:
    """How messages become one text.

    Attributes:
      name: "flowertune" for example.
      text: a Jinja program over `messages` and `eos_token`; a user's message may carry
        an `input`.
      sha256: of the text in UTF-8, in hexadecimal.
      source: whose it is.

    Example:
      >>> TEMPLATES["flowertune"].sha256[:8]
      'cf9a9ed5'
    """

    name: str
    text: str
    sha256: str
    source: str


def _one_answer(plain: str, with_input: str | None, opening: str, end: str) -> str:
    """The program for one instruction and one answer.

    Args:
      plain: the prompt without an input, up to where the loss begins.
      with_input: the prompt with an input; None where the format has no input.
      opening: written before the answer, and trained.
      end: written behind it.
    """
    prompt = plain
    if with_input is not None:
        prompt = f"{{% if messages[0].input %}}{with_input}{{% else %}}{plain}"
        prompt += "{% endif %}"
    answer = f"{opening}{{{{ messages[1].content }}}}{end}"
    return f"{_GUARD}{prompt}{{% if messages|length > 1 %}}{answer}{{% endif %}}"


_CONTENT, _INPUT, _END = (
    "{{ messages[0].content }}",
    "{{ messages[0].input }}",
    "{{ eos_token }}",
)


def _alpaca(request: str, tail: str) -> str:
    """Alpaca's two prompts, with a closing sentence and what follows the last heading.

    Args:
      request: the sentence that says what to do.
      tail: behind "### Response:".
    """
    question = f"### Instruction:\n{_CONTENT}\n\n"
    return _one_answer(
        f"{TASK}. {request}\n\n{question}### Response:{tail}",
        f"{WITH_INPUT}{request}\n\n{question}### Input:\n{_INPUT}\n\n"
        f"### Response:{tail}",
        "",
        _END,
    )


_VICUNA_TURNS = (
    f"{VICUNA}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ ' ' if loop.first }}USER: {{ message.content }}"
    "{% if not loop.last or add_generation_prompt %} ASSISTANT:{% endif %}"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)

_RAW_TURNS = (
    "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
)

_TEMPLATES = (
    Template(
        name="flowertune",
        # The answer has no end token: the authors' formatting writes none.
        text=_one_answer(
            f"{TASK}. {REQUEST}\n### Instruction:\n{_CONTENT}\n### Response:",
            None,
            " ",
            "",
        ),
        sha256="cf9a9ed5705eea5b6c96def67399202ed09dd879f7ad52f6fea97084bd640f98",
        source="FlowerTune, authors' code (formatting_prompts_func)",
    ),
    Template(
        name="openfedllm",
        # A blank stands behind the instruction in the authors' code.
        text=_one_answer(
            f"{TASK}. {REQUEST}\n\n### Instruction:\n{_CONTENT} \n\n### Response:",
            None,
            " ",
            _END,
        ),
        sha256="40ca0ee94420a09b5c3811a40c6d508c41e6d4a03371e8f3671cd61f62272041",
        source="OpenFedLLM and FedLLM-Bench, authors' code (alpaca_template)",
    ),
    Template(
        name="vicuna",
        text=_VICUNA_TURNS,
        sha256="feaf805f8be074196f45aafee0948017553ad05a3a388850d722f37754b90846",
        source="FastChat's vicuna_v1.1, which FedLLM-Bench trains several turns with",
    ),
    Template(
        name="alpaca",
        text=_alpaca(REQUEST, ""),
        sha256="1461589191ac5fd568901bb3fa482d029722ad95db1b82e99d063a0eb9e5dad9",
        source="Stanford Alpaca, authors' code (PROMPT_DICT)",
    ),
    Template(
        name="alpaca-lora",
        text=_alpaca(REQUEST, "\n"),
        sha256="a2ab43ace1a12b49665a6606326d006fbb6adbdcd9c69727305da147f6723961",
        source="Alpaca-LoRA, templates/alpaca.json",
    ),
    Template(
        name="fedkseed",
        text=_alpaca("Write a response for the task request.", ""),
        sha256="2bc5f6cebb2b957479833352fa13989bce8bbf91420fdfb105ebe337b23a394a",
        source="FedKSeed, authors' code (PROMPT_DICT of llm_dataset.py)",
    ),
    Template(
        name="raw",
        text=_RAW_TURNS,
        sha256="5e038197c89daee5d4e03d3e0c8ac0fab5a25e2dc88f203f9c948f68889e416f",
        source="pfl-research, authors' code: each message and the end token",
    ),
)

TEMPLATES: dict[str, Template] = {template.name: template for template in _TEMPLATES}
