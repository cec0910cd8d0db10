"""The rules: what each trains of the last layer, and how its server combines it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import peft, study, tasks
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.shared.tail import first_step
from fedjax_fm.types import Algorithm, Task, Tree

TARGETS = r"query|value"
MIXED = (2, 4, 8, 16)  # ranks, a quarter of the clients each
EQUAL = 8
HEADS = {MIXED[0]: 1, MIXED[1]: 1, MIXED[2]: 2, MIXED[3]: 4}  # RAVAN's, of rank 4
SCALING = 2.0


class Rule(NamedTuple):
    """A rule of the study.

    Attributes:
      label: on pages.
      than: the rule that its paper says it is better than.
      how: its settings.
      of_clients: names what differs by client, "" for a rule of one rank.
    """

    label: str
    than: str = "fedit"
    how: Mapping[str, Any] = MappingProxyType({})
    of_clients: str = "ranks"


RULES = {
    "fedit": Rule(label="FedIT", than=""),
    "ffa_lora": Rule(label="FFA-LoRA"),
    "fedsvd": Rule(label="FedSVD", than="ffa_lora"),
    "rolora": Rule(label="RoLoRA", than="ffa_lora"),
    "lora_a2": Rule(label="LoRA-A2", than="ffa_lora"),
    "fedsa_lora": Rule(label="FedSA-LoRA, own B"),
    "hetlora": Rule(label="HetLoRA", how={"gamma": 0.99, "tail_penalty": 0.01}),
    "flexlora": Rule(label="FlexLoRA"),
    "fedask": Rule(label="FedASK", how={"sketch": max(MIXED)}),
    "fedex_lora": Rule(label="FedEx-LoRA", how={"scaling": SCALING}),
    "flora": Rule(label="FLoRA", how={"scaling": SCALING}),
    "frlora": Rule(label="FRLoRA", how={"scaling": SCALING}, of_clients=""),
    "lora_fair": Rule(label="LoRA-FAIR"),
    "fedrot_lora": Rule(label="FedRot-LoRA", how={"strength": 0.5}),
    "fedrpca": Rule(label="FedRPCA"),
    "fslora": Rule(label="FSLoRA", than="hetlora"),
    "slora": Rule(label="SLoRA", how={"scaling": SCALING, "density": 0.04}),
    "ravan": Rule(label="RAVAN", of_clients="heads"),
    "fed_sb": Rule(label="Fed-SB"),
}


class Made(NamedTuple):
    """A rule on a seed's model.

    Attributes:
      algorithm: `learning_rate -> algorithm`.
      task: the loss.
      delta, backbone: where it begins.
    """

    algorithm: Callable[..., Algorithm]
    task: Task
    delta: Tree
    backbone: Tree


def ranks_of(config: Any) -> np.ndarray:
    """The rank of every client.

    Args:
      config: of the study.
    """
    kinds = MIXED if config.ranks == "mixed" else (EQUAL,)
    return np.resize(kinds, config.clients)


def made(run: study.Run, name: str) -> Made:
    """The rule, or FedAvg of the "head".

    Args:
      run: of the arm.
      name: of `RULES`, or "head".
    """
    adapted = peft.apply(run.data.model, method(run, name), jax.random.key(run.seed))
    task, walk = tasks.token_classification(adapted), study.walk(run.config)
    delta, backbone = adapted.delta, adapted.backbone
    if name == "frlora":
        start = lora_rules.principal_start(delta, backbone, scaling=SCALING)
        delta, backbone = start
    how = settings(run, name)

    def algorithm(learning_rate: Any) -> Algorithm:
        adam = optax.adam(learning_rate)
        if name == "head":
            return ffm.fedavg(task, adam, **walk)
        return getattr(lora_rules, name)(task, adam, **how, **walk)

    return Made(algorithm=algorithm, task=task, delta=delta, backbone=backbone)


def settings(run: study.Run, name: str) -> dict[str, Any]:
    """Arguments of a rule beside the task, the optimizer and the walk.

    Args:
      run: of the arm.
      name: of `RULES`, or "head".
    """
    if name == "head":
        return {}
    rule, ranks = RULES[name], ranks_of(run.config)
    how = dict(rule.how)
    if name == "slora":
        how["sparse_rounds"] = run.config.rounds // 2
    if run.config.ranks == "mixed" and rule.of_clients:
        heads = [HEADS[rank] for rank in ranks]
        how[rule.of_clients] = heads if rule.of_clients == "heads" else ranks
    return how


def method(run: study.Run, name: str) -> peft.Method:
    """What a rule trains; the head is trained beside it, of all rules.

    Args:
      run: of the arm.
      name: of `RULES`, or "head".
    """
    rank = int(ranks_of(run.config).max())
    if name == "head":
        return peft.head()
    if name == "ravan":
        heads = HEADS[rank]
        return peft.ravan(4, 4 * SCALING, heads=heads, targets=TARGETS)
    if name == "frlora":
        rank = EQUAL
    alpha = SCALING * rank
    if name == "fed_sb":
        data, how = run.data, {"labels": "labels"}
        step = run.once(
            "step", lambda: first_step(data.model, data.public, TARGETS, **how)
        )
        _bill(run, step)
        return peft.lora_sb(rank, alpha, targets=TARGETS, updates=step)
    return peft.lora(rank, alpha, targets=TARGETS)


def _bill(run: study.Run, step: dict[str, jax.Array]) -> None:
    """Bills the frozen factors, which every client is sent at its rank."""
    sides = [sum(kernel.shape[-2:]) for kernel in step.values()]
    run.sent(down=4 * sum(sides) * int(ranks_of(run.config).sum()))


def accuracy(scores: list[Any]) -> float:
    """The mean over clients.

    Args:
      scores: of `client_scores`.
    """
    return float(np.mean([means(one)["accuracy"] for one in scores]))
