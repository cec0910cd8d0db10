"""Prompts and prefixes in T5 and CLIP, and heads of every name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_models as reference
from flax import nnx

from fedjax_fm import models, peft
from fedjax_fm.models.families import from_config
from fedjax_fm.models.t5_layers import T5Attention
from fedjax_fm.peft.prefix import Prefix

FIRST = [11, 12, 13]
IDS = np.array([[3, 9, 4, 7, 1, 2], [5, 8, 8, 2, 6, 3]])
REAL = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
TARGETS = np.array([[0, 4, 9, 2], [0, 7, 7, 1]])
WIDTH = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
FIELDS = {
    "t5": dict(
        vocab_size=31,
        d_model=8,
        d_kv=4,
        d_ff=12,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=2,
    ),
    "clip": dict(
        text_config={
            **WIDTH,
            "vocab_size": 31,
            "max_position_embeddings": 16,
            "eos_token_id": 30,
        },
        vision_config={**WIDTH, "image_size": 8, "patch_size": 4},
        projection_dim=6,
    ),
    "distilbert": dict(
        vocab_size=31,
        dim=8,
        n_layers=2,
        n_heads=2,
        hidden_dim=12,
        max_position_embeddings=16,
    ),
    "roberta": dict(vocab_size=31, **WIDTH, max_position_embeddings=16),
}


def random_model(family, num_labels=None):
    fields = {"model_type": family, **FIELDS[family]}
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: from_config(fields, num_labels=num_labels))
    )
    rng = np.random.default_rng(0)

    def draw(path, v):
        return v.replace(
            jnp.asarray((path[-1] == "scale") + 0.3 * rng.normal(size=v.shape), v.dtype)
        )

    return nnx.merge(
        graphdef,
        nnx.from_flat_state(
            [(path, draw(path, v)) for path, v in nnx.to_flat_state(state)]
        ),
    )


@pytest.fixture(scope="module")
def t5():
    return random_model("t5")


@pytest.fixture(scope="module")
def clip():
    return random_model("clip")


def adapt(model, method):
    return nnx.merge(*peft.apply(model, method))


def with_first(row, real):
    return np.concatenate([FIRST, row[real > 0]])[None]


def test_a_prompt_of_real_tokens_equals_them_as_text_before_t5(t5):
    found = reference.quick_jit(adapt(t5, peft.prompt_tuning(3, init_ids=FIRST)))(
        IDS, REAL, TARGETS
    )
    assert found.shape == (2, 4, 31)
    for row in range(2):
        expected = reference.quick_jit(t5)(
            with_first(IDS[row], REAL[row]), None, TARGETS[row : row + 1]
        )
        np.testing.assert_allclose(found[row], expected[0], atol=1e-5)


def test_a_prefix_in_t5s_attention_has_no_distance(t5):
    """Scores are q k + bias for tokens and q k alone for the prefix, unscaled."""
    layer = T5Attention(t5.config, nnx.Rngs(0), jnp.float32)

    def draw(*shape):
        return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)

    hidden, bias, mask = (
        draw(2, 5, 8),
        draw(1, 2, 5, 5),
        np.tril(np.ones((1, 1, 5, 5), bool)),
    )
    keys, values = map(np.asarray, layer.project(jnp.asarray(hidden)))
    layer.prefix = Prefix(jnp.asarray(draw(3, 2, 4)), jnp.asarray(draw(3, 2, 4) + 1))
    found = layer(hidden, keys, values, bias, mask)
    more = [
        np.concatenate([np.broadcast_to(new, (2, 3, 2, 4)), old], 1)
        for new, old in zip(layer.prefix(), (keys, values), strict=True)
    ]
    query = np.asarray(layer.q(hidden)).reshape(2, 5, 2, 4)
    scores = np.einsum("bthd,bshd->bhts", query, more[0])
    scores[..., 3:] = np.where(mask, scores[..., 3:] + bias, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum(
        "bhts,bshd->bthd", shares / shares.sum(-1, keepdims=True), more[1]
    )
    np.testing.assert_allclose(found, layer.o(mixed.reshape(2, 5, 8)), atol=1e-5)


@pytest.mark.parametrize(
    "method", [peft.prefix_tuning(3), peft.prefix_tuning(3, hidden=4)]
)
def test_t5_learns_every_virtual_token_and_generates_by_them(t5, method):
    graphdef, delta, backbone = peft.apply(t5, method)

    def forward(delta, targets):
        return nnx.merge(graphdef, delta, backbone)(IDS, REAL, targets)

    gradient = reference.quick_jit(
        jax.grad(lambda delta: jnp.sin(forward(delta, TARGETS)).sum())
    )(delta)
    for path, leaf in nnx.to_flat_state(gradient):
        assert np.abs(leaf[...]).max() > 1e-6, path
    places = {
        ".".join(map(str, path)).partition(".layer.")[0]
        for path, _ in nnx.to_flat_state(delta)
    }
    if method.name == "prefix":
        assert places == {"encoder.block", "decoder.block"}
        assert (
            len(jax.tree.leaves(delta)) == 6
        )  # keys and values of the encoder, the decoder and between them
    adapted = nnx.merge(graphdef, delta, backbone)
    answer = reference.quick_jit(
        lambda: models.generate(
            adapted.next_logits,
            *adapted.start(jnp.asarray(IDS), jnp.asarray(REAL), 4),
            max_new_tokens=4,
        )
    )().tokens
    read = np.concatenate([np.zeros((2, 1), int), answer[:, :-1]], axis=1)
    np.testing.assert_array_equal(
        answer, np.asarray(reference.quick_jit(forward)(delta, read)).argmax(-1)
    )


def test_a_prompt_of_real_tokens_equals_them_as_text_before_clips_text(clip):
    found = adapt(clip, peft.prompt_tuning(3, init_ids=FIRST)).text_model(IDS, REAL)
    for row in range(2):
        n_real = REAL[row].sum()
        expected = clip.text_model(with_first(IDS[row], REAL[row]))[0, 3:]
        np.testing.assert_allclose(found[row, :n_real], expected, atol=1e-5)


def test_a_prefix_of_real_tokens_equals_them_as_text_before_clips_text(clip):
    """The tower is causal: keys and values of the first tokens do not depend on what follows."""
    adapted = adapt(clip, peft.prefix_tuning(3, at="text_model"))
    hidden, _ = clip.text_model.embeddings(np.array([FIRST]))
    graphdef, state = nnx.split(clip.text_model.encoder.layers)
    keys, values = [], []
    for number in range(2):
        layer = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[number], state))  # noqa: B023
        normed = layer.layer_norm1(hidden)
        keys.append(layer.self_attn.k_proj(normed).reshape(3, 2, 4))
        values.append(layer.self_attn.v_proj(normed).reshape(3, 2, 4))
        hidden = layer(hidden, jnp.tril(jnp.ones((1, 1, 3, 3), bool)))
    adapted.text_model.encoder.layers.self_attn.prefix = Prefix(
        jnp.stack(keys), jnp.stack(values)
    )
    found = adapted.text_model(IDS)
    expected = clip.text_model(
        np.concatenate([np.broadcast_to(FIRST, (2, 3)), IDS], axis=1)
    )[:, 3:]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_prefix_in_one_tower_leaves_the_other_alone(clip):
    pixels = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    for at, changed in (
        ("vision_model", "image"),
        ("text_model", "text"),
        (None, "both"),
    ):
        adapted = adapt(clip, peft.prefix_tuning(3, at=at, std=1.0))
        same_text = np.array_equal(adapted.text_features(IDS), clip.text_features(IDS))
        same_image = np.array_equal(
            adapted.image_features(pixels), clip.image_features(pixels)
        )
        assert (same_text, same_image) == (changed == "image", changed == "text")


@pytest.mark.parametrize(
    ("family", "size"),
    [
        ("distilbert", 8 * 8 + 8 + 8 * 2 + 2),
        ("t5", 8 * 8 + 8 + 8 * 2 + 2),
        ("roberta", 8 * 8 + 8 + 8 * 2 + 2),
    ],
)
def test_the_whole_head_is_trained_and_adapters_stay_out_of_it(family, size):
    model = random_model(family, num_labels=2)
    names = ("classifier", "pre_classifier", "classification_head")
    queries = {"distilbert": "q_lin", "t5": "q", "roberta": "query"}
    for method in (
        peft.head(),
        peft.lora(2, targets=[queries[family]]),
        peft.houlsby(2, norms=False),
    ):
        _, delta, _ = peft.apply(model, method)
        inside = [leaf for path, leaf in nnx.to_flat_state(delta) if path[0] in names]
        assert sum(leaf.size for leaf in inside) == size
