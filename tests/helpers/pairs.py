"""Which methods go together with which parts of the library, one table.

`python tests/helpers/pairs.py` writes docs/pairs.md from it, and tests/contracts/test_pairs.py
holds every cell to what it says.
"""

from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "pairs.md"


class Works(NamedTuple):
    """A round gives finite numbers and the right bytes."""

    how: str = ""


class Refused(NamedTuple):
    """An error before the first round."""

    words: str  # of its message
    reason: str = ""  # for the page, where the message does not say it as shortly


class Meaningless(NamedTuple):
    """Nothing that one could want."""

    reason: str


Cell = Works | Refused | Meaningless

# Methods, in the order of the page.

OPTIMISATION = (
    *("fedavg", "fedsgd", "fedprox", "fedprox_adaptive", "fedavgm", "fedadam"),
    *("fedyogi", "fedadagrad", "scaffold", "feddyn", "fednova", "mime", "mimelite"),
    *("diloco", "streaming_diloco", "moon", "qfedavg", "power_of_choice"),
)
COMPRESSED = (
    *("fedpaq", "diana", "ef21", "fedlin", "fedobd", "flasc", "docofl", "soteriafl"),
)
PERSONAL = (
    *("local_only", "fedper", "fedrep", "fedbabu", "ditto", "pfedme", "apfl"),
    *("fedala", "per_fedavg", "ifca", "feddpa_t", "feddpa_f"),
)
OF_PAIRS = (
    *("fedit", "ffa_lora", "fedsa_lora", "rolora", "fedex_lora", "flora", "flexlora"),
    *("hetlora", "lora_fair", "fedsvd", "fedrot_lora", "frlora", "fedrpca", "fslora"),
    *("fedask", "lora_a2", "slora"),
)
OF_LORA = (*OF_PAIRS, "fed_sb", "ravan", "fedlease")
SAME_MASKS = ("gradual_pruning", "lottery_ticket", "prunefl", "fedtiny")
MASKED = (*SAME_MASKS, "lotteryfl")
PRUNING = (*MASKED, "movement_pruning", "soft_movement_pruning")
OTHERS = (
    *("dp_fedavg", "fedkseed", "fedpm", "heterofl", "fjord", "fedbuff", "fedbert"),
    *("feddf", "fedmd", "fedmkt", "fedclip", "fada"),
)
TOPOLOGIES = ("gossip", "hierarchical")
METHODS = (
    *OPTIMISATION, *TOPOLOGIES, *COMPRESSED, *PERSONAL, *OF_LORA, *PRUNING, *OTHERS,
)  # fmt: skip
# The same round as another method's.
SIBLINGS = {
    "cdp_sgd": "soteriafl", "fedobd_second_stage": "fedobd", "fedlease_warm_up": "fedlease",
}  # fmt: skip

# What they are combined with.

ROUNDS = {
    "unbiased": "uplink, unbiased",
    "biased": "uplink, biased",
    "feedback": "error feedback",
    "down": "downlink, lossy",
    "drops": "clients that drop out",
    "late": "clients that are late",
    "poisson": "cohorts of any size",
    "fixed": "always the same clients",
}
PRIVACY = {"central": "noise at the server", "local": "noise at the client"}
PEFT = {
    "lora": "LoRA",
    "dora": "DoRA",
    "lora_xs": "LoRA-XS, LoRA-SB",
    "adapters": "adapters",
    "ia3": "(IA)³",
    "bitfit": "BitFit",
    "prompt": "prompts",
    "prefix": "prefixes",
    "full": "layers as they are",
}
ROBUST = {"coordinates": "coordinate median", "distances": "Multi-Krum"}
PARTS = {**ROUNDS, **PEFT, **PRIVACY, **ROBUST}

# What does not simply work.

