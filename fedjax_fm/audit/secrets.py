"""The canaries of a run: how far they have risen, and what epsilon they refute."""

import math
from typing import NamedTuple

import numpy as np

from fedjax_fm.audit.findings import (
    FAILS,
    HOLDS,
    LEAKS,
    NOTHING,
    Finding,
    attack,
    control,
    skipped,
)
from fedjax_fm.audit.subject import Promise, Subject
from fedjax_fm.evaluation.leaks import (
    CHANCE,
    Canaries,
    Interval,
    LowerBound,
    canary_rows,
    candidate_secrets,
    exposure,
    mean_exposure,
    one_run_epsilon,
    token_scores,
)
from fedjax_fm.finetune.planted import canaries_of
from fedjax_fm.types import Tree

BITS = "exposure, bits"
NONE = "the run has planted no canaries; train with --canaries N to have it audited"


class Secrets(NamedTuple):
    """What became of the canaries.

    Attributes:
      findings: lines of the table.
      exposures: f64[m] of each canary; empty without canaries.
      is_planted: bool[m].
      ceiling: the largest exposure that the candidates can show.
    """

    findings: list[Finding]
    exposures: np.ndarray
    is_planted: np.ndarray
    ceiling: float


def audited(subject: Subject, n_candidates: int) -> Secrets:
    """Ranks each canary's secret among candidates, before and after training.

    Args:
      subject: the run.
      n_candidates: secrets that nobody was given.

    Returns:
      Findings and exposures.
    """
    settings, data = subject.settings, subject.data
    if not settings.canaries:
        lines = [skipped("canaries", NONE), skipped("epsilon from one run", NONE)]
        return Secrets(
            findings=lines,
            exposures=np.zeros(0),
            is_planted=np.zeros(0, bool),
            ceiling=0.0,
        )
    chat = data.prepared.chat
    canaries = canaries_of(settings, chat, len(data.train), subject.seed)
    found = _scores(subject, subject.model.parts, canaries, n_candidates)
    before = _scores(subject, subject.before, canaries, 1)
    exposures = exposure(found[:, 0], found[:, 1:])
    gain = found[:, 0] - before[:, 0]
    ceiling = math.log2(n_candidates + 1)
    return Secrets(
        findings=[
            *_exposures(exposures, canaries, ceiling, settings.canary_repeats),
            _bound(subject, gain, canaries),
        ],
        exposures=exposures,
        is_planted=canaries.is_planted,
        ceiling=ceiling,
    )


def _scores(
    subject: Subject, parts: tuple[Tree, Tree], canaries: Canaries, n_candidates: int
) -> np.ndarray:
    """f64[m, 1 + n], log-likelihoods of each secret and of the candidates behind it."""
    chat, like = subject.data.prepared.chat, subject.data.train[0]
    assert chat is not None  # canaries are planted in texts alone
    others = candidate_secrets(canaries, n_candidates, seed=subject.seed)
    found = []
    for prefix, secret in zip(canaries.prefixes, canaries.secrets, strict=True):
        secrets = np.concatenate([secret[None], others])
        prefixes = np.repeat(prefix[None], len(secrets), axis=0)
        rows = canary_rows(prefixes, secrets, like, pad=chat.pad_token_id)
        tokens = token_scores(subject.model.adapted, *parts, rows, batch_size=64)
        found.append(np.where(tokens.counts, tokens.log_p, 0.0).sum(axis=1))
    return np.array(found, np.float64)


def _exposures(
    exposures: np.ndarray, canaries: Canaries, ceiling: float, repeats: int
) -> list[Finding]:
    """Lines of those that were planted and of those that were left out."""
    lines = []
    note = (
        f"{{n}} canaries, {repeats} times each in a client's data; at most {ceiling:.1f} "
        f"bits can be seen, of {canaries.log2_space:.0f}"
    )
    for name, rows, judge in (
        ("canaries, planted", canaries.is_planted, attack),
        ("control: canaries, left out", ~canaries.is_planted, control),
    ):
        values = exposures[rows]
        if not len(values):
            why = f"none of {len(rows)}, by the coins: plant more"
            lines.append(skipped(name, why))
            continue
        own = note.format(n=len(values)) if judge is attack else f"{len(values)}"
        lines.append(judge(name, BITS, mean_exposure(values), CHANCE, own))
    return lines


def _bound(subject: Subject, gain: np.ndarray, canaries: Canaries) -> Finding:
    """The line of the empirical epsilon, beside the accountant's."""
    promise, name = subject.promise, "epsilon from one run"
    if len(gain) < 2:
        return skipped(name, "one canary refutes nothing: plant more")
    found = one_run_epsilon(gain, canaries.is_planted, delta=promise.delta)
    figure = Interval(found.epsilon, found.epsilon, math.inf)
    verdict, note = _verdict(found, promise)
    return Finding(
        name=name,
        measure="epsilon, lower bound",
        figure=figure,
        chance=0.0,
        verdict=verdict,
        note=note,
    )


def _verdict(found: LowerBound, promise: Promise) -> tuple[str, str]:
    """Whether the bound refutes what was promised."""
    right = f"{found.n_correct} of {found.n_guesses} guesses right"
    most = f"{right}; at most {found.ceiling:.2f} could be shown"
    if promise.epsilon is None:
        leaks = LEAKS if found.epsilon > 0 else NOTHING
        return leaks, f"{most}; the run promises nothing"
    said = f"{most}; the accountant's bound for this change is {promise.epsilon:.3g}"
    return FAILS if found.epsilon > promise.epsilon else HOLDS, said
