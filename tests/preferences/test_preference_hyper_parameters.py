"""No hyper-parameter of a factory is NaN, a text, a bool for a number or a number for a
bool.
"""

import inspect

import numpy as np
import optax
import pytest
from bad_values import Row, cases, is_refused, unlisted
from preference_problem import adapted_llama, triples

from fedjax_fm import preferences
from fedjax_fm.evaluation import judges
from fedjax_fm.evaluation.judges import Pair

ADAPTED = {"adapted": adapted_llama()}
HOW = preferences.writing(3)
POLICY = {**ADAPTED, "reward": preferences.length_reward, "how": HOW}
ROWS_OF = dict(zip(("prompts", "chosen", "rejected"), triples(), strict=True))
QUESTIONS = {"prompts": ROWS_OF["prompts"], "answers": ROWS_OF["chosen"]}
JUDGED = judges.compare(
    judges.exact_judge(), [Pair(prompt="2?", a="2", b="3", reference="2")]
)
HTTP = {"model": "one", "url": "http://localhost:1/v1", "folder": "nowhere"}

TABLE = [
    Row(preferences.dpo, ADAPTED, {
        "beta": "real", "loss": "choice", "label_smoothing": "real",
        "length_weight": "real", "length_margin": "real", "stored": "flag", "chunk": "whole",
    }),
    Row(preferences.simpo, ADAPTED, {"beta": "real", "gamma": "real", "chunk": "whole"}),
    Row(preferences.reward_modeling, ADAPTED, {"margin": "real"}),
    Row(preferences.writing, {"max_new_tokens": 3}, {
        "max_new_tokens": "whole", "temperature": "real", "pad_token_id": "whole",
    }),
    Row(preferences.grpo, POLICY, {
        "group": "whole", "clip": "real", "kl": "real", "scale": "flag",
        "normalise": "choice", "chunk": "whole",
    }),
    Row(preferences.ppo, POLICY, {
        "kl": "real", "clip": "real", "value_clip": "real", "value_weight": "real",
        "discount": "real", "decay": "real", "whiten": "flag", "chunk": "whole",
    }),
    Row(preferences.federated_policy, {
        "objective": preferences.grpo(**POLICY), "client_optimizer": optax.sgd(0.1),
        "batch_size": 2, "local_steps": 1,
    }, {"inner_epochs": "whole", "batch_size": "whole", "local_steps": "whole"}),
    Row(preferences.encode_pairs, ROWS_OF | {"pad_token_id": 0}, {
        "pad_token_id": "whole", "eos_token_id": "whole?", "length": "whole?",
    }),
    Row(preferences.encode_questions, QUESTIONS | {"pad_token_id": 0}, {
        "pad_token_id": "whole", "eos_token_id": "whole?", "length": "whole?",
    }),
    Row(judges.exact_judge, {}, {"ignore_case": "flag", "ignore_punctuation": "flag"}),
    Row(judges.http_judge, HTTP, {"temperature": "real", "timeout": "real"}),
    Row(judges.win_rate, {"judged": JUDGED}, {"resamples": "whole"}),
    Row(judges.judge_agreement, {"a": JUDGED, "b": JUDGED}, {"resamples": "whole"}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "parameter", "value"), cases(TABLE))
def test_a_bad_value_is_refused_by_its_name(row, parameter, value):
    is_refused(row, parameter, value)


def test_no_hyper_parameter_is_forgotten():
    factories = {row.make for row in TABLE}
    known = {
        (preferences.writing, "eos_token_id"): "end_ids checks it",
        (preferences.federated_policy, "epochs"): "given in the place of local_steps",
        (judges.http_judge, "answers_as"): "text",
        (judges.win_rate, "seed"): "of a generator",
        (judges.judge_agreement, "seed"): "of a generator",
    }
    allowed = {f"{make.__name__}({name}:" for make, name in known}
    missing = [
        one
        for one in unlisted(factories, TABLE)
        if not any(one.startswith(start) for start in allowed)
    ]
    assert not missing
    public = [getattr(preferences, name) for name in preferences.__all__]
    takes_adapted = {
        f
        for f in public
        if inspect.isfunction(f) and "adapted" in inspect.signature(f).parameters
    }
    helpers = {
        preferences.calibrated,
        preferences.pair_scores,
        preferences.scored_by,
        preferences.store_reference,
    }
    assert takes_adapted - helpers <= factories


def test_equal_rewards_are_warned_of():
    warn = preferences.warn_of_equal_rewards
    with pytest.warns(UserWarning, match="round 3: all answers of each group"):
        warn(3, None, {"equal_rewards": np.array([0.2, 0.4, 1.0])})
    with pytest.raises(ValueError, match="'equal_rewards' of preferences"):
        warn(1, None, {"loss": np.ones(1)})