ENCODED = Refused("the method encodes its messages itself")
ADDRESSED = Refused(
    "sends every client its own part", "every client is sent another part of the model"
)
MOVES = Refused("the entries of an upload are other ones each round")
TWICE = Refused("send again by themselves what was lost")
UNMET = Refused("the sampler always draws the same", "some clients are never met")
NUMBERS = Refused(
    "carries floating leaves only", "seeds and round numbers travel exactly"
)
SILENT = Meaningless("nothing is sent")
ONE_WAY = Meaningless("what is sent is not added up over rounds")
MASKS = Meaningless("what is sent is masks of one bit")
NO_PAIRS = Refused("expected pairs of leaves lora_a and lora_b", "no pairs A, B")
NO_SQUARES = Refused("expected leaves lora_r in the delta", "no square R")
NO_HEADS = Refused("expected leaves lora_h beside lora_s", "no heads H between A and B")
NO_EXPERTS = Refused("expected leaves expert_a, expert_b and router", "no experts")
RESCALED = Refused("not what DoRA adds to a kernel", "DoRA's kernel is not W + A B")
WHOLE = Meaningless("trains networks of its own making: masks, widths or halves")
NO_SMALLER = Meaningless("the layers that stay as they are would be no smaller")
OWN_NETWORKS = Refused("fada needs the parts", "the delta is networks of its own")
SEVERAL = Meaningless("models of several architectures teach each other, whole")
NO_NOISE = Refused(
    "unexpected keyword argument 'noise_multiplier'",
    "nothing bounds what one client or one example moves",
)
CHOSEN = Refused(
    "without a guarantee of privacy", "who is chosen depends on private losses"
)
NO_MEAN = Refused(
    "there is no mean to replace", "the server does not take a mean of uploads"
)
UNFORMED = Refused("products B A, which are never formed")
BOTH_FACTORS = Refused(
    "clients send both factors of",
    "clients send both factors, which say nothing of B A; `factors=True` takes them",
)
NOISE_OF_A_MEAN = Refused("noise that is made for a mean", "its guarantee is a mean's")
AS_SERVER = Works("`dp_fedavg(server_optimizer=...)`")


def _for(methods, parts, cell) -> dict[tuple[str, str], Cell]:
    return {(method, part): cell for method in methods for part in parts}


WIRE_UP = ("unbiased", "biased", "feedback")
ENCODE_UP = ("fedpaq", "diana", "ef21", "fedlin", "fedobd", "flasc", "soteriafl")
FOLLOW = ("scaffold", "feddyn", "diana", "ef21", "fedlin", "soteriafl")
NOT_WHOLE = tuple(part for part in PEFT if part not in ("lora", "dora"))
NOT_FULL = tuple(part for part in PEFT if part != "full")
PRODUCTS = ("fedex_lora", "flora", "flexlora", "lora_fair", "frlora", "fedask")
TURNED = ("fslora", "lora_a2", "ravan", "fedsvd", "flexlora", "fedask")
WITHOUT_MEAN = (
    *("scaffold", "feddyn", "qfedavg", "power_of_choice", "ifca", "feddpa_f"),
    *TOPOLOGIES,
    *("fedpaq", "diana", "ef21", "fedlin", "fedobd", "flasc", "soteriafl"),
    *("hetlora", "lora_fair", "frlora", "fedrpca", "fslora", "fedask", "lora_a2"),
    *("ravan", "fedlease", *MASKED, "fedkseed", "fedpm", "heterofl", "fjord"),
    *("fedbuff", "fedbert", "feddf", "fedmd", "fedmkt", "fada"),
)
EXCEPTIONS: dict[tuple[str, str], Cell] = {
    # The wire
    **_for(ENCODE_UP, WIRE_UP, ENCODED),
    **_for(("fedlin", "fedobd", "flasc", "fedkseed"), ("down",), ENCODED),
    **_for(FOLLOW, ("feedback",), TWICE),
    **_for((*TURNED, *MASKED, "fada"), ("feedback",), MOVES),
    **_for(("docofl", "fedbert", *OF_PAIRS, "fed_sb"), ("down",), ADDRESSED),
    **_for(("fedlease", "lotteryfl", "fada", "gossip"), ("down",), ADDRESSED),
    **_for(SAME_MASKS, ("down",), ENCODED),
    **_for(("fedtiny", "lotteryfl"), ("unbiased", "biased"), ENCODED),
    **_for(("fedmkt",), (*WIRE_UP, "down"), ENCODED),
    **_for(("fedkseed",), WIRE_UP, NUMBERS),
    **_for(("fedbuff",), ("down",), NUMBERS),
    **_for(("fedmd", "flora"), ("feedback",), ONE_WAY),
    **_for(("fedpm",), WIRE_UP, MASKS),
    **_for(("local_only",), (*WIRE_UP, "down"), SILENT),
    # Cohorts
    **_for(("scaffold", "feddyn", "diana", "ef21", "soteriafl"), ("fixed",), UNMET),
    **_for(
        ("fedbuff",),
        ("poisson", "fixed"),
        Refused("expected no sampler beside it", "the log of arrivals says who comes"),
    ),
    # Parts of models
    **_for(OF_PAIRS, NOT_WHOLE, NO_PAIRS),
    **_for(PRODUCTS, ("dora",), RESCALED),
    **_for(("fed_sb",), [part for part in PEFT if part != "lora_xs"], NO_SQUARES),
    **_for(("ravan",), PEFT, NO_HEADS),
    **_for(("fedlease",), PEFT, NO_EXPERTS),
    **_for(PRUNING, NOT_FULL, NO_SMALLER),
    **_for(("fedpm", "heterofl", "fjord", "fedbert"), PEFT, WHOLE),
    **_for(("feddf", "fedmd"), PEFT, SEVERAL),
    **_for(("fada",), PEFT, OWN_NETWORKS),
    # Privacy
    **_for(METHODS, PRIVACY, NO_NOISE),
    **_for(("local_only",), PRIVACY, SILENT),
    **_for(("power_of_choice",), PRIVACY, CHOSEN),
    **_for(("dp_fedavg",), ("central",), Works()),
    **_for(("fedavg",), ("central",), Works("`dp_fedavg`")),
    **_for(("fedavgm", "fedadam", "fedyogi", "fedadagrad"), ("central",), AS_SERVER),
    **_for(("soteriafl",), ("local",), Works()),
    **_for(("diana",), ("local",), Works("`soteriafl`")),
    # Rules in the place of a mean
    **_for(WITHOUT_MEAN, ROBUST, NO_MEAN),
    **_for(("dp_fedavg",), ROBUST, NOISE_OF_A_MEAN),
    **_for(("local_only",), ROBUST, SILENT),
    **_for(("fedex_lora", "flora", "flexlora"), ("coordinates",), UNFORMED),
    **_for(("fedit", "slora", "fedrot_lora"), ROBUST, BOTH_FACTORS),
}
EXCEPTIONS[("dp_fedavg", "local")] = Meaningless("the server adds its noise")
EXCEPTIONS[("soteriafl", "central")] = Meaningless("the clients add their noise")


