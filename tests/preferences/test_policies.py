"""GRPO and PPO: what holds exactly, plain implementations, and runs that learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from preference_problem import END, PAD, adapted_llama, merged, moved, prompts
from tiny_decoders import LLAMA

import fedjax_fm as ffm
from fedjax_fm import peft, preferences

ADAPTED, SCORED = adapted_llama(), adapted_llama(scored=True)
MOVED, MOVED_SCORED = moved(ADAPTED.delta), moved(SCORED.delta)
PROMPTS = {name: jnp.asarray(x) for name, x in prompts().items()}
HOW = preferences.writing(
    5, temperature=0.9, eos_token_id=(END, 11, 20), pad_token_id=PAD
)
KEY = jax.random.key(7)
EVERY = jnp.ones(3, bool)
length = preferences.length_reward


def vowels(backbone, batch, rollouts):
    """A reward that differs between answers: the share of even tokens."""
    even = (rollouts.tokens % 2 == 0) & rollouts.mask
    return even.sum(axis=1) / jnp.maximum(rollouts.lengths, 1)


def constant(backbone, batch, rollouts):
    return jnp.full(rollouts.mask.shape[:1], 0.1)


def collected(objective, adapted=ADAPTED, delta=MOVED):
    collect = jax.jit(objective.collect)
    return collect(delta, adapted.backbone, PROMPTS, EVERY, KEY)


def learned(objective, experience, adapted=ADAPTED, delta=MOVED):
    """(gradient of the mean loss, terms)."""

    def loss(delta):
        terms = objective.learn(delta, adapted.backbone, experience, None)
        return terms.total.sum() / terms.count.sum(), terms

    return jax.jit(jax.grad(loss, has_aux=True))(delta)


@functools.cache
def group_of_four(**more):
    objective = preferences.grpo(ADAPTED, vowels, HOW, group=4, **more)
    return objective, collected(objective)


def test_the_first_inner_epoch_has_ratio_one():
    """The sampler's log-probabilities with a cache and those without agree to 1e-5."""
    objective, experience = group_of_four()
    model = merged(ADAPTED, MOVED)
    rollouts = jax.tree.map(lambda x: x.reshape(12, *x.shape[2:]), experience.rollouts)
    again, counts = preferences.token_log_probs(
        model,
        rollouts.input_ids,
        rollouts.attention_mask,
        rollouts.labels,
        temperature=HOW.temperature,
    )
    np.testing.assert_array_equal(counts[:, -5:], rollouts.mask)
    difference = jnp.where(rollouts.mask, again[:, -5:] - rollouts.log_probs, 0)
    assert float(jnp.abs(difference).max()) < 1e-5
    _, terms = learned(objective, experience)
    assert not terms.metrics["clipped"].any()


