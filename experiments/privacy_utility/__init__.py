"""Which part of a model is worth training under client-level privacy?

The noise of differential privacy grows with what is trained. DP-FedAvg at the level of
clients: Poisson cohorts and independent noise, accounted by dp-accounting for just that
sampler; delta is 1e-5, one client more or less. Rated sentences of four domains, two
sentences of one domain a client: 6,480 clients, 345 of them a round on average, 15
rounds of one SGD step at the clients and Adam at the server. MiniLM, whose first five
layers are frozen for every arm and computed once; "full" is all of the last layer.
Every arm trains the head too.

30 % of the documents are public. On them every arm chooses Adam's rate, once at epsilon
0.5 for all arms with noise, with as much noise as a run of the study has, and once
without. 256 public clients give each arm its clip norm, the median of their first
updates, and Fed-SB its directions and its start, from the signs of gradients; sending
these is not in its bytes.

Score: accuracy on sentences of other documents. Controls: LoRA on shuffled labels, the
untrained start, the larger class.
"""

import dataclasses
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.experiments.privacy_utility.clients import data
from fedjax_fm.experiments.privacy_utility.training import private, untrained
from fedjax_fm.experiments.shared.controls import largest_class
from fedjax_fm.study import arm_of

PARTS = {
    "full": "all of the last layer",
    "lora": "LoRA",
    "ffa_lora": "FFA-LoRA",
    "fed_sb": "Fed-SB",
    "bitfit": "BitFit",
    "head": "head alone",
}
EPSILONS, TUNED_AT = (0.1, 0.5, 2.0, None), 0.5  # None: no noise


@dataclass(frozen=True)
class Config:
    """Settings."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 16
    share: float = 1.0  # of all sentences
    sentences: int = 2  # of a client
    clients: int = 6480
    public_share: float = 0.3  # of the documents
    public_clients: int = 256  # whose first updates are used before the first round
    test_share: float = 0.2
    cohort: int = 345  # planned; the sampler's rate is cohort / clients
    rounds: int = 15
    rank: int = 8
    targets: str = r"^layer\.(intermediate|output)\.dense$"
    first_rate: float = 1e-3  # of the full step that Fed-SB starts from
    delta: float = 1e-5
    grid: tuple[float, ...] = (2.5e-4, 1e-3, 4e-3, 16e-3, 64e-3)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        few = {"share": 0.05, "clients": 120, "public_clients": 16, "cohort": 20}
        return dataclasses.replace(self, **few, rounds=2, grid=(4e-3,), seeds=(0, 1))


def name_of(part: str, epsilon: float | None) -> str:
    """The name of an arm."""
    return f"{part}_noiseless" if epsilon is None else f"{part}_eps{epsilon:g}"


def arm(part: str, epsilon: float | None) -> study.Arm:
    """One part of the model; it is tuned once with noise, and once without."""
    name, noise = name_of(part, epsilon), "no noise"
    if epsilon is not None:
        noise = f"epsilon {epsilon:g}"
    like = None if epsilon in (TUNED_AT, None) else name_of(part, TUNED_AT)
    grid = {} if like else {"learning_rate": "grid"}
    how = {"part": part, "epsilon": epsilon}
    return arm_of(name, private, f"{PARTS[part]}, {noise}", grid, like=like, **how)


CONTROLS = (
    study.shuffled(arm("lora", None), "LoRA, shuffled labels"),
    arm_of("untrained", untrained, "random head, untrained"),
    arm_of("larger_class", largest_class, "the larger class"),
)
STUDY = study.Study(
    question="Which part of a model is worth training, when the noise of differential "
    "privacy grows with what is trained?",
    expected="without noise all of the last layer first and the head alone last; at "
    "epsilon 0.1 the other way round, Fed-SB above LoRA and FFA-LoRA",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(*(arm(part, epsilon) for epsilon in EPSILONS for part in PARTS), *CONTROLS),
    comparisons=[
        (name_of(part, epsilon), name_of("full", epsilon))
        for epsilon in EPSILONS
        for part in PARTS
        if part != "full"
    ],
    controls=[study.Control(control.name, "lora_noiseless") for control in CONTROLS],
    scores=(
        study.Score("numbers", "trained numbers", unit="thousand", scale=1e-3),
        study.Score("noise", "noise multiplier", highest=False, digits=2),
    ),
)
