"""A prefix slides out of a window: logits of PEFT for texts longer than it."""

import warnings

import jax
import numpy as np
import pytest

from fedjax_fm import models, peft

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
hf_peft = pytest.importorskip("peft")

IDS = np.random.default_rng(0).integers(0, 31, (2, 12))
BASE = dict(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, attn_implementation="eager",
)  # fmt: skip
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    "mistral": ("Mistral", "MistralConfig", {"sliding_window": 4}),
    "qwen2": (
        "Qwen2",
        "Qwen2Config",
        {"sliding_window": 4, "use_sliding_window": True, "layer_types": MIXED},
    ),
    "gemma3": (
        "Gemma3",
        "Gemma3TextConfig",
        {"sliding_window": 4, "head_dim": 6, "layer_types": MIXED},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """(transformers' model anew, ours) of one family."""
    kind, config, fields = FAMILIES[request.param]
    make = getattr(transformers, f"{kind}ForCausalLM")
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = make(getattr(transformers, config)(**BASE, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)

    def again():
        return make.from_pretrained(folder, attn_implementation="eager").eval()

    return again, models.from_pretrained(folder)


def moved(model, n_tokens):
    adapted = peft.apply(model, peft.prefix_tuning(n_tokens), jax.random.key(0))
    leaves, structure = jax.tree.flatten(adapted.delta)
    random = np.random.default_rng(1)
    shifted = [leaf + random.normal(0, 1, leaf.shape).astype("f") for leaf in leaves]
    return adapted, structure.unflatten(shifted)


@pytest.mark.parametrize("n_tokens", [1, 3, 4, 6])
def test_logits_are_those_of_peft(pair, n_tokens, tmp_path):
    again, model = pair
    adapted, delta = moved(model, n_tokens)
    adapted.save_pretrained(tmp_path / "adapter", delta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = hf_peft.PeftModel.from_pretrained(again(), tmp_path / "adapter").eval()
        with torch.no_grad():
            mask = torch.ones(IDS.shape, dtype=torch.long)
            expected = theirs(torch.tensor(IDS), attention_mask=mask).logits.numpy()
    ours = np.asarray(adapted.model(delta)(IDS.astype(np.int32)))
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    without = np.asarray(model(IDS.astype(np.int32)))
    assert np.abs(ours - without).max() > 1e-2


def test_a_token_beyond_the_window_sees_no_prefix_in_one_layer(tmp_path):
    config = transformers.MistralConfig(
        **{**BASE, "num_hidden_layers": 1}, sliding_window=4
    )
    torch.manual_seed(0)
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path)
    model = models.from_pretrained(tmp_path)
    adapted, delta = moved(model, 3)
    ids = IDS.astype(np.int32)
    ours, plain = (np.asarray(one(ids)) for one in (adapted.model(delta), model))
    # Token i (from 1) sees the prefix while i < 4. Rotations are relative, so that
    # numbering from 3 on changes nothing else.
    np.testing.assert_allclose(ours[:, 3:], plain[:, 3:], atol=1e-5)
    assert (np.abs(ours[:, :3] - plain[:, :3]).max(axis=(0, 2)) > 1e-3).all()


def test_generation_reads_what_the_whole_text_reads(pair):
    _, model = pair
    adapted, delta = moved(model, 3)
    adapted_model = adapted.model(delta)
    prompts = [IDS[0, :7].tolist(), IDS[1, :2].tolist()]
    made = models.generate(adapted_model, prompts, max_new_tokens=5)
    for prompt, new in zip(prompts, np.asarray(made.tokens), strict=True):
        text = list(prompt)
        for token in new:
            logits = adapted_model(np.array([text], np.int32))
            assert int(logits[0, -1].argmax()) == token
            text.append(int(token))