def test_the_gradient_is_that_of_reinforce():
    """At ratio 1: minus the mean of A times the gradient of log pi."""
    objective, experience = group_of_four()
    found, _ = learned(objective, experience)
    rollouts = jax.tree.map(lambda x: x.reshape(12, *x.shape[2:]), experience.rollouts)

    @jax.jit
    @jax.grad
    def reinforce(delta):
        log_probs, _ = preferences.token_log_probs(
            merged(ADAPTED, delta),
            rollouts.input_ids,
            rollouts.attention_mask,
            rollouts.labels,
            temperature=HOW.temperature,
        )
        weighted = experience.advantages.reshape(12, 1) * log_probs[:, -5:]
        return -jnp.sum(weighted * rollouts.mask) / rollouts.mask.sum()

    for a, b in zip(*map(jax.tree.leaves, (found, reinforce(MOVED))), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    "normalise",
    [
        "token",
        pytest.param("sequence", marks=pytest.mark.slow),
        pytest.param("constant", marks=pytest.mark.slow),
    ],
)
def test_normalisations_against_a_plain_loop(normalise):
    """Another policy than the one that wrote, so that ratios and clips matter."""
    objective, experience = group_of_four(normalise=normalise, kl=0.3)
    other = moved(MOVED, 0.1, seed=9)
    _, terms = learned(objective, experience, delta=other)
    model = merged(ADAPTED, other)
    rollouts, clipped = experience.rollouts, 0
    new, _ = jax.vmap(
        lambda r: preferences.token_log_probs(
            model, r.input_ids, r.attention_mask, r.labels, temperature=0.9
        )
    )(rollouts)
    for prompt in range(3):
        total, count = 0.0, 0.0
        for row in range(4):
            n = int(rollouts.mask[prompt, row].sum())
            a = float(experience.advantages[prompt, row])
            losses = []
            for t in range(n):
                log_pi = float(new[prompt, row, -5 + t])
                ratio = np.exp(log_pi - float(rollouts.log_probs[prompt, row, t]))
                bounded = min(max(ratio, 0.8), 1.2)
                clipped += bounded * a < ratio * a
                apart = float(experience.reference[prompt, row, t]) - log_pi
                divergence = np.exp(apart) - 1 - apart
                losses.append(-min(ratio * a, bounded * a) + 0.3 * divergence)
            total += {
                "sequence": np.mean(losses),
                "token": np.sum(losses),
                "constant": np.sum(losses) / 5,
            }[normalise]
            count += n if normalise == "token" else 1
        np.testing.assert_allclose(terms.total[prompt], total, rtol=1e-3, atol=1e-4)
        assert float(terms.count[prompt]) == count
    assert clipped  # else the clip was not tried


@pytest.mark.slow
def test_dropout_of_the_adapter_is_off():
    """Else the policy that learns is another one than the one that wrote."""
    method = peft.lora(2, targets=["q_proj"], dropout=0.5)
    adapted = peft.apply(LLAMA, method)
    delta = moved(adapted.delta)
    objective = preferences.grpo(adapted, vowels, HOW, group=2)
    experience = collected(objective, adapted, delta)
    plain = objective.learn(delta, adapted.backbone, experience, None)
    drawn = objective.learn(delta, adapted.backbone, experience, KEY)
    np.testing.assert_array_equal(plain.total, drawn.total)


def test_equal_rewards_teach_nothing_and_say_so():
    objective = preferences.grpo(ADAPTED, constant, HOW, group=4)
    experience = collected(objective)
    gradient, terms = learned(objective, experience)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(terms.metrics["equal_rewards"], 1.0)
    np.testing.assert_allclose(terms.metrics["reward"], 0.1, rtol=1e-6)


def test_metrics_are_those_of_the_answers():
    objective, experience = group_of_four()
    _, terms = learned(objective, experience)
    rollouts = experience.rollouts
    lengths = np.asarray(rollouts.mask).sum(-1)
    np.testing.assert_allclose(terms.metrics["answer_tokens"], lengths.mean(1))
    last = np.take_along_axis(
        np.asarray(rollouts.labels[..., -5:]), lengths[..., None] - 1, -1
    )[..., 0]
    np.testing.assert_allclose(
        terms.metrics["ended"], np.isin(last, HOW.ends).mean(1), rtol=1e-6
    )


# PPO


@functools.cache
def one_answer(**more):
    objective = preferences.ppo(SCORED, vowels, HOW, **more)
    return objective, collected(objective, SCORED, MOVED_SCORED)