def cell_of(method: str, part: str) -> Cell:
    """What the table says; works where nothing else is declared."""
    return EXCEPTIONS.get((method, part), Works())


# The page

HEAD = """# What goes together

Every method with every kind of channel, cohort, part of a model and noise. A test runs
or refuses each cell (`tests/contracts/test_pairs.py`); the page is made from the table that it
reads, by `python tests/helpers/pairs.py`.

- **works**: rounds give finite numbers, and what is billed is the length of what travels.
- **refused**: an error before the first round, whose message says why.
- **meaningless**: nothing that one could want.

`cdp_sgd` is like `soteriafl`, `fedobd_second_stage` like `fedobd`; `fedlease_warm_up` is
the one round before `fedlease`. Methods with a channel of
their own compress by that; the columns are the simulator's `uplink` and `downlink`.
"""
GROUPS = (
    ("Channels and cohorts", ROUNDS),
    ("Parts of models", PEFT),
    ("Privacy", PRIVACY),
    ("Robust rules in the place of the mean", ROBUST),
)


def page() -> str:
    """docs/pairs.md."""
    return "\n".join([HEAD, *(_section(*group) for group in GROUPS)])


def _section(title: str, parts: dict[str, str]) -> str:
    reasons: list[str] = []

    def shown(cell: Cell) -> str:
        if isinstance(cell, Works):
            return f"works: {cell.how}" if cell.how else "works"
        is_refused = isinstance(cell, Refused)
        reason = (cell.reason or cell.words) if is_refused else cell.reason
        if reason not in reasons:
            reasons.append(reason)
        word = "refused" if is_refused else "meaningless"
        return f"{word} ({reasons.index(reason) + 1})"

    rows = [
        f"| `{method}` | "
        + " | ".join(shown(cell_of(method, part)) for part in parts)
        + " |"
        for method in METHODS
    ]
    table = [
        f"| method | {' | '.join(parts.values())} |",
        "|---" * (len(parts) + 1) + "|",
        *rows,
    ]
    numbered = [f"{i + 1}. {reason}" for i, reason in enumerate(reasons)]
    return "\n".join([f"## {title}\n", *table, "", *numbered, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
