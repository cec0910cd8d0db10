"""Token classification against Hugging Face's BertForTokenClassification, and word labels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import nnx
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models

import fedjax_fm as ffm
from fedjax_fm import models, peft, tasks

CLASSES = 5
RNG = np.random.default_rng(0)


def batch_of(n=3, length=10):
    """Rows of other lengths, a third of whose tokens have a label; the last has none."""
    sizes = np.array([length, length - 3, length - 5, 4])[:n]
    mask = (np.arange(length) < sizes[:, None]).astype(np.int32)
    ids = RNG.integers(5, 99, (n, length)).astype(np.int32) * mask
    labels = RNG.integers(0, CLASSES, (n, length)).astype(np.int32)
    skipped = (mask == 0) | (RNG.random((n, length)) < 0.6)
    labels[skipped] = -100
    labels[:, 1] = np.arange(n)
    labels[-1] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random BertForTokenClassification as Hugging Face writes it."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=101, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=40, num_labels=CLASSES,
        initializer_range=0.4,
    )  # fmt: skip
    place = tmp_path_factory.mktemp("tokens")
    transformers.BertForTokenClassification(config).eval().save_pretrained(place)
    return place


def as_jax(batch):
    return {name: jnp.asarray(column) for name, column in batch.items()}


def test_logits_loss_and_gradient_are_hugging_faces(folder):
    theirs = transformers.BertForTokenClassification.from_pretrained(folder).eval()
    ours = models.from_pretrained(folder, num_labels=CLASSES, pooling="none")
    assert isinstance(ours, models.BertForTokenClassification)
    batch = batch_of(n=4)
    given = {name: torch.tensor(column).long() for name, column in batch.items()}
    expected = theirs(**given)
    real = batch["attention_mask"] == 1
    logits = ours(*(jnp.asarray(batch[n]) for n in ("input_ids", "attention_mask")))
    np.testing.assert_allclose(
        logits[real], expected.logits.detach().numpy()[real], atol=2e-5
    )
    expected.loss.backward()
    adapted = peft.apply(ours, peft.full())
    task = tasks.token_classification(adapted)

    def mean(delta):
        loss, _ = task.loss(delta, adapted.backbone, as_jax(batch), None)
        weight = task.weight(as_jax(batch))
        return (loss * weight).sum() / weight.sum()

    value, gradient = jax.value_and_grad(mean)(adapted.delta)
    assert float(value) == pytest.approx(float(expected.loss.detach()), rel=1e-5)
    found = gradient["classifier"]["kernel"][...].T
    np.testing.assert_allclose(found, theirs.classifier.weight.grad, atol=1e-5)
    query = gradient["bert"]["encoder"]["layer"]["attention"]["self"]["query"]
    for layer, one in enumerate(theirs.bert.encoder.layer):
        expected = one.attention.self.query.weight.grad
        np.testing.assert_allclose(query["kernel"][layer].T, expected, atol=1e-5)


def test_a_bare_bert_gets_a_new_head_and_no_pooler(tiny_bert):
    model = models.from_pretrained(tiny_bert, num_labels=7, pooling="none", seed=3)
    assert not hasattr(model.bert, "pooler")
    ids = jnp.array([[2, 40, 41, 3]])
    np.testing.assert_allclose(
        model.bert(ids), models.from_pretrained(tiny_bert)(ids), atol=1e-6
    )
    assert model(ids).shape == (1, 4, 7)
    delta = peft.apply(model, peft.head()).delta
    assert list(nnx.to_pure_dict(delta)) == ["classifier"]


def test_metrics_and_weights_by_hand():
    adapted = peft.apply(nnx.Linear(4, CLASSES, rngs=nnx.Rngs(0)), peft.full())
    x = RNG.normal(size=(3, 6, 4)).astype(np.float32)
    labels = np.full((3, 6), -100, np.int32)
    labels[0, 1], labels[0, 4], labels[1, 0] = 2, 0, 4
    task = tasks.token_classification(adapted)
    batch = as_jax({"x": x, "labels": labels})
    loss, metrics = task.loss(adapted.delta, adapted.backbone, batch, None)
    logits = np.asarray(adapted.model()(x), np.float64)
    nats = np.log(np.exp(logits).sum(-1))
    for row, places in enumerate(([1, 4], [0], [])):
        each = [nats[row, t] - logits[row, t, labels[row, t]] for t in places]
        right = [logits[row, t].argmax() == labels[row, t] for t in places]
        mean = np.mean(each) if places else 0.0
        share = np.mean(right) if places else 0.0
        assert float(loss[row]) == pytest.approx(mean, rel=1e-5)
        assert float(metrics["accuracy"][row]) == pytest.approx(share)
    assert task.weight(batch).tolist() == [2.0, 1.0, 0.0]


def test_a_round_is_the_step_on_all_labelled_tokens(tiny_bert):
    """FedAvg of full-batch steps weights clients by labelled tokens: centralised SGD."""
    model = models.from_pretrained(tiny_bert, num_labels=CLASSES, pooling="none")
    adapted = peft.apply(model, peft.head())
    task = tasks.token_classification(adapted)
    clients = [batch_of(n=3), batch_of(n=3)]
    algorithm = ffm.fedavg(task, optax.sgd(0.5), local_steps=1, batch_size=3)
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(clients),
        backbone=adapted.backbone,
        cohort_size=2,
    )
    state, _ = simulator.run(simulator.init(adapted.delta), 1)
    both = {name: np.concatenate([c[name] for c in clients]) for name in clients[0]}

    def mean(delta):
        loss, _ = task.loss(delta, adapted.backbone, as_jax(both), None)
        weight = task.weight(as_jax(both))
        return (loss * weight).sum() / weight.sum()

    gradient = jax.grad(mean)(adapted.delta)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, adapted.delta, gradient)
    found, _ = simulator.model(state)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("label", [-1, CLASSES, 1000])
def test_a_label_outside_of_the_classes_is_nan(label):
    adapted = peft.apply(nnx.Linear(4, CLASSES, rngs=nnx.Rngs(0)), peft.full())
    task = tasks.token_classification(adapted)
    labels = np.array([[0, label], [1, -100]], np.int32)
    batch = as_jax({"x": np.ones((2, 2, 4), np.float32), "labels": labels})
    loss, _ = task.loss(adapted.delta, adapted.backbone, batch, None)
    np.testing.assert_array_equal(np.isnan(loss), [True, False])


@pytest.mark.parametrize(
    ("batch", "error", "said"),
    [
        ({"x": np.ones((2, 3, 4))}, ValueError, "the task needs the columns labels"),
        (
            {"x": np.ones((2, 3, 4)), "labels": np.zeros((2, 3))},
            TypeError,
            "expected 'labels' as whole numbers",
        ),
        (
            {"x": np.ones((2, 3, 4)), "labels": np.zeros(2, np.int32)},
            ValueError,
            r"expected logits \[B, T, K\] and 'labels' \[B, T\], got \[2, 3, 5\]",
        ),
    ],
)
def test_columns_that_do_not_fit_are_named(batch, error, said):
    adapted = peft.apply(nnx.Linear(4, CLASSES, rngs=nnx.Rngs(0)), peft.full())
    task = tasks.token_classification(adapted)
    arrays = {name: jnp.asarray(column) for name, column in batch.items()}
    with pytest.raises(error, match=said):
        task.loss(adapted.delta, adapted.backbone, arrays, None)


# Labels of words


def test_the_first_piece_of_a_word_has_its_label(tiny_bert):
    tokenizer = models.load_tokenizer(tiny_bert)
    sentences = [["Unbelievably", "good", ",", "isn't", "it"], ["bad"]]
    labels = [[1, 2, 3, 4, 5], [6]]
    found = models.tokenize_words(tokenizer, sentences, labels, 32)
    plain = models.tokenize(tokenizer, [" ".join(s) for s in sentences], 32)
    np.testing.assert_array_equal(found["input_ids"], plain["input_ids"])
    np.testing.assert_array_equal(found["attention_mask"], plain["attention_mask"])
    for row, (words, own) in enumerate(zip(sentences, labels, strict=True)):
        place = 1  # behind [CLS]
        expected = np.full(32, -100)
        for word, label in zip(words, own, strict=True):
            expected[place] = label
            place += len(tokenizer.encode(word, add_special_tokens=False).ids)
        np.testing.assert_array_equal(found["labels"][row], expected)
        assert place == found["attention_mask"][row].sum() - 1


def test_words_that_are_cut_off_and_words_without_tokens(tiny_bert):
    tokenizer = models.load_tokenizer(tiny_bert)
    words = [["good"] * 10, ["good", "\u200b", "bad"], []]
    labels = [list(range(10)), [1, 2, 3], []]
    found = models.tokenize_words(tokenizer, words, labels, 6)
    assert found["labels"][0].tolist() == [-100, 0, 1, 2, 3, -100]
    known = found["labels"][1]
    assert known[known != -100].tolist() == [1, 3]
    assert (found["labels"][2] == -100).all()


def test_words_that_cannot_be_labelled_are_refused(tiny_bert):
    tokenizer = models.load_tokenizer(tiny_bert)
    for sentences, labels, error, said in (
        (["a text"], [[1]], TypeError, "sentence 0 as a list of words, got 'a text'"),
        ([["a"], ["b", "c"]], [[1], [1]], ValueError, "2 words of sentence 1, got 1"),
        ([["a"]], [], ValueError, "labels of 1 sentences, got 0"),
        ([["a", None]], [[1, 2]], TypeError, "a word of sentence 0"),
    ):
        with pytest.raises(error, match=said):
            models.tokenize_words(tokenizer, sentences, labels, 8)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: i for i, letter in enumerate(sorted(alphabet))}
    byte_level = Tokenizer(token_models.BPE(vocabulary, []))
    for prefix in (True, False):
        pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        byte_level.pre_tokenizer = pre_tokenizer
        if prefix:
            found = models.tokenize_words(byte_level, [["ab", "c"]], [[1, 2]], 6)
            assert found["labels"].tolist() == [[1, -100, -100, 2, -100, -100]]
            continue
        with pytest.raises(ValueError, match="in another way than the text 'a b'"):
            models.tokenize_words(byte_level, [["ab", "c"]], [[1, 2]], 6)
