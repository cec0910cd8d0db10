"""What does federated LoRA bring on the docstrings of packages that no client has?

SmolLM2-135M-Instruct on functions of installed packages: a package is a client; the
source of a function is the prompt, the first paragraph of its docstring is the answer,
in Alpaca's format. Six packages are unseen; seven more, the same for all seeds, serve
only to choose learning rates. Versions are pinned, as the functions depend on them;
`--set pinned=false` takes what is installed. The model has probably seen these
packages: read differences, not absolute values.

Scores and controls are those of `generate`, and ROUGE-L of 48 greedy answers.
"""

from dataclasses import dataclass
from typing import Literal

from fedjax_fm import datasets
from fedjax_fm.datasets.docstrings import PACKAGES
from fedjax_fm.experiments.shared import language
from fedjax_fm.experiments.shared.conversations import Conversation, Source

INSTRUCTION = "Write the first sentence of this Python function's docstring."
SOURCE_CHARACTERS = (800, 400, 200)


@dataclass(frozen=True)
class Config(language.Config):
    """Settings."""

    clients: int = 20
    min_texts: int = 60
    max_texts: int = 100
    tuning_groups: int = 7
    held_out_clients: int = 6
    template: Literal["chat", "alpaca", "alpaca_short"] = "alpaca"
    max_length: int = 256
    local_only_clients: int = 4
    eval_rows: int = 8
    prompts: int = 48
    pinned: bool = True  # refuses packages of other versions


def functions(config: Config) -> Source:
    """Functions as conversations.

    The user gives an instruction with a function's source as its input, the assistant
    answers with the first paragraph of the docstring.

    Args:
      config: of the study.
    """
    packages = PACKAGES
    if not config.pinned:
        packages = [package.partition("==")[0] for package in PACKAGES]
    table = datasets.load_docstrings(packages)

    def say(row: int, shorter: int) -> Conversation:
        source = str(table["source"][row])[: SOURCE_CHARACTERS[shorter]]
        return [
            {"role": "user", "content": INSTRUCTION, "input": source},
            {"role": "assistant", "content": str(table["docstring"][row])},
        ]

    return Source(
        clients=table["package"],
        groups=table["package"],
        say=say,
        shortenings=len(SOURCE_CHARACTERS),
    )


STUDY = language.make(
    functions,
    question="What does federated LoRA of a small decoder bring on the docstrings of "
    "packages that no client has?",
    expected="centralised and federated level, clients alone above them, the base model far above",
    config=Config,
)
