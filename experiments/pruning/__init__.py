"""Which pruning keeps the most accuracy while a pretrained transformer is fine-tuned?

Parts of speech in the Brown corpus, a task that needs tuning (the gate); eight clients
with documents of their own, tests of other documents. MiniLM; its first three layers are
frozen and computed once, of the last three's kernels a share stays: entries at random,
the largest of the pretrained ones, the largest while they are trained (gradual), those
that move away from zero (movement), heads and units that do (blocks). Masked, not faster;
only blocks can be taken out (`bench.sparsity` measures that).

Score: accuracy on words of the test, at 30, 15 and 5 % of the kernels. A method's rate is
chosen at 15 % and is that of its other densities.

Controls: gradual pruning at 15 % on shuffled labels; the pretrained layers with a random
head, untrained; a random 5 % against all weights: if that costs nothing, nothing that
is pruned was needed.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fedjax_fm import study
from fedjax_fm.experiments.gate.tasks import MINILM
from fedjax_fm.experiments.pruning.arms import trained, untrained
from fedjax_fm.experiments.pruning.methods import METHODS
from fedjax_fm.experiments.shared.words import Words, deal

DENSITIES = (15, 5, 30)  # per cent; rates are chosen at the first


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run pruning`; change one by `--set name=value`."""

    model: str = MINILM
    clients: int = 8
    cohort: int = 2
    sentences: int = 60  # of a client
    test: int = 300
    max_length: int = 24
    n_layers: int = 3
    rounds: int = 15
    local_steps: int = 6
    batch_size: int = 12
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)  # Adam's
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small: dict[str, Any] = {
            "clients": 2,
            "sentences": 4,
            "test": 8,
            "max_length": 8,
            "rounds": 2,
        }
        few: dict[str, Any] = {
            "local_steps": 1,
            "batch_size": 4,
            "rates": (1e-3,),
            "seeds": (0,),
        }
        return dataclasses.replace(self, **small, **few)


def data(config: Config, seed: int, split: str) -> Words:
    """Deals the split's documents."""
    sizes: dict[str, Any] = {"clients": config.clients, "sentences": config.sentences}
    sizes |= {"max_length": config.max_length, "n_layers": config.n_layers}
    return deal(seed, split, test=config.test, model=config.model, **sizes)


def _arm(method: str, percent: int) -> study.Arm:
    """One method at one density."""
    chosen = f"{method}_{DENSITIES[0]}"
    run = trained(method, percent / 100)
    label = f"{method}, {percent} %"
    if percent == DENSITIES[0]:
        return study.Arm(f"{method}_{percent}", run, label, {"rate": "rates"})
    return study.Arm(f"{method}_{percent}", run, label, like=chosen)


ARMS = [_arm(method, percent) for percent in DENSITIES for method in METHODS]
STUDY = study.Study(
    question="Which pruning keeps the most accuracy while a pretrained transformer is "
    "fine-tuned?",
    expected="at 15 and 5 %: movement above gradual magnitude pruning, that above the "
    "largest pretrained weights, those above random ones, heads and units between; at "
    "30 % gradual pruning above movement. Masked, not faster (EXPECTED.md)",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    scores=(study.Score("density", digits=3),),
    arms=(
        study.Arm("dense", trained("dense", 1.0), "all weights", {"rate": "rates"}),
        *ARMS,
        study.Arm(
            "shuffled",
            trained("gradual", 0.15, shuffle=True),
            "gradual, 15 %, shuffled labels",
            like="gradual_15",
        ),
        study.Arm("untrained", untrained, "untrained"),
    ),
    comparisons=[
        ("movement_15", "gradual_15"),
        ("movement_5", "gradual_5"),
        ("movement_15", "magnitude_15"),
        ("movement_5", "magnitude_5"),
        ("gradual_15", "magnitude_15"),
        ("magnitude_15", "random_15"),
        ("movement_30", "gradual_30"),
        ("blocks_15", "movement_15"),
    ],
    controls=(
        study.Control("shuffled", "gradual_15"),
        study.Control("untrained", "gradual_15"),
        study.Control(
            "random_5",
            "dense",
            "The pruned kernels are not needed: that a method keeps accuracy says little.",
        ),
    ),
)
