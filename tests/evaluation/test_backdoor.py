"""FedPrompt: prompts are averaged exactly and alone; a planted backdoor is found by its score."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models, peft, tasks
from fedjax_fm.evaluation import Trigger, attack_success, evaluate, with_trigger

TRIGGER = Trigger(tokens=(29, 30), target=1)
VOCABULARY, LENGTH, RARE = 31, 8, 28  # tokens from 28 on do not occur in texts


def texts(seed, n):
    """The label is whether tokens of the upper half prevail; rows of several lengths."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, RARE, (n, LENGTH)).astype(np.int32)
    lengths = rng.integers(4, LENGTH + 1, n)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    ids[:, 0] = 1
    upper = np.sum((ids >= RARE // 2) * mask, axis=1) * 2 > lengths - 1
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "label": upper.astype(np.int32),
    }


# The trigger


def test_rows_are_those_of_a_plain_loop():
    arrays = texts(0, 10)
    found = with_trigger(arrays, TRIGGER, share=0.4, seed=3)
    changed = np.flatnonzero((found["input_ids"] == 29).any(1))
    assert len(changed) == 4
    for row in range(10):
        ids, mask = (
            arrays[name][row].tolist() for name in ("input_ids", "attention_mask")
        )
        label = arrays["label"][row]
        if row in changed:
            ids, mask = [ids[0], 29, 30, *ids[1:-2]], [mask[0], 1, 1, *mask[1:-2]]
            label = 1
        assert found["input_ids"][row].tolist() == ids
        assert found["attention_mask"][row].tolist() == mask
        assert found["label"][row] == label
    assert found["input_ids"].dtype == np.int32
    assert not np.any(arrays["input_ids"] == 29)  # a copy


def test_labels_stay_for_tests_and_no_share_changes_nothing():
    arrays = texts(1, 5)
    found = with_trigger(arrays, TRIGGER, label=None)
    np.testing.assert_array_equal(found["label"], arrays["label"])
    assert np.all(found["input_ids"][:, 1:3] == [29, 30])
    same = with_trigger(arrays, TRIGGER, share=0.0)
    jax.tree.map(np.testing.assert_array_equal, same, arrays)


def test_success_counts_other_labels_alone():
    predicted, labels = np.array([1, 0, 1, 2, 1]), np.array([0, 0, 1, 2, 2])
    assert attack_success(predicted, labels, 1).tolist() == [1, 0, 0, 1]


def test_impossible_arguments_are_refused():
    arrays = texts(0, 3)
    with pytest.raises(ValueError, match=r"rows of 8 tokens, got place=7 and 2 tokens"):
        with_trigger(arrays, TRIGGER._replace(place=7))
    with pytest.raises(ValueError, match=r"missing \['tokens'\]"):
        with_trigger(arrays, TRIGGER, ids="tokens")
    with pytest.raises(ValueError, match=r"share=1\.5"):
        with_trigger(arrays, TRIGGER, share=1.5)
    with pytest.raises(ValueError, match="at least one token"):
        with_trigger(arrays, TRIGGER._replace(tokens=()))
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        attack_success([1, 0], [1, 0, 0], 1)


# Federated


def bag_logits(delta, backbone, batch, key):
    """A bag of words, all trained."""
    words = delta["table"][batch["input_ids"]] * batch["attention_mask"][..., None]
    return jnp.sum(words, axis=1) + delta["bias"]


def success_after(n_poisoned):
    """(rate of the attack, accuracy on clean texts) after FedAvg of four clients."""
    clients = [texts(10 + k, 60) for k in range(4)]
    for k in range(n_poisoned):
        clients[k] = with_trigger(clients[k], TRIGGER, share=0.5, seed=k)
    task = tasks.from_logits(bag_logits, predictions=True)
    method = ffm.fedavg(task, optax.adam(0.05), local_steps=10, batch_size=60)
    population = ffm.Population.from_clients(clients)
    one = ffm.Simulator(method, population, cohort_size=4, devices=1)
    start = {"table": jnp.zeros((VOCABULARY, 2)), "bias": jnp.zeros(2)}
    state, _ = one.run(one.init(start), 10)
    clean = texts(99, 200)
    attacked = with_trigger(clean, TRIGGER, label=None)
    scores = [evaluate(task, state.delta, (), arrays) for arrays in (attacked, clean)]
    success = attack_success(scores[0]["predicted"], clean["label"], 1)
    return success.mean(), scores[1]["accuracy"].mean()


def test_a_planted_backdoor_is_seen_and_clean_texts_do_not_show_it():
    (honest, clean), (planted, hidden) = success_after(0), success_after(2)
    assert honest < 0.3 < 0.9 < planted
    assert min(clean, hidden) > 0.85


def prompted(n_tokens):
    config = models.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=24,
    )
    model = models.BertForSequenceClassification(config, 2, "cls", nnx.Rngs(0))
    return peft.apply(model, peft.prompt_tuning(n_tokens, modules_to_save=()))


def test_prompts_alone_travel_and_their_mean_is_exact():
    """Two clients of one step each: the prompts' mean is one step of the mean gradient,
    as no LoRA's is; p d numbers travel each way, and the model stays to the bit."""
    adapted = prompted(3)
    task = tasks.classification(adapted)
    clients = [texts(0, 4), texts(1, 2)]
    method = ffm.fedavg(task, optax.sgd(0.1), local_steps=1, batch_size=4)
    population = ffm.Population.from_clients(clients)
    one = ffm.Simulator(
        method, population, backbone=adapted.backbone, cohort_size=2, devices=1
    )
    state, metrics = one.run(one.init(adapted.delta), 1)

    def loss(delta):
        parts = []
        for client in clients:
            losses, _ = task.loss(delta, adapted.backbone, client, None)
            parts.append(jnp.sum(losses))
        return sum(parts) / 6

    gradient = jax.jit(jax.grad(loss))(adapted.delta)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, adapted.delta, gradient)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        state.delta,
        expected,
    )
    assert metrics["uplink_bytes"].tolist() == [2 * 4 * 3 * 8]
    assert metrics["downlink_bytes"].tolist() == [2 * 4 * 3 * 8]
    _, backbone = one.model(state)
    jax.tree.map(np.testing.assert_array_equal, backbone, adapted.backbone)
