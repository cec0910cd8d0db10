"""Reward models: the loss by hand, what cancels, and scores that are used."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from preference_problem import END, PAD, adapted_llama, merged, moved, pairs, triples

import fedjax_fm as ffm
from fedjax_fm import preferences

ADAPTED = adapted_llama(scored=True)
MOVED = moved(ADAPTED.delta)
PAIRS = pairs()


def by_hand():
    """The score of the last token of each row without padding, f64[n, 2]."""
    model = merged(ADAPTED, MOVED)
    found = []
    for prompt, *answers in zip(*triples(), strict=True):
        row = []
        for answer in answers:
            ids = np.array([[*prompt, *answer, END]], np.int32)
            hidden = np.asarray(model.hidden(ids))[0, -1]
            kernel, bias = model.score.kernel[...], model.score.bias[...]
            row.append(float(hidden @ np.asarray(kernel)[:, 0] + float(bias[0])))
        found.append(row)
    return np.array(found)


def test_the_loss_is_bradley_and_terrys():
    scores = by_hand()
    found = preferences.pair_scores(ADAPTED, MOVED, PAIRS, batch_size=3)
    np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-4)
    task = preferences.reward_modeling(ADAPTED, margin=0.5)
    losses, metrics = jax.jit(task.loss)(MOVED, ADAPTED.backbone, PAIRS, None)
    ahead = scores[:, 0] - scores[:, 1]
    np.testing.assert_allclose(losses, np.log1p(np.exp(0.5 - ahead)), rtol=1e-3)
    np.testing.assert_allclose(metrics["margin"], ahead, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(metrics["pair_accuracy"], ahead > 0)


def test_pairs_say_nothing_of_the_bias():
    task = preferences.reward_modeling(ADAPTED)

    def loss(delta):
        return task.loss(delta, ADAPTED.backbone, PAIRS, None)[0].sum()

    gradient = nnx.to_pure_dict(jax.jit(jax.grad(loss))(MOVED))["score"]
    np.testing.assert_allclose(gradient["bias"], 0, atol=1e-6)
    assert np.abs(gradient["kernel"]).max() > 1e-3


def test_calibration_takes_the_mean_off_and_leaves_the_differences():
    before = preferences.pair_scores(ADAPTED, MOVED, PAIRS)
    after = preferences.calibrated(ADAPTED, MOVED, PAIRS)
    found = preferences.pair_scores(ADAPTED, after, PAIRS)
    assert abs(before.mean()) > 1e-2
    np.testing.assert_allclose(found, before - before.mean(), atol=1e-5)
    unchanged = preferences.pair_scores(ADAPTED, MOVED, PAIRS)
    np.testing.assert_array_equal(unchanged, before)


def test_padding_on_the_left_changes_nothing():
    model = merged(ADAPTED, MOVED)
    ids = np.array([[7, 8, 9, END]], np.int32)
    padded = np.concatenate([np.full((1, 3), PAD, np.int32), ids], axis=1)
    mask = (np.arange(7) >= 3).astype(np.int32)[None]
    a, b = model.rewards(ids, np.ones_like(ids)), model.rewards(padded, mask)
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_a_federated_reward_model_scores_the_policys_answers():
    """Token 7 is the better answer; the trained score is a reward for the policy."""
    rng = np.random.default_rng(0)

    def planted(n):
        questions = rng.integers(10, 50, (n, 3)).tolist()
        return preferences.encode_pairs(
            questions, [[7]] * n, [[9]] * n, pad_token_id=PAD
        )

    task = preferences.reward_modeling(ADAPTED)
    population = ffm.Population.from_clients([planted(8) for _ in range(2)])
    method = ffm.fedavg(task, optax.adam(0.05), local_steps=3, batch_size=4)
    simulator = ffm.Simulator(
        method, population, backbone=ADAPTED.backbone, cohort_size=2, devices=1
    )
    state, _ = simulator.run(simulator.init(ADAPTED.delta), 6)
    held_out = planted(20)
    scores = preferences.pair_scores(ADAPTED, state.delta, held_out)
    assert (scores[:, 0] > scores[:, 1]).mean() > 0.9
    reward = preferences.scored_by(ADAPTED, state.delta)
    ids, mask = (held_out[f"chosen_{x}"] for x in ("input_ids", "attention_mask"))
    rollouts = preferences.Rollouts(
        input_ids=ids,
        attention_mask=mask,
        labels=held_out["chosen_labels"],
        log_probs=np.zeros((20, 1)),
        mask=np.ones((20, 1), bool),
    )
    found = reward(ADAPTED.backbone, {}, rollouts)
    np.testing.assert_allclose(found, scores[:, 0], atol=1e-4)


def test_what_is_refused():
    with pytest.raises(TypeError, match="got Linear"):
        preferences.with_score(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    plain = adapted_llama()
    with pytest.raises(TypeError, match="with_score"):
        preferences.reward_modeling(plain).loss(
            plain.delta, plain.backbone, PAIRS, None
        )
    with pytest.raises(ValueError, match="margin=-1"):
        preferences.reward_modeling(ADAPTED, margin=-1)
    few = {k: v for k, v in PAIRS.items() if k != "rejected_labels"}
    with pytest.raises(ValueError, match="rejected_labels missing"):
        preferences.pair_scores(ADAPTED, MOVED, few)
