"""Membership of a run's examples: three attacks on its model, and two controls."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

import fedjax_fm as ffm
from fedjax_fm.audit.findings import Finding, attack, control, skipped
from fedjax_fm.audit.subject import Sides, Subject, sides
from fedjax_fm.evaluation.leaks import (
    Membership,
    blind_scores,
    least_likely,
    mean_log_p,
    membership,
    token_scores,
)
from fedjax_fm.finetune import data as of_data
from fedjax_fm.finetune.tokens import Arrays
from fedjax_fm.types import Tree

AREA = "area under the ROC curve"
LOSS, LEAST, CALIBRATED = "loss", "Min-20 %", "loss against the base model"
BEFORE, BLIND = "loss before training", "without the model"

Pair = tuple[np.ndarray, np.ndarray]


class Members(NamedTuple):
    """What the attacks have found.

    Attributes:
      findings: lines of the table.
      scores: {attack: (scores of members, scores of others)}.
      judged: {attack: what the scores tell}.
    """

    findings: list[Finding]
    scores: dict[str, Pair]
    judged: dict[str, Membership]


def audited(subject: Subject, n_examples: int) -> Members:
    """Tries to tell examples that were trained on from others.

    Args:
      subject: the run.
      n_examples: at most, of either side.

    Returns:
      Findings and scores.
    """
    found = sides(subject, n_examples)
    scores = _scores(subject, found)
    judged = {name: membership(*pair) for name, pair in scores.items()}
    n = f"{len(scores[LOSS][0])} members, {len(scores[LOSS][1])} others"
    findings = []
    for name in (LOSS, LEAST, CALIBRATED):
        if name not in judged:
            why = "a classifier says one probability of an example, and none of tokens"
            findings.append(skipped(f"membership: {name}", why))
            continue
        one = judged[name]
        findings.append(attack(f"membership: {name}", AREA, one.area, 0.5, _power(one)))
    first = judged[BEFORE].area
    note = f"{n}: {found.source}"
    findings.append(control(f"control: {BEFORE}", AREA, first, 0.5, note))
    if BLIND in judged:
        alone = judged[BLIND].area
        note = "bags of tokens; if it fails, members differ from others by themselves"
        findings.append(control(f"control: {BLIND}", AREA, alone, 0.5, note))
    else:
        why = "the inputs are no tokens, or too few"
        findings.append(skipped(f"control: {BLIND}", why))
    return Members(findings, scores, judged)


def _power(one: Membership) -> str:
    """The power at few false alarms, in words."""
    share, low, high = (100 * x for x in one.power)
    false = 100 * one.false_alarms
    return (
        f"finds {share:.1f} % of members ({low:.1f} to {high:.1f}) at "
        f"{false:.2g} % false alarms"
    )


def _scores(subject: Subject, found: Sides) -> dict[str, Pair]:
    """Scores of both sides by every attack that the model allows."""
    both = (found.members, found.others)
    scores: dict[str, list[np.ndarray]] = {}
    for arrays in both:
        after = _of_model(subject, subject.model.parts, arrays)
        before = _of_model(subject, subject.before, arrays)
        for name, values in after.items():
            scores.setdefault(name, []).append(values)
        scores.setdefault(CALIBRATED, []).append(after[LOSS] - before[LOSS])
        scores.setdefault(BEFORE, []).append(before[LOSS])
    pairs = {name: (one, other) for name, (one, other) in scores.items()}
    inside, outside = (_texts(arrays) for arrays in both)
    if min(len(inside), len(outside)) >= 2:
        vocabulary = 1 + max(int(ids.max()) for ids in (*inside, *outside))
        pairs[BLIND] = blind_scores(inside, outside, vocabulary, seed=subject.seed)
    return pairs


def _of_model(
    subject: Subject, parts: tuple[Tree, Tree], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Scores of examples by the loss, and by their tokens where there are some."""
    adapted = subject.model.adapted
    if not subject.is_text:
        task = of_data.task_of(subject.model.subject, adapted)
        loss = ffm.evaluate(task, *parts, arrays, batch_size=16)["loss"]
        return {LOSS: -loss.astype(np.float64)}
    tokens = token_scores(adapted, *parts, arrays)
    return {LOSS: mean_log_p(tokens), LEAST: least_likely(tokens)}


def _texts(arrays: Arrays) -> list[np.ndarray]:
    """Tokens of each example without padding; none of images."""
    if "input_ids" not in arrays:
        return []
    real = arrays["attention_mask"] != 0
    return [ids[own] for ids, own in zip(arrays["input_ids"], real, strict=True)]
