"""What do FedCLIP's attention adapters bring to a vendor that nobody has trained on?

No pretrained pair of towers is in the packages that are used here. Two that are there
take CLIP's place: a DINOv2 that reads drawings of emoji at 56 pixels, and a MiniLM that
reads their names, both frozen. Two linear projections into one space are trained once a
seed on public emoji, drawings of all vendors with their own names, by CLIP's loss; all
arms start there. That our CLIP, its loss and FedCLIP's adapter compute what
transformers computes is tested on random weights (tests/algorithms/test_fedclip.py).

Other emoji are of clients: each of three vendors is left out in turn, the other two have
four clients each with categories by Dirichlet 0.5, all of them in every round. Texts are
the names of eight categories.

Score: accuracy by names on the vendor that is left out, on emoji of no client, the mean
over vendors; beside it, the same on the vendors that train. Bytes are those of the
rounds; all arms start from the same projections.

Controls: adapters on shuffled categories; projections that were never trained.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft, study, tasks
from fedjax_fm.algorithms import fedclip
from fedjax_fm.datasets.packaged.emoji import CATEGORIES
from fedjax_fm.experiments.clip.towers import Pairs, Towers, pairs

PROJECTIONS = ["visual_projection", "text_projection"]
METHODS = {
    "image": peft.attention_adapter(),
    "both": peft.attention_adapter(PROJECTIONS),
    "projections": peft.head(PROJECTIONS),
}
CLASSES = np.arange(len(CATEGORIES))[:, None]


@dataclass(frozen=True)
class Config:
    """Settings."""

    names: int = 700  # emoji, half of them public
    clients: int = 4  # of a vendor
    alpha: float = 0.5
    space: int = 64
    public_steps: int = 300
    rounds: int = 20
    epochs: int = 1
    batch_size: int = 32
    grid: tuple[float, ...] = (1e-4, 1e-3, 1e-2)  # AdamW's learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"names": 96, "clients": 2, "space": 8, "public_steps": 4}
        return dataclasses.replace(self, **small, rounds=2, grid=(1e-3,), seeds=(0, 1))


def data(config: Config, seed: int, split: str) -> list[Pairs]:
    """The pairs with each vendor left out in turn."""
    how = {"most": config.names, "clients": config.clients, "alpha": config.alpha}
    return pairs(seed, split, **how)


def joined_towers(run: study.Run) -> nnx.Module:
    """The towers with projections that the public pairs have trained, once a seed."""
    config, found = run.config, run.data[0]
    towers = random_towers(run)
    adapted = peft.apply(towers, METHODS["projections"])
    features = tasks.pair_features(adapted)
    how = {"local_steps": config.public_steps, "batch_size": config.batch_size}
    method = fedclip(features, optax.adam(1e-3), **how)
    public = ffm.Population.from_clients([found.public])
    one = ffm.Simulator(
        method, public, backbone=adapted.backbone, cohort_size=1, seed=run.seed
    )
    state, _ = one.run(one.init(adapted.delta), 1)
    return adapted.model(state.delta)


def random_towers(run: study.Run) -> nnx.Module:
    """The towers with projections at their initial values."""
    found = run.data[0]
    width = found.public["pixel_values"].shape[1]
    return Towers(found.names, width, run.config.space, nnx.Rngs(run.seed))


def scores_of(adapted: peft.Adapted, delta: Any, found: Pairs) -> dict[str, float]:
    """Accuracy by names on both tests."""
    task = tasks.zero_shot(adapted, CLASSES)
    parts = {"accuracy": found.test, "seen": found.seen}
    each = {
        name: ffm.evaluate(task, delta, adapted.backbone, test)["accuracy"]
        for name, test in parts.items()
    }
    return {name: float(np.mean(score)) for name, score in each.items()}


def mean(scores: list[dict[str, float]]) -> dict[str, float]:
    """Over vendors."""
    return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}


def tuned(run: study.Run, part: str, shuffle: bool = False) -> dict[str, float]:
    """FedCLIP of one of `METHODS`."""
    config, scores = run.config, []
    towers = run.once("towers", functools.partial(joined_towers, run))
    for found in run.data:
        adapted = peft.apply(towers, METHODS[part], jax.random.key(run.seed))
        adamw = optax.adamw(run["learning_rate"], b2=0.98, eps=1e-6, weight_decay=0.2)
        how = {"epochs": config.epochs, "batch_size": config.batch_size}
        method = fedclip(tasks.pair_features(adapted), adamw, **how)
        clients = found.clients
        if shuffle:
            ids = np.random.default_rng(run.seed).permutation(
                clients.arrays["input_ids"]
            )
            arrays = {**clients.arrays, "input_ids": ids}
            clients = ffm.Population.from_arrays(arrays, clients.offsets)
        done = run.simulate(
            method,
            clients,
            adapted.delta,
            config.rounds,
            backbone=adapted.backbone,
            cohort_size=clients.n_clients,
        )
        scores.append(scores_of(adapted, done.state.delta, found))
    return mean(scores)


def zero_shot(run: study.Run, random: bool = False) -> dict[str, float]:
    """By names alone, behind projections of public pairs or random ones."""
    make = random_towers if random else joined_towers
    towers = run.once(f"towers {random}" if random else "towers", lambda: make(run))
    adapted = peft.apply(towers, METHODS["image"])
    return mean([scores_of(adapted, adapted.delta, found) for found in run.data])


def arm(name: str, label: str, part: str, **how: Any) -> study.Arm:
    """FedCLIP of a part, tuned unless it is like another arm."""
    grid = {} if "like" in how else {"learning_rate": "grid"}
    like = how.pop("like", None)
    go = functools.partial(tuned, part=part, **how)
    return study.Arm(name, go, label, grid, like=like)


ARMS = (
    arm("image", "FedCLIP, adapter behind images", "image"),
    arm("both", "FedCLIP, adapters behind both", "both"),
    arm("projections", "both projections, averaged", "projections"),
    study.Arm("zero_shot", zero_shot, "zero-shot, by names"),
)
RANDOM = functools.partial(zero_shot, random=True)
STUDY = study.Study(
    question="What do attention adapters bring to a vendor that nobody has trained on?",
    expected="FedCLIP above zero-shot, and above averaged projections; adapters behind "
    "both towers like one behind images",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(
        *ARMS,
        arm("shuffled", "FedCLIP, shuffled names", "image", shuffle=True, like="image"),
        study.Arm("random", RANDOM, "random projections"),
    ),
    comparisons=study.against("image", ARMS),
    controls=(study.Control("shuffled", "image"), study.Control("random", "image")),
    scores=(study.Score("seen", "vendors that train", unit="%", scale=100.0),),
)
