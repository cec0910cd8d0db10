"""What a trained model, or what a client sends, gives away of the data behind it.

Attacks on models that were trained: `membership` of scores such as `mean_log_p`,
`exposure` of canaries, `one_run_epsilon`. `blind_scores` is the control that never asks
the model. Attacks on a single upload begin with `invert_gradient`, in
`fedjax_fm.evaluation`.
"""

from fedjax_fm.evaluation.leaks.blind import blind_scores
from fedjax_fm.evaluation.leaks.canaries import (
    Canaries,
    canary_rows,
    candidate_secrets,
    draw_canaries,
    with_canaries,
)
from fedjax_fm.evaluation.leaks.exposure import (
    CHANCE,
    chance_of_rank,
    exposure,
    mean_exposure,
)
from fedjax_fm.evaluation.leaks.intervals import (
    Interval,
    area_between,
    area_interval,
    share_interval,
)
from fedjax_fm.evaluation.leaks.membership import Membership, membership
from fedjax_fm.evaluation.leaks.one_run import (
    LowerBound,
    epsilon_of_guesses,
    one_run_epsilon,
    p_value,
)
from fedjax_fm.evaluation.leaks.tokens import (
    TokenScores,
    least_likely,
    mean_log_p,
    token_scores,
)

__all__ = [
    "CHANCE",
    "Canaries",
    "Interval",
    "LowerBound",
    "Membership",
    "TokenScores",
    "area_between",
    "area_interval",
    "blind_scores",
    "canary_rows",
    "candidate_secrets",
    "chance_of_rank",
    "draw_canaries",
    "epsilon_of_guesses",
    "exposure",
    "least_likely",
    "mean_exposure",
    "mean_log_p",
    "membership",
    "one_run_epsilon",
    "p_value",
    "share_interval",
    "token_scores",
    "with_canaries",
]
