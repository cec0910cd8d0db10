"""DPO and its kin against torch written plainly, and what holds exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from preference_problem import (
    END,
    PAD,
    adapted_llama,
    merged,
    moved,
    pairs,
    plain_log_probs,
    triples,
)

import fedjax_fm as ffm
from fedjax_fm import preferences

ADAPTED = adapted_llama()
MOVED = moved(ADAPTED.delta)
PAIRS = pairs()
BETA = 0.3


def losses_of(task, delta=MOVED, batch=PAIRS):
    return jax.jit(task.loss)(delta, ADAPTED.backbone, batch, None)


@functools.lru_cache
def token_sums():
    """[(log-probabilities of pi, of ref) of both answers] of each pair, prefix by prefix."""
    models = [merged(ADAPTED, delta) for delta in (MOVED, ADAPTED.delta)]
    found = []
    for prompt, *answers in zip(*triples(), strict=True):
        row = []
        for answer in answers:
            ids = [*prompt, *answer, END]
            row.append([plain_log_probs(m, ids, len(prompt)) for m in models])
        found.append(row)
    return found


def in_torch(loss="sigmoid", smoothing=0.0, weight=1.0, margin=0.0):
    """(losses, gradients with respect to the four sums of log-probabilities)."""
    torch = pytest.importorskip("torch")
    found = []
    for (pw, rw), (pl, rl) in token_sums():
        common = min(len(pw), len(pl))
        sums = []
        for pi, ref in ((pw, rw), (pl, rl)):
            weights = np.where(np.arange(len(pi)) < common, 1.0, weight)
            weights = weights / (weights.sum() if loss == "ipo" else 1.0)
            sums.append(torch.tensor((weights * (pi - ref)).sum(), requires_grad=True))
        h = sums[0] - sums[1]
        if loss == "ipo":
            one = (h - 1 / (2 * BETA)) ** 2
        else:
            z = BETA * h + margin * (len(pw) - len(pl))
            one = -(1 - smoothing) * torch.log(torch.sigmoid(z))
            one = one - smoothing * torch.log(torch.sigmoid(-z))
        one.backward()
        found.append((float(one.detach()), float(sums[0].grad)))
    return np.array(found).T


VARIANTS = {
    "sigmoid": {},
    "smoothed": {"smoothing": 0.2},
    "ipo": {"loss": "ipo"},
    "ld": {"weight": 0.3},
    "margin": {"margin": 0.4},
    "ipo_ld": {"loss": "ipo", "weight": 0.5},
}
OURS = {
    "smoothing": "label_smoothing",
    "weight": "length_weight",
    "margin": "length_margin",
    "loss": "loss",
}


def ours(variant):
    more = {OURS[name]: value for name, value in VARIANTS[variant].items()}
    return preferences.dpo(ADAPTED, beta=BETA, **more)


@pytest.mark.parametrize(
    "variant",
    [
        name
        if name in ("sigmoid", "ipo_ld")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in VARIANTS
    ],
)
def test_losses_equal_torch(variant):
    losses, metrics = losses_of(ours(variant))
    expected, _ = in_torch(**VARIANTS[variant])
    np.testing.assert_allclose(losses, expected, rtol=2e-4, atol=2e-5)
    lengths = [[len(one) for one, _ in row] for row in token_sums()]
    counted = np.stack([metrics["chosen_tokens"], metrics["rejected_tokens"]], 1)
    np.testing.assert_array_equal(counted, lengths)


def test_the_gradient_is_torchs_weight_times_that_of_the_log_probabilities():
    """d loss / d delta = sum of d loss / d h times d h / d delta."""
    _, weights = in_torch()
    task = preferences.dpo(ADAPTED, beta=BETA)

    def loss(delta):
        return task.loss(delta, ADAPTED.backbone, PAIRS, None)[0].sum()

    def h(delta):
        margins = task.loss(delta, ADAPTED.backbone, PAIRS, None)[1]["margin"]
        return jnp.sum(margins / BETA * weights)

    found, expected = jax.jit(jax.grad(loss))(MOVED), jax.jit(jax.grad(h))(MOVED)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_at_the_reference_the_loss_is_log_two_and_the_weight_beta_half():
    losses, metrics = losses_of(preferences.dpo(ADAPTED, beta=BETA), ADAPTED.delta)
    np.testing.assert_allclose(losses, np.log(2), rtol=1e-6)
    assert not metrics["margin"].any()
    np.testing.assert_array_equal(metrics["pair_accuracy"], 0.5)
    ipo = preferences.dpo(ADAPTED, beta=BETA, loss="ipo")
    np.testing.assert_allclose(
        losses_of(ipo, ADAPTED.delta)[0], 1 / (4 * BETA**2), rtol=1e-5
    )
    own = preferences.dpo(ADAPTED, beta=BETA, reference=MOVED)
    np.testing.assert_allclose(losses_of(own)[0], np.log(2), rtol=1e-6)


def swapped(batch):
    other = {"chosen": "rejected", "rejected": "chosen"}
    return {
        f"{other[name.split('_')[0]]}_{name.split('_', 1)[1]}": column
        for name, column in batch.items()
    }


def test_a_pair_the_other_way_round():
    """l(-h) = l(h) + beta h."""
    task = preferences.dpo(ADAPTED, beta=BETA)
    losses, metrics = losses_of(task)
    others, _ = losses_of(task, batch=swapped(PAIRS))
    np.testing.assert_allclose(others, losses + metrics["margin"], rtol=1e-4, atol=1e-6)


def test_padding_and_the_labels_of_prompts_change_nothing():
    wider = preferences.encode_pairs(
        *triples(), pad_token_id=PAD, eos_token_id=END, length=18
    )
    task = preferences.dpo(ADAPTED, beta=BETA)
    a, b = losses_of(task)[0], losses_of(task, batch=wider)[0]
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_stored_log_probabilities_are_those_that_are_computed():
    stored = preferences.store_reference(ADAPTED, PAIRS, batch_size=3)
    assert stored["chosen_reference"].shape == (4, PAIRS["chosen_labels"].shape[1] - 1)
    for more in ({}, {"loss": "ipo"}, {"length_weight": 0.3}):
        task = preferences.dpo(ADAPTED, stored=True, **more)
        plain = preferences.dpo(ADAPTED, **more)
        found, expected = losses_of(task, batch=stored)[0], losses_of(plain)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="chosen_reference, rejected_reference"):
        losses_of(preferences.dpo(ADAPTED, stored=True))


def test_simpo_is_its_formula_and_length_has_no_say():
    beta, gamma = 2.0, 0.7
    losses, _ = losses_of(preferences.simpo(ADAPTED, beta=beta, gamma=gamma))
    z = [beta * (w[0].mean() - rej[0].mean()) - gamma for w, rej in token_sums()]
    np.testing.assert_allclose(losses, np.log1p(np.exp(-np.array(z))), rtol=2e-4)


def test_federated_dpo_learns_planted_preferences():
    """Token 7 is preferred to token 9 whatever comes before: held-out pairs agree."""
    rng = np.random.default_rng(0)

    def planted(n):
        questions = rng.integers(10, 50, (n, 3)).tolist()
        good, bad = [[7]] * n, [[9]] * n
        return preferences.encode_pairs(questions, good, bad, pad_token_id=PAD)

    task = preferences.dpo(ADAPTED, beta=BETA)
    clients = [planted(8) for _ in range(3)]
    population = ffm.Population.from_clients(clients)
    method = ffm.fedavg(task, optax.adam(0.02), local_steps=3, batch_size=4)
    simulator = ffm.Simulator(
        method, population, backbone=ADAPTED.backbone, cohort_size=3, devices=1
    )
    state, metrics = simulator.run(simulator.init(ADAPTED.delta), 10)
    np.testing.assert_allclose(metrics["loss"][0], np.log(2), atol=0.2)
    _, held_out = losses_of(task, state.delta, planted(20))
    assert held_out["pair_accuracy"].mean() > 0.9


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"beta": 0.0}, "0 < beta|beta > 0"),
        ({"loss": "hinge"}, "'sigmoid', 'ipo', got loss='hinge'"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"length_weight": 1.5}, "length_weight=1.5"),
        ({"length_margin": -1.0}, "length_margin=-1.0"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "are of loss='sigmoid'"),
        ({"stored": True, "reference": MOVED}, "got both"),
        ({"reference": {"a": 1}}, "a tree like adapted.delta"),
    ],
)
def test_what_is_refused(more, error):
    with pytest.raises((TypeError, ValueError), match=error):
        preferences.dpo(ADAPTED, **more)


def test_columns_of_two_lengths_are_refused():
    uneven = {**PAIRS, "chosen_labels": PAIRS["chosen_labels"][:, :-1]}
    with pytest.raises(ValueError, match="encode_pairs pads both sides alike"):
        losses_of(preferences.dpo(ADAPTED), batch=uneven)
