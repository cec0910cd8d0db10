"""Visual prompts: how many tokens a layer sees, what of them has an effect, and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import peft, trees
from fedjax_fm.models.vit import ViTConfig, ViTForImageClassification
from fedjax_fm.peft.vpt import VisualPrompt

N, D, LAYERS, P, LABELS = 4, 8, 3, 5, 2


@pytest.fixture(scope="module")
def vit():
    """3 layers, d = 8, 4 patches."""
    config = ViTConfig(
        hidden_size=D,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=8,
        patch_size=4,
    )
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: ViTForImageClassification(config, LABELS, nnx.Rngs(0)))
    )
    rng = np.random.default_rng(0)

    def draw(path, v):
        return jnp.asarray(
            float(path[-1] == "scale") + 0.3 * rng.normal(size=v.shape), v.dtype
        )

    return nnx.merge(
        graphdef,
        nnx.from_flat_state(
            [(p, v.replace(draw(p, v))) for p, v in nnx.to_flat_state(state)]
        ),
    )


@pytest.fixture(scope="module")
def pixels():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 8, 8)), jnp.float32)


def embedded(vit, pixels):
    """Hidden states before the first layer, [B, 1 + N, d]."""
    return vit.vit.embeddings(pixels)


def layer(vit, number):
    """One layer by itself."""
    graphdef, state = nnx.split(vit.vit.encoder.layer)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[number], state))


def with_prompts(hidden, prompts):
    shown = jnp.broadcast_to(prompts, (hidden.shape[0], *prompts.shape))
    return jnp.concatenate([hidden[:, :1], shown, hidden[:, 1:]], axis=1)


def finish(vit, hidden):
    return vit.classifier(vit.vit.layernorm(hidden)[:, 0])


@pytest.mark.parametrize(
    ("mode", "count"), [("shallow", P * D), ("deep", LAYERS * P * D)]
)
def test_counts_and_where_prompts_start(vit, mode, count):
    _, delta, backbone = peft.apply(vit, peft.vpt(P, mode))
    assert trees.size(delta) == count + D * LABELS + LABELS
    assert trees.size(backbone) == trees.size(nnx.state(vit)) - D * LABELS - LABELS
    (prompt,) = (
        leaf[...] for path, leaf in nnx.to_flat_state(delta) if path[-1] == "prompt"
    )
    bound = np.sqrt(6 / (3 * 4 * 4 + D))
    assert 0.8 * bound < np.abs(prompt).max() <= bound


def test_no_prompts_are_linear_probing(vit, pixels):
    for mode in ("shallow", "deep"):
        graphdef, delta, backbone = peft.apply(vit, peft.vpt(0, mode))
        assert [path[-1] for path, _ in nnx.to_flat_state(delta)] == ["bias", "kernel"]
        np.testing.assert_array_equal(
            nnx.merge(graphdef, delta, backbone)(pixels), vit(pixels)
        )


def test_shallow_prompts_go_through_all_layers(vit, pixels, run):
    graphdef, delta, backbone = peft.apply(vit, peft.vpt(P, "shallow"))
    prompt = nnx.merge(graphdef, delta, backbone).vit.encoder.prompt[...]
    hidden = with_prompts(embedded(vit, pixels), prompt)
    for number in range(LAYERS):
        hidden = layer(vit, number)(hidden)
    assert hidden.shape == (2, 1 + N + P, D)
    np.testing.assert_allclose(
        run((graphdef, delta, backbone), pixels), finish(vit, hidden), atol=1e-5
    )


@pytest.mark.parametrize("noise", [0.0, 10.0])
def test_deep_prompts_are_new_in_every_layer_and_what_became_of_the_old_has_no_effect(
    vit, pixels, run, noise
):
    graphdef, delta, backbone = peft.apply(vit, peft.vpt(P, "deep"))
    prompts = nnx.merge(graphdef, delta, backbone).vit.encoder.layer.prompt[...]
    hidden = embedded(vit, pixels)
    for number in range(LAYERS):
        out = layer(vit, number)(with_prompts(hidden, prompts[number]))
        assert out.shape == (2, 1 + N + P, D)
        out = out.at[:, 1 : 1 + P].add(noise)
        hidden = jnp.concatenate([out[:, :1], out[:, 1 + P :]], axis=1)
    np.testing.assert_allclose(
        run((graphdef, delta, backbone), pixels), finish(vit, hidden), atol=1e-5
    )


@pytest.mark.parametrize("mode", ["shallow", "deep"])
def test_every_layer_sees_one_and_n_and_p_tokens(vit, pixels, mode, monkeypatch):
    seen = []
    kind = type(layer(vit, 0))
    plain = kind.__call__
    monkeypatch.setattr(
        kind,
        "__call__",
        lambda self, hidden: seen.append(hidden.shape[1]) or plain(self, hidden),
    )
    out = nnx.merge(*peft.apply(vit, peft.vpt(P, mode)))(pixels)
    assert set(seen) == {1 + N + P}
    assert out.shape == (2, LABELS)


def test_prompts_have_dropout_with_a_key_only(vit, pixels):
    graphdef, delta, backbone = peft.apply(vit, peft.vpt(P, "deep", dropout=0.5))
    forward = jax.jit(lambda key: nnx.merge(graphdef, delta, backbone)(pixels, key=key))
    a, b, again = (np.asarray(forward(jax.random.key(i))) for i in (0, 1, 0))
    np.testing.assert_array_equal(a, again)
    assert np.abs(a - b).max() > 1e-4
    plain, *_ = peft.apply(vit, peft.vpt(P, "deep", dropout=0.0))
    expected = nnx.merge(plain, delta, backbone)(pixels, key=jax.random.key(0))
    np.testing.assert_array_equal(
        nnx.merge(graphdef, delta, backbone)(pixels), expected
    )


def test_what_cannot_have_visual_prompts(vit, llama, bert):
    with pytest.raises(
        ValueError, match=r"model.layers reads text \(LlamaModel\); use prompt_tuning"
    ):
        peft.apply(llama, peft.vpt(2, "deep"))
    for mode in ("deep", "shallow"):
        with pytest.raises(
            ValueError, match=r"bert.encoder.layer reads text \(BertModel\)"
        ):
            peft.apply(bert, peft.vpt(2, mode))
    with pytest.raises(ValueError, match="is given a mask"):
        VisualPrompt(lambda hidden, mask: hidden, jnp.zeros((2, D)), 0.0, None)(
            jnp.zeros((1, 3, D)), jnp.ones((1, 3))
        )
    with pytest.raises(
        ValueError, match=r"one stack of layers inside an encoder, got \[\]"
    ):
        peft.apply(vit, peft.vpt(2, at="text"))
