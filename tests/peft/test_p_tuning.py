"""P-tuning's encoder against PEFT's, its collapse, and a folder that PEFT opens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import peft, trees
from fedjax_fm.peft.prompt import Prompt

P, D, H = 3, 8, 5


def prompt_of(model, **how):
    adapted = peft.apply(model, peft.p_tuning(P, hidden=H, **how), jax.random.key(3))
    return adapted, adapted.model().model.prompt


def torch_encoder(prompt, kind, layers):
    """PEFT's encoder with our weights."""
    torch = pytest.importorskip("torch")
    encoders = pytest.importorskip("peft")
    config = encoders.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=P,
        token_dim=D,
        num_transformer_submodules=1,
        encoder_reparameterization_type=kind.upper(),
        encoder_hidden_size=H,
        encoder_num_layers=layers,
    )
    encoder = encoders.PromptEncoder(config).eval()
    own = {"embedding.weight": prompt.tokens[...]}
    for number, layer in enumerate(prompt.dense):
        own[f"mlp_head.{2 * number}.weight"] = layer.kernel[...].T
        own[f"mlp_head.{2 * number}.bias"] = layer.bias[...]
    for end, parts in (("", prompt.forward), ("_reverse", prompt.backward)):
        for number, layer in enumerate(parts):
            at = f"l{number}{end}"
            own[f"lstm_head.weight_ih_{at}"] = layer.kernel[...].T
            own[f"lstm_head.weight_hh_{at}"] = layer.hidden_kernel[...].T
            own[f"lstm_head.bias_ih_{at}"] = layer.bias[...]
            own[f"lstm_head.bias_hh_{at}"] = jnp.zeros_like(layer.bias[...])
    state = {name: torch.tensor(np.array(x)) for name, x in own.items()}
    encoder.load_state_dict(state, strict=True)
    return encoder


@pytest.mark.parametrize(
    ("kind", "layers"), [("lstm", 1), ("lstm", 2), ("lstm", 3), ("mlp", 2)]
)
def test_the_encoder_is_that_of_peft_on_the_same_weights(llama, kind, layers):
    _, prompt = prompt_of(llama, encoder=kind, layers=layers)
    encoder = torch_encoder(prompt, kind, layers)
    torch = pytest.importorskip("torch")
    expected = encoder(torch.arange(P)[None])[0].detach().numpy()
    np.testing.assert_allclose(prompt(), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_gradients_are_those_of_peft(llama, kind):
    adapted, prompt = prompt_of(llama, encoder=kind)
    encoder = torch_encoder(prompt, kind, 2)
    torch = pytest.importorskip("torch")
    direction = np.random.default_rng(0).normal(size=(P, D)).astype(np.float32)
    out = encoder(torch.arange(P)[None])[0]
    (out * torch.tensor(direction)).sum().backward()

    def along(delta):
        prompt = nnx.merge(adapted.graphdef, delta, adapted.backbone).model.prompt
        return jnp.sum(prompt() * direction)

    slope = nnx.to_pure_dict(jax.grad(along)(adapted.delta))["model"]["prompt"]
    last, hidden = encoder.mlp_head[-1], encoder.mlp_head[0]
    for ours, theirs in (
        (slope["tokens"], encoder.embedding.weight.grad),
        (slope["dense"][0]["kernel"].T, hidden.weight.grad),
        (slope["dense"][len(prompt.dense) - 1]["bias"], last.bias.grad),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("lstm", P * D + 2 * (4 * H * (D + H + 1) + 4 * H * (3 * H + 1)) + 2 * H * (2 * H + 1) + D * (2 * H + 1)),
        ("mlp", P * D + H * (D + 1) + H * (H + 1) + D * (H + 1)),
    ],
)  # fmt: skip
def test_how_many_numbers_are_trained(llama, kind, count):
    adapted, _ = prompt_of(llama, encoder=kind)
    assert trees.size(adapted.delta) == count


@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_collapsed_it_is_a_prompt_that_computes_the_same(llama, kind):
    adapted, prompt = prompt_of(llama, encoder=kind)
    ids = jnp.array([[3, 9, 4, 7, 1, 2]])
    whole = adapted.model()
    flat = peft.collapse(whole)
    assert isinstance(flat.model.prompt, Prompt)
    np.testing.assert_array_equal(flat.model.prompt.embedding[...], prompt())
    np.testing.assert_allclose(flat(ids), whole(ids), atol=1e-6)
    plain = peft.apply(llama, peft.prompt_tuning(P)).model()
    plain.model.prompt.embedding[...] = prompt()
    np.testing.assert_allclose(plain(ids), whole(ids), atol=1e-6)


def test_no_tokens_leave_the_head(bert):
    adapted = peft.apply(bert, peft.p_tuning(0))
    assert set(nnx.to_pure_dict(adapted.delta)) == {"classifier"}


def test_a_saved_folder_holds_the_prompt_that_it_computes(llama, tmp_path):
    adapted, prompt = prompt_of(llama)
    peft.save_pretrained(tmp_path, *adapted)
    opened = peft.load_pretrained(tmp_path, llama)
    found = nnx.to_pure_dict(opened.delta)["model"]["prompt"]["embedding"]
    np.testing.assert_array_equal(found, prompt())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"encoder": "gru"}, "'gru'"),
        ({"hidden": 0}, "hidden=0"),
        ({"layers": 0}, "layers=0"),
    ],
)
def test_refusals(how, words):
    with pytest.raises(ValueError, match=words):
        peft.p_tuning(P, **how)
