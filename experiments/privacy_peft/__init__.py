"""Does LoRA memorise less than full tuning, and what does noise in its factors cost?

Task "tags": parts of speech in the Brown corpus, a user two sentences of one text,
MiniLM with a head that was trained on public texts. Task "conversations" (`--set
task=conversations`): what people of chitchat write, a user a person with one message,
SmolLM2-135M; a token is asked for where it is one of the 2,048 commonest. Rows are cut
to 16 tokens. Both models are cut as well: the layers below the last are frozen and
computed once, "full" is the last layer and its head, the other parts leave the head as
it is ("head" trains it alone). SmolLM2 has no biases; zeros are put there for BitFit.

A round: a Poisson cohort, a sixth of the 480 clients in the mean, one gradient over each
client's rows, clipped to the median of public clients' first ones, Adam at the server.
Noise: epsilon 8, 2 and 0.5 of the whole run at delta 1e-4, one client more or less, by
dp-accounting for just that sampler. Rates are chosen on other, public users, at epsilon
2 and without noise, by the loss (which stands in the place of the exposure there).
Canaries: 80 clients, each by a coin, have instead of their rows a random text: four tags
of random words, or a token behind four others.

Score: mean exposure of the planted canaries, among 4,095 candidates, at the first look
at which the held-out loss is 0.15 nats a tag, or 0.3 a token, below that before
training. Every second round is looked at, with noise every eighth; where the loss never
falls so far, its lowest look is taken, and there is no "round at the target". Beside it
the exposure of the last round, the attack on members by their gain in likelihood (area,
and power at 1 % false alarms), and the F1 of tokens that are read off a client's first
upload, noise added, from a pool with eleven times as many.

Controls: everything trained on a few clients without clipping must give more away than
no training, and than full tuning. That untrained models and canaries that were never
planted show chance's exposure, that the overfitted model's members are found, that no
run refutes its epsilon, and what noise in both factors costs is for
`python -m fedjax_fm.experiments.privacy_peft.verdicts FOLDER`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from fedjax_fm import study
from fedjax_fm.experiments.privacy_peft import conversations, tags
from fedjax_fm.experiments.privacy_peft.clients import Data, deal
from fedjax_fm.experiments.privacy_peft.training import overfitted, private, untrained
from fedjax_fm.study import arm_of, percent

PARTS = {
    "full": "all of the last layer",
    "lora": "LoRA",
    "ffa_lora": "FFA-LoRA",
    "fed_sb": "Fed-SB",
    "adapter": "adapters",
    "bitfit": "BitFit",
    "prompts": "prompts, as prefixes",
    "head": "head alone",
}
EPSILONS, TUNED_AT = (None, 8.0, 2.0, 0.5), 2.0  # None: no noise


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run privacy_peft`; change one by `--set name=value`."""

    task: Literal["tags", "conversations"] = "tags"
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    decoder: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    max_length: int = 16  # tokens of a row
    vocabulary: int = 2048  # tokens that may come next
    # Users
    rows_tags: int = 2  # of a user
    rows_conversations: int = 1
    clients: int = 480
    outsiders: int = 160
    final_users: int = 1200  # of tags, from which seeds draw
    tuning_clients: int = 200
    test: int = 60  # users
    canaries: int = 80
    prefix: int = 4  # tokens before a secret token
    candidates: int = 4095
    # Training
    cohort: int = 80  # planned; the sampler's rate is cohort / clients
    rounds: int = 24
    delta: float = 1e-4
    public_clients: int = 100  # whose first gradients give clip norms and directions
    rank: int = 8
    core_rank: int = 24  # of Fed-SB
    bottleneck: int = 16
    prompt: int = 16
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)  # Adam's, of all but full tuning
    full_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    few: int = 40  # members that the overfitted model is trained on
    overfit_rounds: int = 20
    # Looks
    drop_tags: float = 0.15  # nats a tag below the model before training
    drop_conversations: float = 0.3
    every: int = 2  # rounds
    every_with_noise: int = 8
    seeds: tuple[int, ...] = (1, 2, 3)  # 0 was seen while the study was built

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        users = {"clients": 24, "outsiders": 8, "final_users": 40, "test": 8}
        few = {"tuning_clients": 12, "canaries": 12, "few": 6, "public_clients": 8}
        walk = {"cohort": 8, "rounds": 2, "overfit_rounds": 2}
        one = {"rates": (3e-3,), "full_rates": (1e-3,), "seeds": (1,)}
        cut = {"max_length": 10, "vocabulary": 256, "candidates": 63}
        return dataclasses.replace(self, **users, **few, **walk, **one, **cut)

    @property
    def rows(self) -> int:
        """Rows of a user."""
        return getattr(self, f"rows_{self.task}")

    @property
    def drop(self) -> float:
        """How far the held-out loss has to fall until arms are compared, in nats."""
        return getattr(self, f"drop_{self.task}")


