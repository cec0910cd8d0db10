"""What one upload gives away: exact attacks on each PEFT method, a search, a planted leak."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models, peft, tasks
from fedjax_fm.audit.findings import LEAKS, NOTHING
from fedjax_fm.audit.upload import Sender, of_upload, upload_of
from fedjax_fm.evaluation import token_f1
from fedjax_fm.evaluation.leaks import (
    TextSearch,
    copies_in_upload,
    first_inputs,
    hard_loss,
    label_of_gradient,
    search_text,
    soft_loss,
    span_residuals,
    token_table,
    with_embedded,
)
from fedjax_fm.types import ClientOutput, Setting

VOCABULARY, WIDTH, LENGTH = 50, 24, 6
TEXT = np.random.default_rng(0).permutation(VOCABULARY)[:LENGTH]
READ = sorted(TEXT[:-1].tolist())  # the last token is predicted, and read for nothing


def llama():
    config = models.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=2,
    )  # fmt: skip
    return models.LlamaForCausalLM(config, rngs=nnx.Rngs(0)), ["q_proj", "v_proj"]


def gpt2():
    config = models.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=WIDTH, n_layer=2, n_head=2
    )
    return models.GPT2LMHeadModel(config, nnx.Rngs(0)), ["c_attn"]


def adapted_by(method, model):
    return peft.apply(model, method, jax.random.key(0))


def moved(tree, size=0.1):
    """The trainable tree some rounds later: LoRA's B is no longer zero."""
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    return form.unflatten([x + size * jax.random.normal(k, x.shape) for x, k in pairs])


def batch(text=TEXT):
    ids = jnp.asarray(text, jnp.int32)[None]
    return {"input_ids": ids, "attention_mask": jnp.ones_like(ids), "labels": ids}


def gradient(adapted, delta, rows=None):
    task, rows = tasks.language_modeling(adapted), batch() if rows is None else rows

    def loss(delta):
        return task.loss(delta, adapted.backbone, rows, None)[0].mean()

    return jax.jit(jax.grad(loss))(delta)


def first_kernels(tree):
    """Gradients of what reads the first layer's inputs, by path."""
    return {
        jax.tree_util.keystr(path): np.asarray(leaf[0])
        for path, leaf in jax.tree.leaves_with_path(tree)
        if leaf.ndim == 3
        and leaf.shape[1] == WIDTH
        and any(name in jax.tree_util.keystr(path) for name in ("v_proj", "c_attn"))
    }


def in_span(columns, model):
    inputs = np.asarray(first_inputs(model, LENGTH))
    residuals = np.stack([span_residuals(columns, one) for one in inputs])
    return np.flatnonzero((residuals < 1e-2).any(axis=0)).tolist(), residuals


# Exact attacks on the first layer


@pytest.mark.parametrize(
    "make", [llama, pytest.param(gpt2, marks=pytest.mark.slow)], ids=["llama", "gpt2"]
)
def test_full_tuning_gives_every_token_that_is_read_away(make):
    model, _ = make()
    adapted = adapted_by(peft.full(), model)
    found = first_kernels(gradient(adapted, adapted.delta))
    tokens, residuals = in_span(np.concatenate(list(found.values()), axis=1), model)
    assert tokens == READ
    others = np.setdiff1d(np.arange(VOCABULARY), TEXT)
    assert residuals[:, others].min() > 0.1


@pytest.mark.slow
def test_positions_are_found_where_they_are_added_to_tokens():
    model, _ = gpt2()
    adapted = adapted_by(peft.full(), model)
    (columns,) = first_kernels(gradient(adapted, adapted.delta)).values()
    _, residuals = in_span(columns, model)
    assert residuals.argmin(axis=1)[: LENGTH - 1].tolist() == TEXT[:-1].tolist()


def test_lora_says_nothing_at_first_and_everything_of_short_texts_later():
    """dA is zero at B = 0. Its rank is at most r: of five tokens eight columns tell all,
    two columns none."""
    model, targets = llama()
    adapted = adapted_by(peft.lora(8, targets=targets), model)
    at_first = first_kernels(gradient(adapted, adapted.delta))
    assert at_first
    assert not any(np.any(one) for one in at_first.values())
    later = first_kernels(gradient(adapted, moved(adapted.delta)))
    tokens, _ = in_span(np.concatenate(list(later.values()), axis=1), model)
    assert tokens == READ
    narrow = adapted_by(peft.lora(2, targets=["v_proj"]), model)
    (columns,) = first_kernels(gradient(narrow, moved(narrow.delta))).values()
    assert in_span(columns, model)[0] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        lambda targets: peft.lora(8, targets=targets, freeze_a=True),
        lambda targets: peft.bitfit(),
        lambda targets: peft.prompt_tuning(4),
        lambda targets: peft.ia3(),
    ],
    ids=["ffa_lora", "bitfit", "prompt_tuning", "ia3"],
)
def test_these_methods_have_no_span_of_inputs(method):
    model, targets = gpt2()
    adapted = adapted_by(method(targets), model)
    found = gradient(adapted, moved(adapted.delta))
    assert first_kernels(found) == {}


