"""A model's life in a federation: what does it keep of old tasks, and adapters of old bases?

A small decoder of ours, two layers, reads word pieces. Its base is trained from random
weights by DiLoCo (Douillard et al. 2023): eight workers with Shakespeare's speeches, an
exchange every 20 steps. Then three kinds of text come in turn, each with eight clients
of its own: tweets, sentences on films, sentences on products. LoRA of rank 8 on the
attention, FedAvg, as many rounds for each.

    one_adapter   the adapter goes from task to task       adapters   one for each task
    whole         so do all weights                        together   all tasks at once
    newer         the base after further speeches          renewed    adapters made for it
    reused        the old adapters on it, nothing is trained

Score: nats a token on other documents, the mean over the three tasks after the last one;
less is better. Beside it forgetting, backward and forward transfer (`evaluation.transfer`),
and the loss on plays, which says what is left of the base. `diloco` and `synchronous` are
two ways to the base, as many steps each, compared on plays and by their bytes.

Controls: adapters on random weights; adapters that learn from tokens in random order.
"""

import dataclasses
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.experiments.life_cycle.arms import (
    as_it_is,
    one_each,
    one_for_all,
    pretrained,
    reused,
    together,
)
from fedjax_fm.experiments.life_cycle.texts import data
from fedjax_fm.study import Score, arm_of


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run life_cycle`; change one by `--set name=value`."""

    vocabulary: int = 1000  # word pieces
    length: int = 24  # of a row
    least: int = 8  # words of a speech
    width: int = 64
    layers: int = 2
    heads: int = 2
    workers: int = 8
    speeches: int = 200  # of a worker; as many further ones for the newer base
    test_speeches: int = 300
    base_rounds: int = 8
    inner_steps: int = 20
    base_rate: float = 3e-3  # of the base that arms tune
    clients: int = 8  # of a task
    train: int = 60  # sentences of a client
    test: int = 20
    rank: int = 8
    rounds: int = 8  # of a task
    local_steps: int = 4
    batch_size: int = 8
    base_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)  # Adam's, as all of them
    lora_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    whole_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        model = {"vocabulary": 200, "length": 8, "width": 8, "layers": 1, "rank": 2}
        texts = {"workers": 2, "speeches": 8, "test_speeches": 8, "clients": 2}
        walk = {"train": 8, "test": 4, "base_rounds": 1, "inner_steps": 2, "rounds": 1}
        rates = {"base_rates": (3e-3,), "lora_rates": (1e-2,), "whole_rates": (1e-3,)}
        small = {**model, **texts, **walk, **rates, "batch_size": 4, "seeds": (0,)}
        return dataclasses.replace(self, **small, local_steps=1)


BASE, LORA = {"rate": "base_rates"}, {"rate": "lora_rates"}
ARMS = (
    arm_of("diloco", pretrained, "base by DiLoCo", BASE),
    arm_of("synchronous", pretrained, "base, every gradient sent", BASE, together=True),
    arm_of("base", as_it_is, "base, not tuned"),
    arm_of("one_adapter", one_for_all, "one adapter in turn", LORA),
    arm_of(
        "whole", one_for_all, "all weights in turn", {"rate": "whole_rates"}, whole=True
    ),
    arm_of("adapters", one_each, "an adapter each", LORA),
    arm_of("together", together, "all tasks at once", LORA),
    arm_of("newer", as_it_is, "newer base, not tuned", newer=True),
    arm_of("reused", reused, "newer base, old adapters", like="adapters"),
    arm_of(
        "renewed", one_each, "newer base, new adapters", like="adapters", newer=True
    ),
)
STUDY = study.Study(
    question="What does a model keep of old tasks, and an adapter of its old base?",
    expected="adapters for each task forget nothing and lie below one adapter in turn, "
    "which forgets less than all weights do; old adapters help on the newer base, and new "
    "ones more; DiLoCo within 0.1 nats of sending every gradient, for a twentieth of the "
    "bytes (EXPECTED.md)",
    config=Config,
    data=data,
    primary=study.LOSS,
    scores=(
        Score("forgetting", "forgetting", "nats", highest=False, digits=3),
        Score("backward", "backward transfer", "nats", digits=3),
        Score("forward", "forward transfer", "nats", digits=3),
        Score("plays", "loss on plays", "nats", highest=False, digits=3),
    ),
    arms=(
        *ARMS,
        arm_of(
            "shuffled",
            one_each,
            "an adapter each, tokens permuted",
            like="adapters",
            shuffle=True,
        ),
        arm_of(
            "random",
            one_each,
            "an adapter each, random base",
            like="adapters",
            random=True,
        ),
    ),
    comparisons=[
        ("adapters", "base"),
        ("adapters", "one_adapter"),
        ("together", "one_adapter"),
        ("one_adapter", "whole"),
        ("reused", "newer"),
        ("renewed", "reused"),
    ],
    controls=(
        study.Control("shuffled", "adapters"),
        study.Control("random", "adapters", "The base was of no use."),
    ),
)