def data(config: Config, seed: int, split: str) -> Data:
    """Deals the users of a split."""
    task = tags if config.task == "tags" else conversations
    return deal(task.pool(config), config, seed, split)


def name_of(part: str, epsilon: float | None) -> str:
    """The name of an arm."""
    return f"{part}_noiseless" if epsilon is None else f"{part}_eps{epsilon:g}"


def arm(part: str, epsilon: float | None) -> study.Arm:
    """One part at one epsilon; it is tuned once with noise, and once without."""
    noise = "no noise" if epsilon is None else f"epsilon {epsilon:g}"
    like = None if epsilon in (TUNED_AT, None) else name_of(part, TUNED_AT)
    rates = "full_rates" if part == "full" else "rates"
    grid = {} if like else {"learning_rate": rates}
    how: dict[str, Any] = {"part": part, "epsilon": epsilon}
    label = f"{PARTS[part]}, {noise}"
    return arm_of(name_of(part, epsilon), private, label, grid, like=like, **how)


ARMS = tuple(arm(part, epsilon) for epsilon in EPSILONS for part in PARTS)
FULL = name_of("full", None)
CONTROLS = (
    arm_of("overfitted", overfitted, "everything, on a few clients", like=FULL),
    arm_of("untrained", untrained, "before training"),
)
STUDY = study.Study(
    question="Does LoRA memorise less than full tuning at equal loss, and what does "
    "noise in its factors cost?",
    expected="at equal loss the head and full tuning memorise most, LoRA less, FFA-LoRA "
    "and Fed-SB least; with noise of any epsilon nothing is memorised that the attacks "
    "see; noise in both factors costs LoRA more than noise in B costs FFA-LoRA, most at "
    "epsilon 0.5 (EXPECTED.md)",
    config=Config,
    data=data,
    primary=study.Score(
        "exposure", "exposure at equal loss", "bits", highest=False, digits=2
    ),
    scores=(
        study.Score("final", "last exposure", "bits", highest=False, digits=2),
        study.Score("left_out", "canaries left out", "bits", highest=False, digits=2),
        study.Score("reached", "round at the target", highest=False, digits=0),
        study.Score("loss_at", "loss there", "nats", highest=False, digits=3),
        study.Score("loss", "last loss", "nats", highest=False, digits=3),
        study.ACCURACY,
        study.Score("area_at", "members' area at equal loss", highest=False, digits=3),
        study.Score("area", "last area", highest=False, digits=3),
        percent("power", "members found at 1 % false alarms", highest=False),
        study.Score("area_of_loss", "area of the loss alone", highest=False, digits=3),
        study.Score("refuted", "epsilon refuted", highest=False, digits=2),
        percent("inversion", "F1 of inversion", highest=False),
        study.Score("numbers", "trained numbers", unit="thousand", scale=1e-3),
        study.Score("noise", "noise multiplier", highest=False, digits=2),
    ),
    arms=(*ARMS, *CONTROLS),
    comparisons=[(name_of(part, None), FULL) for part in PARTS if part != "full"],
    controls=(
        study.Control(
            "overfitted",
            "untrained",
            "The canaries of an overfitted model are not found: the study sees nothing.",
        ),
        study.Control("overfitted", FULL),
    ),
)
