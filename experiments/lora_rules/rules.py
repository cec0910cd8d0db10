"""One rule on clients of several ranks, until the budget of bytes is spent."""

from typing import Any

import jax
import optax

import fedjax_fm as ffm
from fedjax_fm import peft, study, tasks, trees
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.experiments.shared.controls import as_it_begins
from fedjax_fm.experiments.shared.tail import first_step
from fedjax_fm.peft.lora_sb import lora_sb
from fedjax_fm.study.judged import joined

RANKS = (2, 4, 8, 16, 2, 4, 8, 16)
LARGEST = max(RANKS)
LORA = {
    "alpha": 2.0 * LARGEST,
    "targets": r"^layer\.(intermediate|output)\.dense$",
    "modules_to_save": (),
}


def trained(run: study.Run, rule: str, **how: Any) -> dict[str, float]:
    """One rule, or FedAvg of the "head", until the next round would exceed the budget.

    Args:
      run: of the arm.
      rule: its name.
      **how: settings of the rule.
    """
    chosen = method(run, rule)
    adapted = peft.apply(run.data.model, chosen, jax.random.key(run.seed))
    task, adam = tasks.classification(adapted), optax.adam(run["learning_rate"])
    how = {"local_steps": 4, "batch_size": 8, **how}
    if rule == "head":
        algorithm = ffm.fedavg(task, adam, **how)
    else:
        algorithm = getattr(lora_rules, rule)(task, adam, ranks=RANKS, **how)
    data, left = run.data, budget(run) - sum(run.bytes.values())
    how = {"task": task, "test": data.test, "most_bytes": left}
    most = run.config.most_rounds
    found = run.simulate(algorithm, data.train, adapted, most, **how)
    each = run.score_clients(found, task, data.test, "accuracy")
    return {"accuracy": float(each.mean())}


def untrained(run: study.Run) -> dict[str, float]:
    """The random head."""
    adapted = peft.apply(run.data.model, peft.head())
    task, test = tasks.classification(adapted), joined(run.data.test)
    return {"accuracy": as_it_begins(task, adapted.delta, adapted.backbone, test)}


def method(run: study.Run, rule: str) -> peft.Method:
    """What a rule trains."""
    if rule == "fed_sb":
        return directions(run)
    return peft.head() if rule == "head" else peft.lora(LARGEST, **LORA)


def directions(run: study.Run) -> peft.Method:
    """LoRA-SB: frozen directions from labelled public sentences.

    Every client is sent them at its rank.
    """
    step = first_step(run.data.model, run.data.public, LORA["targets"])
    method = lora_sb(LARGEST, updates=step, **LORA)
    backbone = peft.apply(run.data.model, method).backbone
    for path, leaf in jax.tree.leaves_with_path(backbone):
        if trees.path_of(path).endswith(("lora_a", "lora_b")):
            run.sent(down=sum(at_rank(leaf.nbytes, rank) for rank in RANKS))
    return method


def budget(run: study.Run) -> int:
    """Bytes that FedIT sends, up and down, in the rounds of the budget."""
    rounds = run.config.tuning_rounds if run.is_tuning else run.config.budget_rounds
    adapted = peft.apply(run.data.model, peft.lora(LARGEST, **LORA))
    largest = trees.nbytes(adapted.delta)
    return rounds * 2 * sum(at_rank(largest, rank) for rank in RANKS)


def at_rank(n_bytes: int, rank: int) -> int:
    """The bytes of a smaller rank, of factors that have `n_bytes` at the largest."""
    return n_bytes * rank // LARGEST
