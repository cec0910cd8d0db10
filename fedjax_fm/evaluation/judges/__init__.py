"""Judges of pairs of answers: one interface, both orders always, lengths beside rates."""

from fedjax_fm.evaluation.judges.agreement import JudgeAgreement, judge_agreement
from fedjax_fm.evaluation.judges.compare import Judged, compare, compare_waiting
from fedjax_fm.evaluation.judges.http import http_judge
from fedjax_fm.evaluation.judges.judge import Decision, Judge, Pair
from fedjax_fm.evaluation.judges.offline import (
    exact_judge,
    likelihood_judge,
    reward_judge,
    rouge_judge,
)
from fedjax_fm.evaluation.judges.win_rate import (
    WinRate,
    length_controlled,
    win_rate,
)

__all__ = [
    "Decision",
    "Judge",
    "JudgeAgreement",
    "Judged",
    "Pair",
    "WinRate",
    "compare",
    "compare_waiting",
    "exact_judge",
    "http_judge",
    "judge_agreement",
    "length_controlled",
    "likelihood_judge",
    "reward_judge",
    "rouge_judge",
    "win_rate",
]
