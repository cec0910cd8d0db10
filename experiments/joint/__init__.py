"""What adds up: parts of a model that are tuned, times ways to send less?

Task "tags" (`--set task=tags`): parts of speech in the Brown corpus, eight clients with a
mix of genres each, MiniLM. Task "conversations": what eight people of chitchat write,
SmolLM2-135M; a token is asked for where it is one of the 1,024 commonest. Of both models
the layers below the last are frozen and computed once. MiniLM's head is random, and every
part trains it; SmolLM2's is trained by "full" and "head" alone. SmolLM2 has no biases;
zeros are put there for BitFit.

Seven parts: all of the last layer, LoRA, adapters, BitFit, prompts (as prefixes), (IA)³,
and all of it by evaluations alone (FedKSeed). Eight ways: nothing; top 5 % with error
feedback, 4 bits, signs with error feedback, EDEN at 1 bit, which shorten what goes up;
masks at a quarter both ways (FLASC); DiLoCo with 4 and 16 local steps. LoRA has mixed
ranks besides (FlexLoRA, 2 to 16). FedKSeed uploads a few scalars, which have nothing to
compress: it has 4 and 16 steps. All take the same local steps in all, so that 16 a round
are a quarter of the rounds. Each arm has three rates, side by side as one program.

Score: accuracy on the clients' other sentences, with the server's model. Beside it: the
accuracy when a quarter of the bytes has travelled that LoRA sends uncompressed; bytes
both ways in all, and until the target is reached; simulated seconds; bytes of the
compiled round on this machine, all clients at once; joules of the clients' machines and
radios, predicted. Bytes, seconds and joules of an arm that ends below
the target say little: read them beside the accuracy.

Controls: LoRA on shuffled labels; the model before training; the head alone.
`python -m fedjax_fm.experiments.joint.page FOLDER` draws the front, and says which pairs
do not add up.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from fedjax_fm import study
from fedjax_fm.experiments.gate.tasks import MINILM
from fedjax_fm.experiments.joint.arms import trained, untrained
from fedjax_fm.experiments.joint.clients import Dealt, deal
from fedjax_fm.experiments.joint.parts import PARTS, rates_of
from fedjax_fm.experiments.joint.ways import WAYS, pairs
from fedjax_fm.study import arm_of


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run joint`; change one by `--set name=value`."""

    task: Literal["tags", "conversations"] = "tags"
    model: str = MINILM
    decoder: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    max_length: int = 16  # tokens
    vocabulary: int = 1024  # tokens that may come next
    # Clients
    clients: int = 8  # all take part in every round
    sentences: int = 32  # of a client
    judging: int = 16  # sentences of a client
    public: int = 1  # of tags; nothing reads it
    alpha: float = 0.3  # of the mix of genres
    # Parts
    rank: int = 8
    bottleneck: int = 16
    prompt: int = 16
    # Ways to send less
    kept: float = 0.05  # share of the entries that top-k sends
    density: float = 0.25  # of masks, both ways
    # Training
    steps: int = 64  # local steps of a client in all
    batch_size: int = 4
    rates: tuple[float, ...] = (4e-3, 16e-3, 64e-3)  # Adam's, of small parts
    full_rates: tuple[float, ...] = (1e-3, 3e-3, 9e-3)
    zero_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)  # FedKSeed's
    # Budgets
    share: float = 0.25  # of the bytes that LoRA sends uncompressed
    target_tags: float = 0.7  # accuracy
    target_conversations: float = 0.2
    device: str = "jetson-agx-orin"  # of every client, whose joules are predicted
    link: str = "home"
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        sizes = {"clients": 4, "sentences": 4, "judging": 2, "max_length": 8}
        cut = {"vocabulary": 64, "steps": 16, "batch_size": 2, "seeds": (0,)}
        rates = {"rates": (4e-3,), "full_rates": (3e-4,), "zero_rates": (1e-4,)}
        return dataclasses.replace(self, **sizes, **cut, **rates)

    @property
    def target(self) -> float:
        """The accuracy whose price is asked for."""
        return getattr(self, f"target_{self.task}")


def data(config: Config, seed: int, split: str) -> Dealt:
    """Clients of the split."""
    return deal(config, seed, split)


def arm(part: str, way: str) -> study.Arm:
    """One part, sent in one way."""
    label = f"{PARTS[part]}, {WAYS[way].label}"
    grid, how = {"learning_rate": rates_of(part)}, {"part": part, "way": way}
    return arm_of(f"{part}_{way}", trained, label, grid, **how)


ARMS = tuple(arm(part, way) for part, way in pairs())
CONTROLS = (
    arm("head", "plain"),
    arm_of(
        "shuffled",
        trained,
        "LoRA, shuffled labels",
        like="lora_plain",
        part="lora",
        way="plain",
        shuffle=True,
    ),
    study.Arm("untrained", untrained, "before training"),
)
OF_LORA = [arm.name for arm in ARMS if arm.name.startswith("lora_")]
OF_PARTS = [arm.name for arm in ARMS if arm.name.endswith("_plain")]
COST: dict[str, Any] = {"highest": False}
STUDY = study.Study(
    question="Which parts of a model and which ways to send less add up?",
    expected="full tuning first in accuracy, LoRA and adapters next, both within three "
    "points; top-k, 4 bits, EDEN and signs cost LoRA less than two points; what is "
    "compressed is worth least where the part is small already (BitFit, (IA)³, prompts); "
    "DiLoCo's 16 steps and 4 bits are on the front, evaluations alone are not "
    "(EXPECTED.md)",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    scores=(
        study.percent("at_bytes", "at a quarter of LoRA's bytes"),
        study.Score("megabytes", "sent, both ways", "MB", digits=3, **COST),
        study.Score("to_target", "to the target", "MB", digits=3, **COST),
        study.Score("seconds", "simulated", "s", digits=0, **COST),
        study.Score("memory", "memory of a round", "MB", digits=0, **COST),
        study.Score("joules", "energy, predicted", "J", digits=1, **COST),
    ),
    arms=(*ARMS, *CONTROLS),
    comparisons=[
        *((name, "full_plain") for name in OF_PARTS if name != "full_plain"),
        *((name, "lora_plain") for name in OF_LORA if name != "lora_plain"),
    ],
    controls=(
        study.Control(
            "head_plain",
            "full_plain",
            "The task does not need tuning: that an arm gets this far says little.",
        ),
        study.Control("shuffled", "lora_plain"),
        study.Control("untrained", "lora_plain"),
    ),
)
