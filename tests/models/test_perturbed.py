"""Forward passes at w + c z that draw z where a parameter is read: the same numbers,
and no second model in memory.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models
from fedjax_fm.algorithms.fedkseed import fedkseed
from fedjax_fm.directions import perturb, shift
from fedjax_fm.models import BertConfig, BertForSequenceClassification, perturbed
from fedjax_fm.models.perturbed import RowEmbed, read_by_rows
from fedjax_fm.trees import nbytes
from fedjax_fm.types import ClientData

KEY, SCALE = jax.random.key(3), 0.01
IDS = np.random.default_rng(0).integers(5, 500, (3, 12)).astype(np.int32)
MASK = (np.arange(12) < np.array([[12], [7], [1]])).astype(np.int32)


def test_an_encoder_reads_the_shifted_parameters(tiny_bert):
    """Of the copy that reads by rows and of the model as it came: names and values are the same."""
    model = models.from_pretrained(tiny_bert, num_labels=3, pooling="mean")
    graphdef, delta = nnx.split(read_by_rows(model))
    as_it_came, same = nnx.split(model)
    assert ffm.trees.difference(same, delta) is None

    @jax.jit
    def logits(delta, key):
        def of(graphdef, delta):
            return nnx.merge(graphdef, delta)(IDS, MASK)

        lazily = perturb(delta, key, SCALE)
        return (
            of(as_it_came, shift(delta, key, SCALE)),
            of(graphdef, lazily),
            of(as_it_came, lazily),
            of(graphdef, delta),
        )

    expected, rows, whole, unmoved = logits(delta, KEY)
    np.testing.assert_allclose(rows, expected, atol=2e-6)
    np.testing.assert_allclose(whole, expected, atol=2e-6)
    np.testing.assert_allclose(unmoved, model(IDS, MASK), atol=2e-6)
    assert np.abs(expected - unmoved).max() > 1e-2


def test_a_decoder_and_its_tied_head_likewise(tiny_llama, monkeypatch):
    """The head draws 30 rows of the vocabulary at a time, the last block being smaller."""
    model = models.from_pretrained(tiny_llama)
    graphdef, delta = nnx.split(read_by_rows(model))

    def embed(delta):
        return nnx.merge(graphdef, delta).model.embed_tokens

    n, width = embed(delta).embedding.shape
    monkeypatch.setattr(perturbed, "BLOCK", 30 * width + 1)
    assert n % 30

    @jax.jit
    def logits(delta, key):
        def of(delta):
            model = nnx.merge(graphdef, delta)
            return model.model.embed_tokens.attend(model.hidden(IDS, MASK))

        return (
            nnx.merge(graphdef, shift(delta, key, SCALE))(IDS, MASK),
            of(perturb(delta, key, SCALE)),
            of(delta),
        )

    expected, found, unmoved = logits(delta, KEY)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(unmoved, model(IDS, MASK), atol=1e-5)
    assert np.abs(expected - unmoved).max() > 1e-2


def test_an_id_past_the_end_is_nan_as_in_flax():
    embed = nnx.Embed(7, 4, rngs=nnx.Rngs(0))
    ids = jnp.array([0, 6, 7])
    np.testing.assert_array_equal(RowEmbed(embed.embedding)(ids), embed(ids))
    assert np.isnan(embed(ids)[2]).all()


@pytest.fixture(scope="module")
def large():
    """(graphdef, delta, loss) of an encoder of 6 layers, d = 128, with an embedding of
    the same size as the layers.
    """
    config = BertConfig(
        9000,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
    )
    graphdef, delta = nnx.split(
        read_by_rows(BertForSequenceClassification(config, 2, "mean", nnx.Rngs(0)))
    )

    def loss(delta, backbone, batch, key):
        logits = nnx.merge(graphdef, delta)(batch["ids"])
        return -jax.nn.log_softmax(logits)[:, 0], {}

    return delta, loss


def temporary(f, *arguments) -> int:
    """Bytes that the compiled program needs beside its arguments and its result."""
    return jax.jit(f).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_no_perturbed_copy_exists(large):
    delta, loss = large
    model, layer = nbytes(delta), nbytes(delta["bert"]["encoder"]) / 6

    def mean(delta):
        return jnp.mean(loss(delta, (), {"ids": IDS}, None)[0])

    forward = temporary(mean, delta)
    lazily = temporary(
        lambda delta, key, scale: mean(perturb(delta, key, scale)), delta, KEY, SCALE
    )
    copied = temporary(
        lambda delta, key, scale: mean(shift(delta, key, scale)), delta, KEY, SCALE
    )
    assert forward < model / 4
    assert lazily < forward + 1.1 * layer
    assert copied > forward + 3 * layer


def test_a_client_at_work_holds_its_own_model_and_one_forward_pass(large):
    delta, loss = large
    model, batch = nbytes(delta), {"ids": jnp.asarray(IDS)}

    def step(lazy):
        algorithm = fedkseed(
            ffm.Task(loss), 1e-3, n_seeds=64, local_steps=2, batch_size=3, lazy=lazy
        )
        (exchange,) = algorithm.exchanges

        def work(delta, key):
            master = jnp.zeros(2, jnp.uint32)
            message = {"delta": delta, "master": master, "accumulators": jnp.zeros(64)}
            mask = jnp.ones(3, bool)
            data = ClientData(
                *(jnp.int32(i) for i in (0, 0, 3, 2)),
                lambda i: (batch, mask),
                jnp.int32(0),
            )
            return exchange.client((), message)(message, (), data, key).upload

        return jax.jit(work).lower(delta, KEY).compile()

    lazy, dense = step(True), step(False)
    forward = temporary(lambda delta: jnp.mean(loss(delta, (), batch, None)[0]), delta)

    def needs(program):
        return program.memory_analysis().temp_size_in_bytes

    layer = nbytes(delta["bert"]["encoder"]) / 6
    assert needs(lazy) < model + forward + 1.1 * layer
    assert needs(dense) > model + forward + 3 * layer
    sent, expected = lazy(delta, KEY), dense(delta, KEY)
    np.testing.assert_array_equal(sent["seed"], expected["seed"])
    np.testing.assert_allclose(
        sent["scalar"], expected["scalar"], atol=5e-3
    )  # (f - f) / 1e-3, f rounded to 1e-7
    assert np.abs(expected["scalar"]).min() > 0.05