def test_rewards_and_advantages_against_a_plain_implementation():
    _, experience = one_answer(kl=0.2, whiten=False, decay=0.9)
    rollouts = experience.rollouts
    model = merged(SCORED, MOVED_SCORED)

    @jax.jit
    def read(delta):
        model = merged(SCORED, delta)
        hidden = model.hidden(rollouts.input_ids, rollouts.attention_mask)
        return hidden, jax.nn.log_softmax(model.head(hidden) / 0.9)

    (hiddens, log_pis), (_, log_refs) = read(MOVED_SCORED), read(SCORED.delta)
    kernel, bias = model.score.kernel[...][:, 0], model.score.bias[...][0]
    first = rollouts.input_ids.shape[1] - 5
    for row in range(3):
        n = int(rollouts.mask[row].sum())
        hidden, log_pi, log_ref = (
            np.asarray(x[row]) for x in (hiddens, log_pis, log_refs)
        )
        places = range(first, first + n)
        values = np.array([hidden[i - 1] @ kernel + bias for i in places])
        token = [int(rollouts.input_ids[row, i]) for i in places]
        apart = np.array(
            [
                log_pi[i - 1, t] - log_ref[i - 1, t]
                for i, t in zip(places, token, strict=True)
            ]
        )
        score = np.mean([t % 2 == 0 for t in token])
        np.testing.assert_allclose(experience.scores[row], score, rtol=1e-5)
        np.testing.assert_allclose(experience.kl[row], apart.sum(), atol=1e-3)
        rewards = -0.2 * apart
        rewards[-1] += score
        following = np.append(values[1:], 0.0)
        surprise, later = rewards + following - values, 0.0
        for t in reversed(range(n)):
            later = surprise[t] + 0.9 * later
            found = experience.advantages[row, t]
            np.testing.assert_allclose(found, later, rtol=1e-3, atol=1e-4)


def test_at_the_reference_the_divergence_costs_nothing():
    objective = preferences.ppo(SCORED, vowels, HOW, kl=5.0)
    experience = collected(objective, SCORED, SCORED.delta)
    np.testing.assert_allclose(experience.kl, 0, atol=1e-4)


