"""Does a pretrained start shrink the gap between clients that are alike and that differ?

Nguyen et al. 2022, "Where to begin?": from a pretrained start the accuracy under
Dirichlet 0.1 lies near that of clients that are alike, from random weights far below,
which is the best argument for federated tuning of foundation models.

Brown-tags, the part of speech of each word, which passed the gate: sentences of 1961,
dealt to eight clients IID and by Dirichlet 0.1 over the tag that a sentence has most
often. The first two layers of MiniLM, all of them tuned, from its weights and from random
ones of the same sizes: of six layers random ones learned nothing in the steps that there
is time for. All clients in every round, Adam at the clients. Each of the four arms has
four rates, chosen on sentences that no seed uses.

Score: accuracy on words of other texts; the report draws all four over rounds. The gap
of each start, IID less Dirichlet 0.1, and how much smaller that of the pretrained start
is: `python -m fedjax_fm.experiments.start.gap FOLDER`.

Controls: the pretrained start on shuffled tags; random weights before training.
"""

import dataclasses
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.experiments.shared.gated import Dealt, deal_gated
from fedjax_fm.experiments.start.training import tuned, untrained
from fedjax_fm.study import arm_of


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run start`; change one by `--set name=value`."""

    task: str = "brown-tags"
    train: int = 600  # sentences of all clients
    test: int = 200
    clients: int = 8
    alpha: float = 0.1
    max_length: int = 24
    layers: int = 2  # of MiniLM's six
    rounds: int = 20
    every: int = 2  # rounds between looks at the test
    local_steps: int = 4
    batch_size: int = 8
    pretrained_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)  # Adam's
    random_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    tuning_rounds: int = 20
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"train": 36, "test": 12, "clients": 3, "max_length": 8, "layers": 1}
        one = {"pretrained_rates": (1e-4,), "random_rates": (1e-3,), "seeds": (0,)}
        walk = {"rounds": 1, "tuning_rounds": 1, "local_steps": 1, "batch_size": 4}
        return dataclasses.replace(self, **small, **one, **walk)


def data(config: Config, seed: int, split: str) -> dict[str, Dealt]:
    """The same sentences, dealt in two ways."""
    names = ("train", "test", "clients", "max_length")
    sizes = {name: getattr(config, name) for name in names}
    alphas = {"iid": None, "skewed": config.alpha}
    return {
        how: deal_gated(config.task, seed, split, alpha=alpha, **sizes)
        for how, alpha in alphas.items()
    }


def arm(start: str, dealt: str, label: str) -> study.Arm:
    """One start, on clients of one kind, with rates of its own."""
    grid = {"learning_rate": f"{start}_rates"}
    return arm_of(f"{start}_{dealt}", tuned, label, grid, start=start, dealt=dealt)


ARMS = (
    arm("pretrained", "iid", "pretrained, IID"),
    arm("pretrained", "skewed", "pretrained, Dirichlet 0.1"),
    arm("random", "iid", "random, IID"),
    arm("random", "skewed", "random, Dirichlet 0.1"),
)
SHUFFLED = {"start": "pretrained", "dealt": "skewed", "shuffle": True}
STUDY = study.Study(
    question="Does a pretrained start shrink the gap between clients that are alike and "
    "that differ?",
    expected="pretrained: the gap is below two points; random: it is larger, and both "
    "random arms lie ten points or more below the pretrained ones (EXPECTED.md)",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(
        *ARMS,
        arm_of(
            "shuffled",
            tuned,
            "pretrained, Dirichlet 0.1, shuffled tags",
            like="pretrained_skewed",
            **SHUFFLED,
        ),
        arm_of("untrained", untrained, "random, before training"),
    ),
    comparisons=[
        ("pretrained_skewed", "pretrained_iid"),
        ("random_skewed", "random_iid"),
        ("pretrained_skewed", "random_skewed"),
        ("pretrained_iid", "random_iid"),
    ],
    controls=(
        study.Control("shuffled", "pretrained_skewed"),
        study.Control("untrained", "random_skewed", "The random start learns nothing."),
    ),
)
