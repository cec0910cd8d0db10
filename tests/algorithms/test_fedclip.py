"""FedCLIP on a small CLIP: what moves, what is sent, and its loss against torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models, peft, tasks, trees
from fedjax_fm.algorithms import fedclip
from fedjax_fm.tasks.contrastive import contrastive_losses

END, WIDTH, N_CLASSES = 29, 8, 3
SIZES = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
}  # fmt: skip
BOTH = ["visual_projection", "text_projection"]
NAMES = np.array([[1, 2, END, END], [3, END, END, END], [4, 5, 6, END]])
NAMES_MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])


@functools.cache
def clip():
    text = models.CLIPTextConfig(vocab_size=30, eos_token_id=END, **SIZES)
    vision = models.CLIPVisionConfig(image_size=4, patch_size=2, **SIZES)
    config = models.CLIPConfig(text, vision, projection_dim=WIDTH)
    return models.CLIPModel(config, nnx.Rngs(0))


def client(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, N_CLASSES, n).astype(np.int32)
    return {
        "pixel_values": rng.normal(size=(n, 3, 4, 4)).astype(np.float32),
        "input_ids": NAMES[labels].astype(np.int32),
        "attention_mask": NAMES_MASK[labels].astype(np.int32),
        "label": labels,
    }


def adapted(targets=BOTH, init="zero"):
    return peft.apply(clip(), peft.attention_adapter(targets, init=init))


def run(model, sizes=(5, 3, 6), rounds=2, optimizer=None, **how):
    walk = {"local_steps": 2, "batch_size": 8} | how
    method = fedclip(tasks.pair_features(model), optimizer or optax.adam(1e-2), **walk)
    population = ffm.Population.from_clients(
        [client(n, seed) for seed, n in enumerate(sizes)]
    )
    one = ffm.Simulator(
        method,
        population,
        backbone=model.backbone,
        cohort_size=len(sizes),
        devices=1,
    )
    return one, *one.run(one.init(model.delta), rounds)


def zero_shot_logits(model):
    """[B, K] of the model as it is."""
    out = model(NAMES, client(7)["pixel_values"], NAMES_MASK)
    return np.asarray(out.logits_per_image)


@pytest.mark.parametrize("targets", [BOTH, BOTH[:1]])
def test_an_adapter_that_starts_at_zero_is_zero_shot_clip(targets):
    # shares are 1/8 each: a power of two, which the length divides away exactly
    np.testing.assert_array_equal(
        zero_shot_logits(adapted(targets).model()), zero_shot_logits(clip())
    )
    other = zero_shot_logits(adapted(targets, init="torch").model())
    assert np.abs(other - zero_shot_logits(clip())).max() > 1e-3


def test_the_adapter_in_numpy():
    model = adapted(init="torch").model()
    own = model.visual_projection.adapter
    weights = [
        np.asarray(one[...], np.float64)
        for one in (own.inner, own.inner_bias, own.outer, own.outer_bias)
    ]
    y = np.random.default_rng(0).normal(size=(4, WIDTH))
    hidden = np.tanh(y @ weights[0] + weights[1]) @ weights[2] + weights[3]
    shares = np.exp(hidden) / np.exp(hidden).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(own(y.astype(np.float32)), shares, rtol=1e-5)
    for x in weights:  # torch's bound
        assert np.abs(x).max() <= WIDTH**-0.5
        assert np.abs(x).max() > 0.5 * WIDTH**-0.5


def test_adapters_alone_move_and_travel():
    model = adapted()
    before = jax.tree.map(np.array, model.backbone)
    one, state, metrics = run(model)
    _, backbone = one.model(state)
    jax.tree.map(np.testing.assert_array_equal, before, backbone)
    n_numbers = 2 * 2 * (WIDTH**2 + WIDTH)  # of both towers
    assert trees.size(model.delta) == n_numbers
    assert metrics["uplink_bytes"].tolist() == [3 * 4 * n_numbers] * 2
    assert metrics["downlink_bytes"].tolist() == [3 * 4 * n_numbers] * 2
    moved = jax.tree.map(lambda a, b: np.any(a != b), model.delta, state.delta)
    assert all(jax.tree.leaves(moved))


def test_the_loss_is_that_of_torch():
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32)
    real = np.array([True, True, False, True, True, False])
    inner = torch.tensor(logits[np.ix_(real, real)])
    order = torch.arange(4)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(inner, order) + cross_entropy(inner.T, order)) / 2
    found = contrastive_losses(jnp.asarray(logits), jnp.asarray(real))
    assert found[~real].tolist() == [0, 0]
    np.testing.assert_allclose(found.sum() / 4, expected.item(), rtol=1e-6)


def test_the_loss_is_that_of_transformers_on_the_same_model():
    pytest.importorskip("torch")
    hf_clip = pytest.importorskip("transformers.models.clip.modeling_clip")
    torch = pytest.importorskip("torch")
    model, batch = adapted(), client(5)
    of = tasks.pair_features(model)(model.delta, model.backbone, batch, None)
    found = contrastive_losses(of.similarities(), jnp.ones(5, bool)).mean()
    out = clip()(batch["input_ids"], batch["pixel_values"], batch["attention_mask"])
    expected = hf_clip.image_text_contrastive_loss(
        torch.tensor(np.asarray(out.logits_per_text))
    )
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)


def test_a_batch_of_one_pair_moves_nothing():
    # weight decay alone would move it
    decays = optax.adamw(1e-2, weight_decay=0.5)
    model = adapted(init="torch")
    _, state, metrics = run(model, sizes=(1, 1), optimizer=decays)
    jax.tree.map(np.testing.assert_array_equal, model.delta, state.delta)
    assert np.isnan(metrics["loss"]).all()  # of no pair
    # 5 pairs in batches of 4: the second batch of an epoch is skipped
    how = {"epochs": 1, "local_steps": None, "batch_size": 4, "optimizer": decays}
    _, state, metrics = run(model, sizes=(5,), rounds=1, **how)
    assert not np.array_equal(
        *(jax.tree.leaves(tree)[0] for tree in (model.delta, state.delta))
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_clients_count_as_one_or_by_their_pairs(weighted):
    model = adapted()
    sgd = {"optimizer": optax.sgd(0.5), "rounds": 1}
    _, together, _ = run(model, sizes=(5, 2), weighted=weighted, **sgd)
    alone = []
    for seed, n in enumerate((5, 2)):
        features = tasks.pair_features(model)
        method = fedclip(features, optax.sgd(0.5), local_steps=2, batch_size=8)
        population = ffm.Population.from_clients([client(n, seed)])
        one = ffm.Simulator(
            method, population, backbone=model.backbone, cohort_size=1, devices=1
        )
        alone.append(one.run(one.init(model.delta), 1)[0].delta)
    share = 5 / 7 if weighted else 1 / 2
    mean = jax.tree.map(lambda a, b: share * a + (1 - share) * b, *alone)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        nnx.to_pure_dict(together.delta),
        nnx.to_pure_dict(mean),
    )


def test_scores_by_names_rise_on_what_is_learned():
    model = adapted(init="torch")
    task = tasks.zero_shot(model, NAMES, NAMES_MASK)
    one, state, _ = run(model, sizes=(9,), rounds=40, optimizer=optax.adam(3e-2))
    batch = client(9)
    before, _ = task.loss(model.delta, model.backbone, batch, None)
    after, _ = task.loss(state.delta, one.model(state)[1], batch, None)
    assert after.mean() < before.mean() - 0.05


def test_refusals():
    model = adapted()
    with pytest.raises(ValueError, match=r"\[classes, tokens\]"):
        tasks.zero_shot(model, [1, 2])
    with pytest.raises(ValueError, match="attention_mask of the shape"):
        tasks.zero_shot(model, NAMES, NAMES_MASK[:2])
    with pytest.raises(TypeError, match="features=3"):
        fedclip(3, optax.sgd(0.1), local_steps=1, batch_size=2)
    with pytest.raises(ValueError, match="batch_size=1"):
        fedclip(tasks.pair_features(model), optax.sgd(0.1), local_steps=1, batch_size=1)
    with pytest.raises(ValueError, match="of a stack of 1"):
        peft.apply(clip(), peft.attention_adapter(["mlp.fc2"]))
