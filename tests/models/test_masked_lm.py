"""Masking by its expected rates; BERT for masked-language modelling against Hugging
Face; the two cuts.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm.models import BertConfig
from fedjax_fm.models.masked_lm import bert_split, mask_tokens, n_targets
from fedjax_fm.split import unsplit

MASK, FIRST, END = 4, 5, 60
CONFIG = BertConfig(
    vocab_size=END, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=24,
)  # fmt: skip


def rows(n, length, seed=0):
    """Words of a [CLS] row, padded on the right."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, length + 1, (n, 1))
    mask = (np.arange(length) < sizes).astype(np.int32)
    ids = rng.integers(FIRST, END, (n, length)).astype(np.int32)
    ids[:, 0] = 2
    return jnp.asarray(ids * mask), jnp.asarray(mask)


def test_number_of_targets():
    mask = np.arange(24) < np.array([0, 1, 3, 4, 10, 17, 24])[:, None]
    assert n_targets(mask).tolist() == [
        0,
        1,
        1,
        1,
        2,
        3,
        4,
    ]  # round half to even, as numpy does
    assert n_targets(mask, 1.0).tolist() == [0, 1, 3, 4, 10, 17, 24]


def test_masking_rates():
    """15 % of each row's words, exactly; 80/10/10 by a z-test; every place as likely;
    random words uniform.
    """
    ids, mask = rows(6000, 24)
    new, labels = jax.jit(
        lambda key: mask_tokens(ids, mask, key, mask_id=MASK, words=(FIRST, END))
    )(jax.random.key(0))
    ids, mask, new, labels = map(np.asarray, (ids, mask, new, labels))
    words = (mask == 1) & (ids >= FIRST)
    chosen = labels != -100
    np.testing.assert_array_equal(
        chosen.sum(1),
        np.clip(np.round(np.float32(0.15) * words.sum(1)), 1, words.sum(1)),
    )
    assert not (chosen & ~words).any()
    np.testing.assert_array_equal(labels[chosen], ids[chosen])
    np.testing.assert_array_equal(new[~chosen], ids[~chosen])
    n, m = chosen.sum(), END - FIRST
    same, masked = new[chosen] == ids[chosen], new[chosen] == MASK
    for share, p in (
        (masked, 0.8),
        (same, 0.1 + 0.1 / m),
        (~masked & ~same, 0.1 * (1 - 1 / m)),
    ):
        assert abs(share.mean() - p) < 4 * np.sqrt(p * (1 - p) / n)
    random = new[chosen][~masked & ~same]
    assert random.min() == FIRST
    assert random.max() == END - 1
    full = words.sum(1) == 23  # rows of the same length: 3 of 23 places
    places = chosen[full][:, 1:].mean(0)
    assert np.abs(places - 3 / 23).max() < 4.5 * np.sqrt(3 / 23 / full.sum())


def test_keys_decide_the_masks():
    ids, mask = rows(50, 24)

    def draw(k):
        return np.asarray(
            mask_tokens(ids, mask, jax.random.key(k), mask_id=MASK, words=(FIRST, END))[
                1
            ]
        )

    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any()


@pytest.fixture(scope="module")
def model():
    split, delta = bert_split(CONFIG, 24, mask_id=MASK, words=(FIRST, END))
    batch = dict(zip(("input_ids", "attention_mask"), rows(7, 24, seed=1), strict=True))
    rng = np.random.default_rng(0)  # biases and norms off their neutral initial values
    delta = jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(0, 0.05, x.shape), x.dtype), delta
    )
    return split, delta, batch, jax.random.key(3)


def test_losses_are_hugging_face_s(model):
    """Logits of all places by torch from the same weights, cross entropy of the chosen ones."""
    torch, transformers = (
        pytest.importorskip("torch"),
        pytest.importorskip("transformers"),
    )
    split, delta, batch, key = model
    theirs = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=END,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=24,
        )
    ).eval()
    state = theirs.state_dict()
    load_state(state, delta, torch)
    theirs.load_state_dict(state)
    ids, labels = mask_tokens(
        batch["input_ids"],
        batch["attention_mask"],
        key,
        mask_id=MASK,
        words=(FIRST, END),
    )

    def tensor(x):
        return torch.tensor(np.asarray(x)).long()

    with torch.no_grad():
        logits = theirs(
            tensor(ids), attention_mask=tensor(batch["attention_mask"])
        ).logits
    each = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), tensor(labels), reduction="none"
    ).numpy()
    chosen = np.asarray(labels) != -100
    losses, metrics = jax.jit(unsplit(split).loss)(delta, (), batch, key)
    np.testing.assert_allclose(losses, each.sum(1) / chosen.sum(1), rtol=2e-5)
    right = (logits.argmax(-1).numpy() == np.asarray(labels)).sum(1) / chosen.sum(1)
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)
    np.testing.assert_array_equal(split.weight(batch), chosen.sum(1))