def test_ffa_lora_gives_sketches_of_r_numbers():
    """dB = s (x A)^T d: its rows lie in the span of x_t A, of which x is not determined."""
    random = np.random.default_rng(0)
    x, d, a = (
        random.normal(size=(5, 24)),
        random.normal(size=(5, 7)),
        random.normal(size=(24, 4)),
    )
    of_b = (x @ a).T @ d
    assert of_b.shape == (4, 7)
    assert np.linalg.matrix_rank(a.T) == 4 < 24


def test_a_full_span_says_nothing():
    random = np.random.default_rng(0)
    everything = random.normal(size=(8, 8))
    assert span_residuals(everything, random.normal(size=(5, 8))).max() < 1e-6
    assert (span_residuals(np.zeros((8, 3)), random.normal(size=(5, 8))) == 1).all()


def test_the_inputs_of_the_first_layer_are_those_that_it_reads():
    """By the gradient of a kernel of one token: dW = x d^T."""
    model, _ = llama()
    adapted = adapted_by(peft.full(), model)
    found = gradient(adapted, adapted.delta, batch([3, 9]))
    (kernel,) = [v for k, v in first_kernels(found).items() if "v_proj" in k]
    x = np.asarray(first_inputs(model, 2))[0, 3]
    column = kernel[:, np.abs(kernel).sum(axis=0).argmax()]
    cosine = x @ column / np.linalg.norm(x) / np.linalg.norm(column)
    assert abs(cosine) == pytest.approx(1.0, abs=1e-5)


def test_the_label_of_one_example():
    logits, label = jnp.array([0.3, 2.0, -1.0]), 2

    def loss(bias):
        return optax.softmax_cross_entropy_with_integer_labels(logits + bias, label)

    assert label_of_gradient(jax.grad(loss)(jnp.zeros(3))) == label
    with pytest.raises(ValueError, match="one example's bias"):
        label_of_gradient([0.1, -0.2, -0.3])


# The search


