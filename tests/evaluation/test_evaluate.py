"""`evaluate` against a plain loop, on any number of rows and of any length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import fedjax_fm as ffm
from fedjax_fm import peft, tasks
from fedjax_fm.engine.devices import client_mesh
from fedjax_fm.evaluation import evaluate, means
from fedjax_fm.evaluation.evaluate import _scores
from fedjax_fm.models.bert import BertConfig, BertForSequenceClassification

RNG = np.random.default_rng(0)
CONFIG = BertConfig(
    vocab_size=31, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=32,
)  # fmt: skip
BERT = peft.apply(
    BertForSequenceClassification(CONFIG, 3, "mean", nnx.Rngs(0)), peft.full()
)
TASK = tasks.classification(BERT)


def ragged(n, longest=20):
    lengths = RNG.integers(1, longest + 1, n)
    mask = (np.arange(longest) < lengths[:, None]).astype(np.int32)
    return {
        "input_ids": RNG.integers(1, 31, (n, longest)).astype(np.int32) * mask,
        "attention_mask": mask,
        "label": RNG.integers(0, 3, n),
    }


def loop(arrays):
    """One row at a time, cut to its length."""
    model, losses, correct = BERT.model(), [], []
    for ids, mask, label in zip(
        arrays["input_ids"], arrays["attention_mask"], arrays["label"], strict=True
    ):
        logits = np.asarray(model(ids[None, : mask.sum()], mask[None, : mask.sum()]))[
            0
        ].astype(np.float64)
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
        correct.append(logits.argmax() == label)
    return np.array(losses), np.array(correct)


@pytest.mark.parametrize("bucket", [None, 1, 8])
@pytest.mark.parametrize(("n", "batch_size"), [(1, 4), (13, 4), (13, 64)])
def test_it_equals_a_plain_loop_on_ragged_arrays(n, batch_size, bucket):
    arrays = ragged(n)
    losses, correct = loop(arrays)
    found = evaluate(
        TASK, BERT.delta, BERT.backbone, arrays, batch_size=batch_size, bucket=bucket
    )
    np.testing.assert_allclose(found["loss"], losses, rtol=2e-4)
    np.testing.assert_array_equal(found["accuracy"], correct)


SIDES = {
    "right": [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ],
    "left": [
        [0, 0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ],
    "holes": [
        [1, 0, 0, 0, 0, 0, 1, 0],
        [0, 1, 0, 1, 1, 0, 0, 1],
        [1, 1, 1, 0, 1, 1, 1, 1],
    ],
    "nothing": [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0],
    ],
}


@pytest.mark.parametrize("side", SIDES)
def test_no_real_token_is_cut_off_wherever_the_padding_is(side):
    """Rows are cut to the width of their bucket: counting ones would cut a row that is
    padded on the left.
    """
    mask = np.array(SIDES[side])
    ids = np.random.default_rng(0).integers(1, 9, mask.shape)
    total = (ids * mask).sum(axis=1)

    def logits(delta, backbone, batch, key):
        real = batch["input_ids"] * batch["attention_mask"]
        score = delta * real.sum(axis=1)
        return jnp.stack([0.0 * score, score - 15.0], axis=1)

    task = tasks.from_logits(logits)
    arrays = {"input_ids": ids, "attention_mask": mask, "label": ids[:, 0] % 2}
    found = evaluate(task, 1.5, (), arrays, batch_size=2, bucket=2)
    np.testing.assert_array_equal(
        found["accuracy"], (1.5 * total > 15.0) == arrays["label"]
    )


def test_one_compile_serves_any_number_of_rows():
    _scores.clear_cache()
    for n in (3, 8, 21):
        evaluate(TASK, BERT.delta, BERT.backbone, ragged(n), batch_size=8)
    assert _scores._cache_size() == 1


def test_several_devices_each_compute_their_rows():
    arrays, mesh = ragged(21), client_mesh(4)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    delta, backbone = jax.device_put((BERT.delta, BERT.backbone), everywhere)
    found = evaluate(TASK, delta, backbone, arrays, batch_size=6)
    expected = evaluate(TASK, BERT.delta, BERT.backbone, arrays)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    text = (
        _scores.lower(
            TASK, mesh, delta, backbone, {k: v[:8] for k, v in arrays.items()}, None
        )
        .compile()
        .as_text()
    )
    assert "all-reduce" not in text
    assert "all-gather" not in text


def test_means_are_weighted_where_the_task_weighs():
    task = ffm.Task(
        lambda delta, backbone, batch, key: (batch["x"], {"double": 2 * batch["x"]}),
        lambda b: b["w"],
    )
    arrays = {
        "x": np.array([1.0, 2, 6], np.float32),
        "w": np.array([1.0, 0, 3], np.float32),
    }
    scores = evaluate(task, (), (), arrays)
    assert sorted(scores) == ["double", "loss", "weight"]
    assert means(scores) == {"loss": 19 / 4, "double": 19 / 2}
    assert np.isnan(means({"loss": np.ones(2), "weight": np.zeros(2)})["loss"])


def drawing(delta, backbone, batch, key):
    return jax.random.normal(key, batch["x"].shape), {}


def plain(delta, backbone, batch, key):
    return batch["x"], {}


X = {"x": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    ("loss", "arrays", "how", "error", "said"),
    [
        (drawing, X, {}, TypeError, "the loss draws from its key"),
        (plain, {"x": np.ones(0, np.float32)}, {}, ValueError, "nothing to evaluate"),
        (plain, {}, {}, ValueError, "nothing to evaluate"),
        (
            plain,
            {**X, "label": np.ones(2)},
            {},
            ValueError,
            "expected arrays of equal length",
        ),
        (plain, X, {"batch_size": 0}, ValueError, "batch_size=0"),
        (plain, X, {"bucket": 8}, ValueError, "needs the column attention_mask"),
        (
            plain,
            {"x": np.array([1, np.inf, np.nan], np.float32)},
            {},
            FloatingPointError,
            "example 1 is not finite",
        ),
        (
            lambda d, b, batch, k: (batch["x"].mean(), {}),
            X,
            {},
            ValueError,
            r"expected loss as one number an example",
        ),
        (
            lambda d, b, batch, k: (batch["x"], {"loss": batch["x"]}),
            X,
            {},
            ValueError,
            "evaluate's own",
        ),
    ],
)
def test_bad_input_is_named(loss, arrays, how, error, said):
    with pytest.raises(error, match=said):
        evaluate(ffm.Task(loss), (), (), arrays, **how)


UNIFORM = tasks.from_logits(
    lambda delta, backbone, batch, key: jnp.zeros((len(batch["input_ids"]), 3))
)
GOOD = {
    "input_ids": np.ones((4, 3), np.int32),
    "attention_mask": np.ones((4, 3), np.int32),
    "label": np.arange(4) % 3,
}


@pytest.mark.parametrize(
    ("name", "array", "error", "said"),
    [
        ("label", np.arange(6), ValueError, "equal length.*'label': 6"),
        ("label", np.arange(3), ValueError, "equal length.*'label': 3"),
        ("input_ids", np.ones((5, 3), int), ValueError, "equal length.*'input_ids': 5"),
        ("label", np.array([0, 1, 2, 2**32 + 1]), ValueError, "'label'.*4294967297"),
        ("label", np.array([0, 1, 2, -1]), FloatingPointError, "example 3.*label=-1"),
        ("label", np.array([0, 1, 3, 0]), FloatingPointError, "example 2.*label=3"),
        ("label", np.array([0, 1, 2, 0.5]), TypeError, "'label' as whole numbers"),
        ("label", np.array(["a", "b", "a", "b"]), ValueError, "'label' holds text"),
        ("attention_mask", np.ones(4, int), ValueError, r"attention_mask.*\[n, T\]"),
    ],
)
def test_columns_that_do_not_belong_together_are_refused(name, array, error, said):
    assert evaluate(UNIFORM, (), (), GOOD, bucket=8)["accuracy"].sum() == 2
    with pytest.raises(error, match=said):
        evaluate(UNIFORM, (), (), {**GOOD, name: array}, bucket=8)


def test_parameters_that_are_not_finite_are_named_by_the_first_example():
    def logits(delta, backbone, batch, key):
        return delta * jnp.ones((len(batch["input_ids"]), 2))

    with pytest.raises(FloatingPointError, match=r"example 0 .*\(4 of 4 examples\)"):
        evaluate(
            tasks.from_logits(logits), jnp.nan, (), {**GOOD, "label": np.zeros(4, int)}
        )


def test_a_loss_that_draws_may_be_given_a_key():
    found = evaluate(ffm.Task(drawing), (), (), X, key=jax.random.key(3))["loss"]
    np.testing.assert_allclose(found, jax.random.normal(jax.random.key(3), (256,))[:3])


def test_a_delta_of_numpy_and_one_of_jax_give_the_same():
    arrays = ragged(4)
    a = evaluate(TASK, jax.tree.map(np.asarray, BERT.delta), BERT.backbone, arrays)
    b = evaluate(TASK, jax.tree.map(jnp.asarray, BERT.delta), BERT.backbone, arrays)
    np.testing.assert_array_equal(a["loss"], b["loss"])


@pytest.mark.parametrize(("first", "second"), [(4, 1), (1, 4), (2, 4)])
def test_a_delta_of_one_simulator_and_a_backbone_of_another(first, second):
    """That lie on different devices."""

    def on(n, tree):
        mesh = client_mesh(n)
        return jax.device_put(tree, NamedSharding(mesh, P()))

    def logits(delta, backbone, batch, key):
        return batch["x"] * (delta + backbone)

    arrays = {"x": np.eye(3, dtype=np.float32), "label": np.array([0, 1, 0])}
    task = tasks.from_logits(logits)
    parts = (on(first, jnp.float32(2)), on(second, jnp.float32(3)))
    scores = ffm.evaluate(task, *parts, arrays)
    expected = ffm.evaluate(task, jnp.float32(2), jnp.float32(3), arrays)
    for name, column in expected.items():
        np.testing.assert_allclose(scores[name], column, rtol=1e-6)
