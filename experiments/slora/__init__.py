"""How much of the gap between LoRA and full tuning does SLoRA close, both stages billed?

Brown-tags, the part of speech of each word, which passed the gate: sentences of 1961
dealt to eight clients by Dirichlet 0.1 over the tag that a sentence has most often,
MiniLM, all clients in every round. LoRA of rank 8 on query and value, SLoRA with half of
its rounds in the first stage at the density at which both stages send as many numbers a
round, and full tuning. As many rounds and steps for all, three learning rates for each.

Score: accuracy on words of other texts. Bytes are those of all rounds, SLoRA's of both
stages. The share of the gap, (SLoRA - LoRA) / (full - LoRA), is for
`python -m fedjax_fm.experiments.slora.share FOLDER`.

Controls: LoRA on shuffled tags; a head on frozen features, which must be worse than
full tuning, or there is no gap to close.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import optax

import fedjax_fm as ffm
from fedjax_fm import peft, study
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.experiments.shared.gated import Dealt, deal_gated


@dataclass(frozen=True)
class Config:
    """Settings."""

    task: str = "brown-tags"
    train: int = 800  # sentences of all clients
    test: int = 400
    clients: int = 8
    alpha: float = 0.1
    max_length: int = 32
    rank: int = 8
    density: float = 0.04  # of stage 1: as many numbers as rank 8 at width 384
    rounds: int = 16
    local_steps: int = 2
    batch_size: int = 8
    lora_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)  # Adam's learning rate
    full_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    head_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"train": 36, "test": 12, "clients": 3, "max_length": 12}
        one = {"lora_rates": (3e-3,), "full_rates": (1e-4,), "head_rates": (3e-3,)}
        walk = {"rounds": 2, "local_steps": 1, "batch_size": 4}
        return dataclasses.replace(self, **small, **one, **walk, seeds=(0,))


def data(config: Config, seed: int, split: str) -> Dealt:
    """Sentences of the split, dealt to clients."""
    names = ("train", "test", "clients", "alpha", "max_length")
    sizes = {name: getattr(config, name) for name in names}
    return deal_gated(config.task, seed, split, **sizes)


def tuned(run: study.Run, kind: str, shuffle: bool = False) -> dict[str, float]:
    """One way of tuning, over all rounds."""
    config, data = run.config, run.data
    lora = peft.lora(config.rank, 2.0 * config.rank, targets="query|value")
    methods = {"full": peft.full(), "head": peft.head()}
    adapted = peft.apply(data.whole, methods.get(kind, lora), jax.random.key(run.seed))
    task, adam = data.task(adapted), optax.adam(run["learning_rate"])
    walk = study.walk(config)
    if kind == "slora":
        own = {"scaling": 2.0, "sparse_rounds": config.rounds // 2}
        algorithm = lora_rules.slora(task, adam, density=config.density, **own, **walk)
    else:
        algorithm = ffm.fedavg(task, adam, **walk)
    clients = data.with_shuffled_labels(run.seed) if shuffle else data.clients
    found = run.simulate(
        algorithm,
        clients,
        adapted.delta,
        config.rounds,
        backbone=adapted.backbone,
        cohort_size=clients.n_clients,
        task=task,
        test=data.test,
        every=config.rounds,
        **data.scoring,
    )
    return {"accuracy": found.scores["accuracy"]}


def arm(name: str, label: str, rates: str = "", **how: Any) -> study.Arm:
    """One way of tuning, with its own learning rates or those of another."""
    like, grid = how.pop("like", None), {"learning_rate": rates} if rates else {}
    go = functools.partial(tuned, kind=like or name, **how)
    return study.Arm(name, go, label, grid, like=like)


ARMS = (
    arm("slora", "SLoRA, both stages", "lora_rates"),
    arm("lora", "LoRA", "lora_rates"),
    arm("full", "full tuning", "full_rates"),
    arm("head", "head on frozen features", "head_rates"),
)
STUDY = study.Study(
    question="How much of the gap between LoRA and full tuning does SLoRA close?",
    expected="SLoRA above LoRA, no difference from full tuning; bytes like LoRA's",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(*ARMS, arm("shuffled", "LoRA, shuffled tags", like="lora", shuffle=True)),
    comparisons=[("slora", "lora"), ("slora", "full"), ("full", "lora")],
    controls=(
        study.Control("shuffled", "lora"),
        study.Control("head", "full", "There is no gap that tuning closes."),
    ),
)
