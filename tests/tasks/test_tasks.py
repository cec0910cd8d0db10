"""Tasks of the usual kinds, against losses written out by hand and torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft, tasks
from fedjax_fm.algorithms.feddpa import Adapters
from fedjax_fm.models.llama import LlamaConfig, LlamaForCausalLM
from fedjax_fm.models.t5 import T5Config, T5ForConditionalGeneration
from fedjax_fm.tasks.classification import cross_entropy

RNG = np.random.default_rng(0)


class Mlp(nnx.Module):
    def __init__(self, rngs, n_out=3):
        self.first, self.last = (
            nnx.Linear(5, 8, rngs=rngs),
            nnx.Linear(8, n_out, rngs=rngs),
        )

    def __call__(self, x, scale=None):
        hidden = jnp.tanh(self.first(x))
        return self.last(hidden if scale is None else hidden * scale[:, None])


ADAPTED = peft.apply(Mlp(nnx.Rngs(0)), peft.full())
BATCH = {
    "x": RNG.normal(size=(4, 5)).astype(np.float32),
    "label": np.array([0, 2, 1, 2]),
}


def loss_of(task, batch, adapted=ADAPTED, key=None):
    return task.loss(
        adapted.delta,
        adapted.backbone,
        {k: jnp.asarray(v) for k, v in batch.items()},
        key,
    )


def test_classification_is_torchs_cross_entropy():
    loss, metrics = loss_of(tasks.classification(ADAPTED), BATCH)
    logits = np.asarray(ADAPTED.model()(BATCH["x"]))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(BATCH["label"]), reduction="none"
    )
    np.testing.assert_allclose(loss, expected.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(
        metrics["accuracy"], logits.argmax(-1) == BATCH["label"]
    )


def test_columns_are_the_models_parameters_whatever_their_order():
    batch = {
        "label": BATCH["label"],
        "scale": np.full(4, 0.5, np.float32),
        "x": BATCH["x"],
    }
    found, _ = loss_of(tasks.classification(ADAPTED), batch)
    model = ADAPTED.model()
    logits = model.last(0.5 * jnp.tanh(model.first(BATCH["x"])))
    np.testing.assert_allclose(found, cross_entropy(logits, batch["label"]))
    plain, _ = loss_of(tasks.classification(ADAPTED, inputs=["x"]), batch)
    np.testing.assert_allclose(plain, loss_of(tasks.classification(ADAPTED), BATCH)[0])


def test_a_model_of_one_parameter_takes_the_only_column_whatever_its_name():
    adapted = peft.apply(nnx.Linear(5, 3, rngs=nnx.Rngs(1)), peft.full())
    batch = {"pixels": BATCH["x"], "label": BATCH["label"]}
    found, _ = loss_of(tasks.classification(adapted), batch, adapted)
    assert found.shape == (4,)


@pytest.mark.parametrize("label", [-1, 3, 100])
def test_a_label_outside_of_the_classes_is_nan_and_stops_a_run(label):
    task = tasks.classification(ADAPTED)
    batch = {**BATCH, "label": np.array([0, label, 1, 2])}
    loss, _ = loss_of(task, batch)
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False, False])
    population = ffm.Population.from_clients([BATCH, batch])
    simulator = ffm.Simulator(
        ffm.fedavg(task, optax.sgd(0.1), local_steps=1, batch_size=4),
        population,
        backbone=ADAPTED.backbone,
        cohort_size=2,
    )
    with pytest.raises(
        ffm.NonFiniteClient,
        match=r"client 1 produced NaN.*label outside of the classes",
    ):
        simulator.run(simulator.init(ADAPTED.delta), 1)
    with pytest.raises(
        FloatingPointError, match=rf"example 1 is not finite \(label={label}\)"
    ):
        ffm.evaluate(task, ADAPTED.delta, ADAPTED.backbone, batch)


@pytest.mark.parametrize(
    ("batch", "error", "said"),
    [
        (
            {"x": BATCH["x"]},
            ValueError,
            "the task needs the columns label; the batch has x: label missing",
        ),
        (
            {"label": BATCH["label"]},
            ValueError,
            "the model Mlp needs the columns x; the batch has none",
        ),
        (
            {**BATCH, "domain": BATCH["label"]},
            ValueError,
            "the model Mlp takes scale, x, not domain",
        ),
        (
            {**BATCH, "label": np.zeros(4, np.float32)},
            TypeError,
            "expected 'label' as whole numbers",
        ),
        (
            {**BATCH, "label": np.zeros((4, 1), np.int32)},
            ValueError,
            r"expected logits \[B, K\] and 'label' \[B\]",
        ),
    ],
)
def test_columns_that_do_not_fit_are_named(batch, error, said):
    with pytest.raises(error, match=said):
        loss_of(tasks.classification(ADAPTED), batch)


@pytest.mark.parametrize(
    "make", [tasks.classification, tasks.regression, tasks.language_modeling]
)
def test_what_is_no_adapted_model_is_refused(make):
    with pytest.raises(TypeError, match=r"expected adapted from peft\.apply"):
        make(Mlp(nnx.Rngs(0)))


def test_regression_squares_the_error_of_one_output_or_of_several():
    adapted = peft.apply(Mlp(nnx.Rngs(2), 1), peft.full())
    batch = {"x": BATCH["x"], "label": np.array([0.5, -1, 2, 0], np.float32)}
    loss, metrics = loss_of(tasks.regression(adapted), batch, adapted)
    error = np.asarray(adapted.model()(BATCH["x"]))[:, 0] - batch["label"]
    np.testing.assert_allclose(loss, error**2, rtol=1e-5)
    np.testing.assert_allclose(metrics["absolute_error"], np.abs(error), rtol=1e-5)
    targets = RNG.normal(size=(4, 3)).astype(np.float32)
    several, _ = loss_of(tasks.regression(ADAPTED), {"x": BATCH["x"], "label": targets})
    error = np.asarray(ADAPTED.model()(BATCH["x"])) - targets
    np.testing.assert_allclose(several, (error**2).mean(axis=1), rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"expected an output of the label's shape \[4\], got \[4, 3\]"
    ):
        loss_of(
            tasks.regression(ADAPTED),
            {"x": BATCH["x"], "label": np.zeros(4, np.float32)},
        )


def test_from_logits_takes_a_plain_function_and_its_key():
    seen = []

    def logits(delta, backbone, batch, key):
        seen.append(key)
        return batch["x"] @ delta

    task = tasks.from_logits(logits, label="y")
    batch = {"x": jnp.eye(3), "y": jnp.array([1, 1, 0])}
    loss, metrics = task.loss(jnp.diag(jnp.array([2.0, 3.0, 4.0])), (), batch, "key")
    expected = [
        np.log(np.exp([2, 0, 0]).sum()),
        np.log(np.exp([0, 3, 0]).sum()) - 3,
        np.log(np.exp([0, 0, 4]).sum()),
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics["accuracy"].tolist() == [0, 1, 0]
    assert seen == ["key"]
    with pytest.raises(TypeError, match="expected fn"):
        tasks.from_logits("logits")


@pytest.fixture(scope="module")
def llama():
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return peft.apply(
        LlamaForCausalLM(config, nnx.Rngs(0)),
        peft.lora(2, targets=["q_proj"], dropout=0.5),
    )


def test_language_modeling_counts_tokens_and_weighs_by_them(llama):
    ids = RNG.integers(0, 23, (3, 6)).astype(np.int32)
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 6], np.int32)
    labels = np.where(mask, ids, -100)
    labels[2] = -100
    task = tasks.language_modeling(llama)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    loss, _ = loss_of(task, batch, llama)
    weight = task.weight(batch)
    np.testing.assert_array_equal(weight, [5, 3, 0])
    logits = torch.tensor(np.asarray(llama.model()(ids, mask)))[:, :-1]
    found = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2),
        torch.tensor(labels[:, 1:], dtype=torch.int64),
        reduction="none",
    ).numpy()
    np.testing.assert_allclose(
        loss * np.asarray(weight), found.sum(1), rtol=1e-4, atol=1e-5
    )
    scores = ffm.evaluate(task, llama.delta, llama.backbone, batch, batch_size=2)
    np.testing.assert_allclose(
        ffm.evaluation.means(scores)["loss"], found.sum() / 8, rtol=1e-5
    )


def test_the_key_reaches_dropout_while_training_and_not_in_evaluation(llama):
    ids = RNG.integers(0, 23, (2, 6)).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    task = tasks.language_modeling(llama)
    moved = jax.tree.map(lambda x: x + 0.5, llama.delta)
    one, again, other = (
        task.loss(moved, llama.backbone, batch, jax.random.key(seed))[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert (np.asarray(one) != np.asarray(other)).any()
    without = task.loss(moved, llama.backbone, batch, None)[0]
    np.testing.assert_allclose(
        ffm.evaluate(task, moved, llama.backbone, batch)["loss"], without, rtol=1e-5
    )


def test_an_encoder_decoder_is_given_its_targets():
    config = T5Config(
        vocab_size=19,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
    )
    adapted = peft.apply(T5ForConditionalGeneration(config, nnx.Rngs(0)), peft.full())
    ids = RNG.integers(1, 19, (2, 5)).astype(np.int32)
    labels = np.array([[4, 5, 1], [6, 1, -100]], np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}
    task = tasks.language_modeling(adapted)
    loss, _ = loss_of(task, batch, adapted)
    model = adapted.model()
    logits = torch.tensor(
        np.asarray(
            model(ids, np.ones_like(ids), model.shift_right(jnp.asarray(labels)))
        )
    )
    found = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2),
        torch.tensor(labels, dtype=torch.int64),
        reduction="none",
    ).numpy()
    weight = np.asarray(task.weight(batch))
    np.testing.assert_array_equal(weight, [3, 2])
    np.testing.assert_allclose(loss * weight, found.sum(1), rtol=1e-4)


@pytest.mark.parametrize("missing", ["input_ids", "attention_mask", "labels"])
def test_a_language_model_needs_its_columns(llama, missing):
    ids = np.zeros((2, 6), np.int32)
    batch = {
        name: ids
        for name in ("input_ids", "attention_mask", "labels")
        if name != missing
    }
    with pytest.raises(
        ValueError, match=f"the task needs the columns .*: {missing} missing"
    ):
        loss_of(tasks.language_modeling(llama), batch, llama)


def test_a_classifier_is_no_language_model():
    batch = {
        name: np.zeros((2, 6), np.int32)
        for name in ("input_ids", "attention_mask", "labels")
    }
    with pytest.raises(TypeError, match="expected a language model with hidden"):
        loss_of(tasks.language_modeling(ADAPTED), batch)


def test_two_adapters_side_by_side_are_a_model(llama):
    both = peft.beside(llama)
    ids = RNG.integers(0, 23, (2, 6)).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    other = jax.tree.map(lambda x: x + 0.3, llama.delta)
    task = tasks.language_modeling(both)

    def at(mix):
        return task.loss(
            Adapters(llama.delta, other, jnp.float32(mix)), llama.backbone, batch, None
        )[0]

    one = tasks.language_modeling(llama)
    np.testing.assert_allclose(
        at(0.0), one.loss(llama.delta, llama.backbone, batch, None)[0], rtol=1e-5
    )
    np.testing.assert_allclose(
        at(1.0), one.loss(other, llama.backbone, batch, None)[0], rtol=1e-5
    )


def test_adapted_unpacks_makes_models_and_saves(tmp_path, llama):
    graphdef, delta, backbone = llama
    moved = jax.tree.map(lambda x: x + 0.1, delta)
    ids = RNG.integers(0, 23, (2, 6)).astype(np.int32)
    expected = nnx.merge(graphdef, moved, backbone)(ids)
    np.testing.assert_array_equal(llama.model(moved)(ids), expected)
    llama.save_pretrained(tmp_path / "adapter", moved)
    again = peft.load_pretrained(tmp_path / "adapter", llama.model())
    assert isinstance(again, peft.Adapted)