def test_the_first_step_of_ppo_is_not_clipped():
    objective, experience = one_answer(kl=0.2)
    gradient, terms = learned(objective, experience, SCORED, MOVED_SCORED)
    assert not terms.metrics["clipped"].any()
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
    mask = np.asarray(experience.rollouts.mask)
    advantages = np.asarray(experience.advantages)[mask]
    np.testing.assert_allclose(advantages.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(advantages.var(), 1, atol=1e-3)


def test_rows_that_do_not_count_leave_the_statistics_alone():
    objective, _ = one_answer(kl=0.2)
    rows = jnp.array([True, True, False])
    found = jax.jit(objective.collect)(
        MOVED_SCORED, SCORED.backbone, PROMPTS, rows, KEY
    )
    mask = np.asarray(found.rollouts.mask & rows[:, None])
    np.testing.assert_allclose(np.asarray(found.advantages)[mask].mean(), 0, atol=1e-5)


# Federated


def simulated(
    method, delta=ADAPTED.delta, adapted=ADAPTED, rounds=1, n=3, seed=0, devices=1
):
    clients = [prompts(6, seed=s) for s in range(1, n + 1)]
    width = max(client["answer_ids"].shape[1] for client in clients)
    longest = max(client["input_ids"].shape[1] for client in clients)
    for client in clients:
        for name, size, fill in (
            ("answer_ids", width, -100),
            ("input_ids", longest, PAD),
            ("attention_mask", longest, 0),
        ):
            column = client[name]
            more = size - column.shape[1]
            side = (0, more) if name == "answer_ids" else (more, 0)
            client[name] = np.pad(column, ((0, 0), side), constant_values=fill)
    population = ffm.Population.from_clients(clients)
    simulator = ffm.Simulator(
        method,
        population,
        backbone=adapted.backbone,
        cohort_size=n,
        seed=seed,
        devices=devices,
    )
    return simulator.run(simulator.init(delta), rounds)


HOW_OFTEN = {"local_steps": 2, "batch_size": 4}


@pytest.mark.slow
def test_one_inner_epoch_is_fedavg_of_the_task():
    """By sequences, whose counts are the prompts': the same steps, the same keys."""
    objective = preferences.grpo(ADAPTED, vowels, HOW, group=3, normalise="sequence")
    plain = ffm.fedavg(preferences.on_policy(objective), optax.sgd(0.5), **HOW_OFTEN)
    own = preferences.federated_policy(objective, optax.sgd(0.5), **HOW_OFTEN)
    (a, metrics), (b, expected) = simulated(own), simulated(plain)
    for x, y in zip(*map(jax.tree.leaves, (a.delta, b.delta)), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)
    np.testing.assert_allclose(metrics["reward"], expected["reward"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], atol=1e-4)
    assert metrics["uplink_bytes"] == expected["uplink_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_rewards_rise(kind):
    """Even tokens are rewarded; several inner epochs, of which the last is clipped."""
    if kind == "grpo":
        objective = preferences.grpo(ADAPTED, vowels, HOW, group=8)
        delta, adapted = ADAPTED.delta, ADAPTED
    else:
        objective = preferences.ppo(SCORED, vowels, HOW, kl=0.001)
        delta, adapted = SCORED.delta, SCORED
    method = preferences.federated_policy(
        objective, optax.adam(0.03), inner_epochs=3, local_steps=3, batch_size=6
    )
    _, metrics = simulated(method, delta, adapted, rounds=20)
    assert metrics["reward"][-5:].mean() > metrics["reward"][0] + 0.2
    assert not metrics["clipped"].any()
    assert metrics["last_clipped"].max() > 0
    assert np.isfinite(metrics["loss"]).all()


@pytest.mark.slow
def test_constant_rewards_run_without_nan():
    objective = preferences.grpo(ADAPTED, constant, HOW, group=2)
    method = preferences.federated_policy(objective, optax.sgd(1.0), **HOW_OFTEN)
    state, metrics = simulated(method)
    np.testing.assert_array_equal(metrics["equal_rewards"], 1.0)
    for a, b in zip(*map(jax.tree.leaves, (state.delta, ADAPTED.delta)), strict=True):
        np.testing.assert_array_equal(a, b)


class Parity:
    """A tokenizer whose only text is whether the first token is even."""

    def decode(self, ids, skip_special_tokens):
        return "even" if ids[0] % 2 == 0 else "odd"


@pytest.mark.slow
def test_a_checker_on_the_host_is_asked_by_every_device():
    """Clients on two devices; the reward is what the same rule gives inside of the program."""

    def on_host(answer, question):
        return float(answer == "even")

    def inside(backbone, batch, rollouts):
        return (rollouts.tokens[:, 0] % 2 == 0).astype(jnp.float32)

    rewards = []
    for reward in (preferences.checked_answers(Parity(), on_host), inside):
        objective = preferences.grpo(ADAPTED, reward, HOW, group=2)
        method = preferences.federated_policy(objective, optax.sgd(0.5), **HOW_OFTEN)
        _, metrics = simulated(method, rounds=2, n=4, devices=2)
        rewards.append(metrics["reward"])
    np.testing.assert_allclose(*rewards, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "more", "error"),
    [
        (preferences.grpo, {"group": 1}, "group >= 2, got group=1"),
        (preferences.grpo, {"normalise": "batch"}, "got normalise='batch'"),
        (preferences.grpo, {"kl": -1.0}, "kl=-1.0"),
        (preferences.grpo, {"clip": 0.0}, "clip=0.0"),
        (preferences.ppo, {"discount": 1.5}, "discount=1.5"),
        (preferences.ppo, {"whiten": 1}, "whiten True or False"),
    ],
)
def test_what_is_refused(make, more, error):
    with pytest.raises((TypeError, ValueError), match=error):
        make(ADAPTED, length, HOW, **more)


def test_parts_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="got reward='exact'"):
        preferences.grpo(ADAPTED, "exact", HOW)
    with pytest.raises(TypeError, match=r"preferences\.writing"):
        preferences.grpo(ADAPTED, length, 16)
    with pytest.raises(TypeError, match="objective=Task"):
        preferences.on_policy(ffm.Task(length))
    averaged = preferences.grpo(ADAPTED, lambda *a: jnp.float32(1), HOW)
    with pytest.raises(ValueError, match="one reward per answer"):
        collected(averaged)
    with pytest.raises(TypeError, match="with_score"):
        collected(preferences.ppo(ADAPTED, length, HOW))
    of_another = preferences.grpo(ADAPTED, preferences.scored_by(SCORED), HOW)
    with pytest.raises(ValueError, match="another backbone than the policy"):
        collected(of_another)