def test_embeddings_in_the_place_of_tokens_give_the_same_gradient():
    model, targets = llama()
    adapted = adapted_by(peft.lora(4, targets=targets), model)
    delta = moved(adapted.delta)
    expected = gradient(adapted, delta)
    embedded = token_table(model)[TEXT]

    def of(loss, *more):
        return jax.grad(lambda d: loss(adapted, d, adapted.backbone, embedded, *more))(
            delta
        )

    for found in (of(hard_loss, jnp.asarray(TEXT)), of(soft_loss, 200.0)):
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_reads_no_tokens_is_refused():
    with pytest.raises(TypeError, match="a model that reads tokens, got a Linear"):
        with_embedded(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), jnp.zeros((2, 2)))
    config = models.T5Config(
        vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    other = models.T5ForConditionalGeneration(config, nnx.Rngs(0))
    with pytest.raises(TypeError, match="got a T5"):
        first_inputs(other, 3)


TABLE = np.random.default_rng(5).normal(size=(40, 6)).astype(np.float32)
KERNEL = np.random.default_rng(6).normal(size=(30, 16)).astype(np.float32) / 15
SHORT = np.array([7, 31, 2, 9, 19])


def of_network(kernel, embedded):
    hidden = jnp.tanh(embedded.reshape(-1) @ kernel)
    return jnp.sum(hidden**3 + hidden)


def gradient_of(embedded):
    return jax.grad(of_network)(KERNEL, embedded)


FAST = TextSearch(steps=600, starts=2, every=200, moves=20)


def test_the_search_reads_a_text_and_noise_hides_it():
    seen = gradient_of(TABLE[SHORT])
    found = search_text(gradient_of, seen, TABLE, 5, how=FAST)
    assert token_f1(found.tokens, SHORT) >= 0.8
    assert found.distance < 0.05
    noise = np.random.default_rng(7).normal(size=seen.shape)
    hidden = seen / jnp.linalg.norm(seen) + noise  # as DP-FedAvg with multiplier 1
    lost = search_text(gradient_of, hidden, TABLE, 5, how=FAST)
    assert token_f1(lost.tokens, SHORT) <= 0.4
    assert lost.distance > 0.3


def test_a_frozen_layer_says_nothing():
    zeros = jnp.zeros_like(KERNEL)
    found = search_text(
        lambda x: 0.0 * x.sum() * zeros, zeros, TABLE, 5, how=FAST._replace(steps=200)
    )
    assert token_f1(found.tokens, SHORT) <= 0.4


def test_a_prior_decides_where_the_gradient_says_nothing_of_the_order():
    def of_the_sum(embedded):
        return jnp.outer(embedded.sum(axis=0), jnp.arange(1.0, 4.0))

    def ascending(tokens):
        return float(np.mean(np.diff(tokens) > 0))

    table, text = np.eye(6, dtype=np.float32), np.array([4, 1, 3])
    how = TextSearch(steps=300, starts=1, every=100, moves=60, prior_weight=0.1)
    seen = of_the_sum(table[text])
    found = search_text(of_the_sum, seen, table, 3, how=how, prior=ascending)
    assert found.distance < 1e-3
    assert found.tokens.tolist() == [1, 3, 4]


def test_searches_that_make_no_sense_are_refused():
    for change, said in (
        ({"steps": 0}, "steps=0"),
        ({"distance": "l1"}, "'l1'"),
        ({"moves": -1}, "moves=-1"),
    ):
        with pytest.raises(ValueError, match=said):
            TextSearch(**change).checked()


# A planted leak

ROWS = {
    "input_ids": np.random.default_rng(3).integers(0, VOCABULARY, (4, 16), np.int32),
    "label": np.arange(4),
}


def loss(w, backbone, rows, key):
    hidden = w["table"][rows["input_ids"]].mean(axis=1) @ w["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(hidden, rows["label"]), {}


TASK = ffm.Task(loss)
START = {
    "table": jax.random.normal(jax.random.key(0), (VOCABULARY, 40)),
    "kernel": jax.random.normal(jax.random.key(1), (40, 4)),
}


def sent(algorithm, channel=None):
    sender = Sender(
        algorithm=algorithm, delta=START, backbone=(), rows=ROWS, setting=Setting(10, 5)
    )
    return upload_of(sender, channel, jax.random.key(2))


def honest():
    return ffm.fedavg(TASK, optax.sgd(0.1), local_steps=2, batch_size=4)


def leaking(algorithm):
    """Its clients write their batch into the upload, small and shifted."""
    (exchange,) = algorithm.exchanges

    def client(backbone, message):
        one_of_method = exchange.client(backbone, message)

        def one(mine, state, data, key):
            output: ClientOutput = one_of_method(mine, state, data, key)
            rows, _ = data.batch(0)
            hidden = 1e-3 * rows["input_ids"].ravel() - 0.01
            flat = (
                output.upload["table"].ravel().at[100 : 100 + len(hidden)].set(hidden)
            )
            table = flat.reshape(output.upload["table"].shape)
            return output._replace(upload={**output.upload, "table": table})

        return one

    return algorithm._replace(exchanges=(exchange._replace(client=client),))


def test_a_client_that_uploads_its_batch_is_found():
    finding = of_upload(sent(leaking(honest())), ROWS)
    assert finding.verdict == LEAKS
    assert finding.figure.value == 1.0  # all four examples
    assert "['table']" in finding.note


def test_an_honest_client_is_not_accused():
    assert of_upload(sent(honest()), ROWS).verdict == NOTHING
    found = copies_in_upload(START, ROWS, least=0.995)
    assert found == []


@pytest.mark.slow
def test_it_is_found_behind_a_channel_too():
    channel = ffm.channels.cast("bfloat16")
    assert of_upload(sent(leaking(honest()), channel), ROWS).verdict == LEAKS


def test_the_upload_is_that_of_the_engine():
    """One client, one step: the server's step back is what it has sent."""
    population = ffm.Population.from_clients([ROWS])
    method = ffm.fedavg(TASK, optax.sgd(0.1), local_steps=1, batch_size=4)
    simulator = ffm.Simulator(method, population, cohort_size=1, seed=0)
    state, _ = simulator.run(simulator.init(START), 1)
    for name, leaf in sent(method).items():
        np.testing.assert_allclose(leaf, START[name] - state.delta[name], atol=1e-6)


def test_short_and_constant_rows_are_passed_over():
    random = np.random.default_rng(0)
    upload = {"w": random.normal(size=300)}
    rows = {"x": np.ones((2, 40)), "y": random.normal(size=(2, 11))}
    upload["w"][20:31] = rows["y"][0]
    assert copies_in_upload(upload, rows) == []
    with pytest.raises(ValueError, match="length=8"):
        copies_in_upload(upload, rows, length=8)
