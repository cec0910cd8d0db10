"""The settings of `fedjax-fm finetune`, on the command line and as a TOML file."""

import dataclasses
import json
import math
import re
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.settings import check_type, nearest, replace

FILE = "finetune.toml"
NONE = "none"  # in that file
_SECRET = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,})")


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on.

    Attributes:
      model: a folder, a .gguf file or a hub id.
      data: a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow), a folder of texts or
        of images in folders of their classes, what datasets.save_to_disk wrote, a named
        benchmark such as fed-aya, or the name of a data set of the hub.
      stand_in: takes made-up rows of the same schema for a named benchmark.
      split: of a data set of the hub.
      prompt: column of the instruction.
      input: column of what the instruction is about; rows may have none.
      response: column of the answer.
      messages: column of conversations, lists of {role, content}.
      text: column of texts: with `label` they are classified, alone they are continued.
      text_pair: column of a second text.
      label: column of the classes, numbers or words.
      image: column of images.
      chosen: column of the answers that were preferred, texts or messages; the prompt
        is --prompt, or the messages before the last.
      rejected: column of the other answers.
      template: chat is the model's own; alpaca, alpaca_short, flan; a text with
        {prompt} and {response}; or a .jinja file.
      turns: all makes one example of a conversation, cut on the right; each makes one
        of every answer, after what comes before it, cut on the left.
      client: a column whose values are the clients, or a partitioner with its
        arguments, such as dirichlet:num_partitions=20,alpha=0.5.
      min_examples: smaller clients are left out.
      drop_duplicates: keeps the first of equal examples, whoever has it.
      holdout_clients: share of the clients that never train and are scored.
      holdout_examples: share of each other client's examples that is scored.
      max_length: tokens of an example; longer ones are cut, see turns.
      pack: puts several short texts into one row of max_length tokens.
      method: such as fedavg, fedit, "hetlora:tail_penalty=0.1", dp_fedavg, fedkseed.
      server_optimizer: such as adam:1e-3 or fedadam:1e-2; for fedavg and dp_fedavg.
      preferences: loss on pairs, such as dpo, "dpo:beta=0.2,label_smoothing=0.1",
        dpo:length_margin=0.01, ipo; the reference is the model before training.
      peft: such as lora, bitfit, "houlsby:64", "combine(lora(8), bitfit)", full, head.
      rank: of lora and its variants.
      alpha: of lora and its variants; none: twice the rank.
      targets: layers that are adapted, with commas between them; none: query and value
        projections.
      dtype: of weights and activations.
      pooling: what a classifier on a BERT reads, the first token or the mean of all.
      frozen: format of the frozen weights: dense, int8, nf4, nf4_double, q4_1.
      optimizer: of the clients, by optax's name.
      learning_rate: of the clients. Several are tried on clients that nothing else
        uses, with every baseline likewise.
      schedule: over the rounds.
      clip_norm: of a batch's gradient; none: no clipping.
      local_steps: of a client a round.
      epochs: of a client a round, in place of local_steps.
      batch_size: examples of a step.
      rounds: of training.
      cohort: clients a round.
      sampler: such as uniform, poisson, spaced.
      uplink: channel of what clients send, such as "top_k:0.1|quantize:4"; none: all.
      downlink: channel of what the server sends.
      epsilon: promise of differential privacy to each client; takes dp_fedavg.
      dp_delta: the delta of that promise; none: 1 over the number of clients ^ 1.1.
      dp_clip: norm at which a client's update is clipped.
      canaries: random texts that `fedjax-fm audit` looks for afterwards; a coin decides
        of each whether its client has it.
      canary_repeats: how often a client has its canary.
      seeds: one run each; three or more for an interval.
      every: rounds between two evaluations and checkpoints; none: ten in all, or fewer
        where they would cost more than a tenth of the run by count of examples.
      eval_examples: most examples that are scored at a time.
      baselines: compares with zero-shot, local and centralised training.
      local_clients: clients that are trained alone, for the local baseline.
      answers: held-out prompts that are answered before and after.
      new_tokens: most tokens of an answer.
      merge: also writes the merged model, as safetensors or gguf.
      track: trackers that get the metrics of every round: jsonl, tensorboard, wandb,
        mlflow, trackio.
      out: folder of the run.
    """

    model: str = ""
    data: str = ""
    stand_in: bool = False
    split: str = "train"
    # Columns
    prompt: str | None = None
    input: str | None = None
    response: str | None = None
    messages: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    image: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    template: str = "chat"
    turns: Literal["all", "each"] = "all"
    # Clients
    client: str = ""
    min_examples: int = 1
    drop_duplicates: bool = False
    holdout_clients: float = 0.1
    holdout_examples: float = 0.1
    max_length: int = 256
    pack: bool = False
    # Method
    method: str = "fedavg"
    server_optimizer: str | None = None
    preferences: str = "dpo"
    peft: str = "lora"
    rank: int = 8
    alpha: float | None = None
    targets: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    pooling: Literal["cls", "mean"] = "cls"
    frozen: Literal["dense", "int8", "nf4", "nf4_double", "q4_1"] = "dense"
    optimizer: str = "adamw"
    learning_rate: tuple[float, ...] = (1e-3,)
    schedule: Literal["constant", "cosine"] = "cosine"
    clip_norm: float | None = 1.0
    local_steps: int | None = None
    epochs: int | None = None
    batch_size: int = 4
    rounds: int = 20
    cohort: int = 10
    sampler: str = "uniform"
    uplink: str | None = None
    downlink: str | None = None
    # Privacy
    epsilon: float | None = None
    dp_delta: float | None = None
    dp_clip: float = 0.5
    canaries: int = 0
    canary_repeats: int = 1
    # Judging
    seeds: tuple[int, ...] = (0,)
    every: int | None = None
    eval_examples: int = 512
    baselines: bool = True
    local_clients: int = 8
    answers: int = 10
    new_tokens: int = 48
    # What is written
    merge: tuple[Literal["safetensors", "gguf"], ...] = ()
    track: tuple[str, ...] = ()
    out: str = "runs/finetune"

    def __post_init__(self) -> None:
        whole = {
            name: getattr(self, name)
            for name in ("rounds", "cohort", "batch_size", "rank", "min_examples")
        }
        more = (
            "local_steps", "epochs", "every", "eval_examples", "local_clients",
            "canary_repeats",
        )  # fmt: skip
        whole |= {name: getattr(self, name) for name in more}
        for name, value in whole.items():
            if value is not None and value < 1:
                raise UsageError(f"expected {name} >= 1, got {name}={value}")
        for name in ("holdout_clients", "holdout_examples"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"expected 0 <= {name} < 1, a share, got {getattr(self, name)}"
                )
        for name in ("epsilon", "dp_delta", "dp_clip", "clip_norm", "alpha"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"expected {name} > 0, got {name}={value}")
        if self.max_length < 8:
            raise UsageError(f"expected max_length >= 8, got {self.max_length}")
        if self.canaries < 0:
            raise UsageError(f"expected canaries >= 0, got canaries={self.canaries}")
        if self.canary_repeats > 1 and not self.canaries:
            raise UsageError(
                "canary_repeats says how often a canary is planted: give canaries, too"
            )
        if self.answers < 0 or self.new_tokens < 1:
            raise UsageError("expected answers >= 0 and new_tokens >= 1")
        if self.local_steps is not None and self.epochs is not None:
            raise UsageError("give local_steps or epochs, not both")
        rates = self.learning_rate
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise UsageError(f"expected learning rates > 0, got {rates}")
        for field in dataclasses.fields(self):
            if _SECRET.search(str(getattr(self, field.name))):
                raise UsageError(
                    f"{field.name} holds what looks like a secret token; settings are "
                    "written to the run's folder. Put tokens into the environment"
                )

    def smoke(self) -> "Settings":
        """A small version, to see that it works."""
        return replace(
            self, rounds=2, local_steps=1, epochs=None, seeds=self.seeds[:1], answers=2
        )

    @property
    def steps(self) -> dict[str, int]:
        """local_steps or epochs, whichever is given; four steps if none is."""
        if self.epochs is not None:
            return {"epochs": self.epochs}
        return {"local_steps": 4 if self.local_steps is None else self.local_steps}


# Settings that may be none, and are not by default.
_NOT_NONE = [
    field.name
    for field in dataclasses.fields(Settings)
    if "None" in str(field.type) and field.default is not None
]


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file.

    Args:
      path: of the file.

    Returns:
      {setting: value}, lists as tuples; "none" of a number is None.

    Raises:
      UsageError: it cannot be read, or has a setting that there is not, or a value of
        another type.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    hints = typing.get_type_hints(Settings)
    found = {}
    for name, value in fields.items():
        if name not in hints:
            raise UsageError(f"{path}: {nearest(name, hints, 'setting')}")
        if value == NONE and name in _NOT_NONE:
            value = None
        check_type(name, value, hints[name], str(path))
        found[name] = tuple(value) if isinstance(value, list) else value
    return found


def as_toml(settings: Settings) -> str:
    """The TOML file that gives these settings again.

    TOML has no none: what is none is left out, or "none" where that is not the default.

    Args:
      settings: of a run.

    Example:
      >>> text = as_toml(Settings(model="gpt2", data="chats.jsonl"))
      >>> text.splitlines()[:2]
      ['model = "gpt2"', 'data = "chats.jsonl"']
    """
    lines = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value is None and field.name in _NOT_NONE:
            value = NONE
        if value is not None:
            lines.append(f"{field.name} = {_spelled(value)}")
    return "\n".join(lines) + "\n"


def _spelled(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    return _quoted(str(value))


def _quoted(text: str) -> str:
    """A basic string of TOML: that of JSON, and an escape for what JSON leaves out."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