def load_state(state, delta, torch):
    """Our two trees into torch's dict, name by name; every tensor of the model must be met."""
    words = {
        "kernel": "weight",
        "embedding": "weight",
        "scale": "weight",
        "bias": "bias",
    }
    head = {
        "dense": "cls.predictions.transform.dense",
        "LayerNorm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions",
    }
    met = set()

    def put(name, value, transposed):
        value = torch.tensor(
            np.asarray(value).T.copy() if transposed else np.asarray(value)
        )
        assert state[name].shape == value.shape, name
        state[name] = value
        met.add(name)

    for part, tree in delta.items():
        for path, leaf in nnx.to_flat_state(tree):
            *modules, last = map(str, path)
            value = leaf[...]
            if part == "server":
                for i in range(CONFIG.num_hidden_layers):
                    name = ".".join(
                        ["bert.encoder.layer", str(i), *modules[1:], words[last]]
                    )
                    put(name, value[i], last == "kernel")
            elif modules[:1] == ["embeddings"]:
                put(".".join(["bert", *modules, words[last]]), value, False)
            else:
                put(
                    f"{head[modules[0] if modules else last]}.{words[last]}",
                    value,
                    last == "kernel",
                )
    state["cls.predictions.decoder.weight"] = state[
        "bert.embeddings.word_embeddings.weight"
    ]
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    met |= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert {name for name in state if "position_ids" not in name} == met


def test_the_cuts_are_where_they_say(model):
    split, delta, batch, key = model
    activations, context = split.embed(delta["client"], batch, key)
    assert jax.tree.map(lambda s: (7, *s.shape), split.sent) == ((7, 24, 16), (7, 24))
    assert (activations.shape, activations.dtype, context.dtype) == (
        (7, 24, 16),
        jnp.float32,
        bool,
    )
    np.testing.assert_array_equal(context, batch["attention_mask"] == 1)
    features = split.body(delta["server"], activations, context)
    assert features.shape == activations.shape
    tables = [
        path
        for path, _ in nnx.to_flat_state(delta["server"])
        if "embedding" in map(str, path)
    ]
    assert not tables
    # Padding is not seen: other words there change nothing.
    other = jnp.where(context[..., None], activations, 7.0)
    shown = np.asarray(context)
    np.testing.assert_allclose(
        np.asarray(split.body(delta["server"], other, context))[shown],
        np.asarray(features)[shown],
        atol=1e-6,
    )


def test_gradients_at_the_cuts_join_to_the_whole_gradient(model):
    """By hand: head, body and embedding one after the other, the tied table's two shares added."""
    split, delta, batch, key = model

    def loss(delta):
        return jnp.sum(unsplit(split).loss(delta, (), batch, key)[0])

    expected = jax.jit(jax.grad(loss))(delta)

    @jax.jit
    def by_parts(delta):
        activations, pull_embed, context = jax.vjp(
            lambda c: split.embed(c, batch, key), delta["client"], has_aux=True
        )
        features, pull_body = jax.vjp(
            lambda s, a: split.body(s, a, context), delta["server"], activations
        )
        at_head, at_features = jax.grad(
            lambda c, z: jnp.sum(split.head(c, z, batch, key)[0]), argnums=(0, 1)
        )(delta["client"], features)
        server, at_activations = pull_body(at_features)
        (at_embed,) = pull_embed(at_activations)
        return {"client": jax.tree.map(jnp.add, at_head, at_embed), "server": server}

    found = by_parts(delta)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )


def test_impossible_lengths_are_refused():
    with pytest.raises(ValueError, match="length=25"):
        bert_split(CONFIG, 25, mask_id=MASK, words=(FIRST, END))


def test_causal_encoders_are_refused():
    with pytest.raises(
        ValueError, match=r"expected an encoder .*, got is_decoder=True"
    ):
        bert_split(
            dataclasses.replace(CONFIG, is_decoder=True),
            24,
            mask_id=MASK,
            words=(FIRST, END),
        )
