"""What a trained model, or what a client sends, gives away of the data behind it.

Attacks on models that were trained: `membership` of scores such as `mean_log_p`,
`exposure` of canaries, `one_run_epsilon`. `blind_scores` is the control that never asks
the model. Attacks on a single upload: `copies_in_upload`, `span_residuals`,
`search_text`, and `invert_gradient` of `fedjax_fm.evaluation`.
"""

from fedjax_fm.evaluation.leaks.blind import blind_scores
from fedjax_fm.evaluation.leaks.canaries import (
    Canaries,
    canary_rows,
    candidate_secrets,
    draw_canaries,
    with_canaries,
)
from fedjax_fm.evaluation.leaks.embedded import (
    hard_loss,
    soft_loss,
    token_table,
    with_embedded,
)
from fedjax_fm.evaluation.leaks.exposure import (
    CHANCE,
    chance_of_rank,
    exposure,
    mean_exposure,
)
from fedjax_fm.evaluation.leaks.first_layer import first_inputs
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
from fedjax_fm.evaluation.leaks.span import label_of_gradient, span_residuals
from fedjax_fm.evaluation.leaks.text_search import Recovered, TextSearch, search_text
from fedjax_fm.evaluation.leaks.tokens import (
    TokenScores,
    least_likely,
    mean_log_p,
    token_scores,
)
from fedjax_fm.evaluation.leaks.verbatim import Copy, copies_in_upload

__all__ = [
    "CHANCE",
    "Canaries",
    "Copy",
    "Interval",
    "LowerBound",
    "Membership",
    "Recovered",
    "TextSearch",
    "TokenScores",
    "area_between",
    "area_interval",
    "blind_scores",
    "canary_rows",
    "candidate_secrets",
    "chance_of_rank",
    "copies_in_upload",
    "draw_canaries",
    "epsilon_of_guesses",
    "exposure",
    "first_inputs",
    "hard_loss",
    "label_of_gradient",
    "least_likely",
    "mean_exposure",
    "mean_log_p",
    "membership",
    "one_run_epsilon",
    "p_value",
    "search_text",
    "share_interval",
    "soft_loss",
    "span_residuals",
    "token_scores",
    "token_table",
    "with_canaries",
    "with_embedded",
]
