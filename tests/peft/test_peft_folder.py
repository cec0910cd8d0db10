"""Adapters to and from Hugging Face PEFT: equal logits on the same weights, both ways;
strict loading.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from fedjax_fm import models, peft
from fedjax_fm.models.families import from_config

torch = pytest.importorskip("torch")
hugging_face = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

LLAMA = dict(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=False,
)  # fmt: skip
BERT = dict(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=32, num_labels=3,
)  # fmt: skip

GEMMA3 = {
    **LLAMA,
    "tie_word_embeddings": True,
    "head_dim": 6,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
GPT2 = dict(vocab_size=31, n_embd=16, n_layer=2, n_head=4, n_positions=32)


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """{family: (reference's factory, our model)} of random models on disk."""
    torch.manual_seed(0)
    references = {
        "llama": transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
        "gemma3": transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(**GEMMA3)
        ),
        "gpt2": transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
        "bert": transformers.BertForSequenceClassification(
            transformers.BertConfig(**BERT)
        ),
    }
    found = {}
    for family, reference in references.items():
        folder = tmp_path_factory.mktemp(family)
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        reference.save_pretrained(folder)
        kind = type(reference)
        labels = {"num_labels": 3} if family == "bert" else {}
        found[family] = (
            lambda k=kind, f=folder: k.from_pretrained(f).eval(),
            models.from_pretrained(folder, **labels),
        )
    return found


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(0, 31, (2, 7))


def theirs(model, ids) -> np.ndarray:
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.ones(ids.shape, dtype=torch.long),
        ).logits.numpy()


def ours(parts, ids) -> np.ndarray:
    return np.asarray(
        nnx.merge(*parts)(jnp.asarray(ids), jnp.ones(ids.shape, jnp.int32))
    )


Q_V = ["q_proj", "v_proj"]
# name: (family, our method, PEFT's configuration, where their outputs begin)
CASES = {
    "lora": ("llama", peft.lora(3, 6, targets=Q_V), lambda: hugging_face.LoraConfig(
        r=3, lora_alpha=6, target_modules=Q_V, task_type="CAUSAL_LM"), 0),
    "rslora": ("llama", peft.lora(4, 6, targets=["up_proj"], use_rslora=True), lambda: hugging_face.LoraConfig(
        r=4, lora_alpha=6, target_modules=["up_proj"], use_rslora=True, task_type="CAUSAL_LM"), 0),
    "lora on layers": ("llama", peft.on_layers(peft.lora(2, targets=Q_V), [0, 2]), lambda: hugging_face.LoraConfig(
        r=2, lora_alpha=2, target_modules=Q_V, layers_to_transform=[0, 2], task_type="CAUSAL_LM"), 0),
    "dora": ("llama", peft.dora(2, 4, targets=["q_proj", "down_proj"]), lambda: hugging_face.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], use_dora=True, task_type="CAUSAL_LM"), 0),
    "ia3": ("llama", peft.ia3(), lambda: hugging_face.IA3Config(task_type="CAUSAL_LM"), 0),
    "prompt": ("llama", peft.prompt_tuning(4), lambda: hugging_face.PromptTuningConfig(
        num_virtual_tokens=4, task_type="CAUSAL_LM"), 4),
    "prefix": ("llama", peft.prefix_tuning(4), lambda: hugging_face.PrefixTuningConfig(
        num_virtual_tokens=4, task_type="CAUSAL_LM"), 0),
    "gemma3 lora": ("gemma3", peft.lora(3, 6, targets=Q_V), lambda: hugging_face.LoraConfig(
        r=3, lora_alpha=6, task_type="CAUSAL_LM"), 0),
    "gemma3 prompt": ("gemma3", peft.prompt_tuning(2), lambda: hugging_face.PromptTuningConfig(
        num_virtual_tokens=2, task_type="CAUSAL_LM"), 2),
    "gpt2 lora": ("gpt2", peft.lora(2, 4, targets=["c_attn", "mlp.c_proj"]), lambda: hugging_face.LoraConfig(
        r=2, lora_alpha=4, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True, task_type="CAUSAL_LM"), 0),
    "gpt2 ia3": ("gpt2", peft.ia3(), lambda: hugging_face.IA3Config(task_type="CAUSAL_LM", fan_in_fan_out=True), 0),
    "gpt2 prefix": ("gpt2", peft.prefix_tuning(3), lambda: hugging_face.PrefixTuningConfig(
        num_virtual_tokens=3, task_type="CAUSAL_LM"), 0),
    "bert lora and head": ("bert", peft.lora(2, 4, targets=["query", "value"]), lambda: hugging_face.LoraConfig(
        r=2, lora_alpha=4, target_modules=["query", "value"], task_type="SEQ_CLS"), 0),
    "bert dora": ("bert", peft.dora(2, 4, targets=["intermediate.dense"]), lambda: hugging_face.LoraConfig(
        r=2, lora_alpha=4, target_modules=["intermediate.dense"], use_dora=True, task_type="SEQ_CLS"), 0),
    "bert ia3": ("bert", peft.ia3(), lambda: hugging_face.IA3Config(task_type="SEQ_CLS"), 0),
    "bert prefix": ("bert", peft.prefix_tuning(3), lambda: hugging_face.PrefixTuningConfig(
        num_virtual_tokens=3, task_type="SEQ_CLS"), 0),
}  # fmt: skip


@pytest.mark.compatibility
@pytest.mark.parametrize("name", CASES)
def test_what_we_save_opens_in_peft_with_equal_logits(
    name, families, ids, shaken, tmp_path, compatibility
):
    family, method, _, start = CASES[name]
    reference, model = families[family]
    graphdef, delta, backbone = peft.apply(model, method)
    delta = shaken(delta, 0.3)
    peft.save_pretrained(tmp_path, graphdef, delta, backbone)
    opened = hugging_face.PeftModel.from_pretrained(reference(), tmp_path).eval()
    expected = theirs(opened, ids)[:, start:] if start else theirs(opened, ids)
    found = ours((graphdef, delta, backbone), ids)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - np.asarray(model(jnp.asarray(ids)))).max() > 1e-2
    again = peft.load_pretrained(tmp_path, model)
    np.testing.assert_allclose(ours(again, ids), found, atol=1e-6)
    compatibility.works("Adapters", name, "written here, opened by PEFT")


@pytest.mark.compatibility
@pytest.mark.parametrize("name", CASES)
def test_what_peft_saves_opens_here_with_equal_logits(
    name, families, ids, tmp_path, compatibility
):
    family, _, config, start = CASES[name]
    reference, model = families[family]
    torch.manual_seed(1)
    wrapped = hugging_face.get_peft_model(reference(), config()).eval()
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path)
    opened = peft.load_pretrained(tmp_path, model)
    expected = theirs(wrapped, ids)[:, start:] if start else theirs(wrapped, ids)
    np.testing.assert_allclose(ours(opened, ids), expected, atol=1e-4)
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert sum(leaf.size for leaf in nnx.to_flat_state(opened[1]).leaves) == trained
    compatibility.works("Adapters", name, "written by PEFT, opened here")


def test_a_prompt_before_an_encoder_equals_pefts_hidden_states(
    families, ids, shaken, tmp_path
):
    reference, model = families["bert"]
    graphdef, delta, backbone = peft.apply(model.bert, peft.prompt_tuning(3))
    delta = shaken(delta, 0.3)
    peft.save_pretrained(
        tmp_path, graphdef, delta, backbone, task_type="FEATURE_EXTRACTION"
    )
    opened = hugging_face.PeftModel.from_pretrained(reference().bert, tmp_path).eval()
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3])
    with torch.no_grad():
        expected = opened(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)
        ).last_hidden_state.numpy()
    found = nnx.merge(graphdef, delta, backbone)(jnp.asarray(ids), jnp.asarray(mask))
    np.testing.assert_allclose(
        np.asarray(found)[mask > 0], expected[:, 3:][mask > 0], atol=1e-4
    )


def test_a_reparameterised_prefix_is_saved_collapsed(families, ids, tmp_path):
    reference, model = families["llama"]
    parts = peft.apply(model, peft.prefix_tuning(3, hidden=5))
    peft.save_pretrained(tmp_path, *parts)
    opened = hugging_face.PeftModel.from_pretrained(reference(), tmp_path).eval()
    np.testing.assert_allclose(ours(parts, ids), theirs(opened, ids), atol=1e-4)


def test_the_folder_is_as_peft_documents_it(families, tmp_path):
    parts = peft.apply(
        families["bert"][1], peft.lora(2, 4, targets=["query", "output.dense"])
    )
    peft.save_pretrained(tmp_path / "a", *parts, base_model_name_or_path="tiny")
    peft.save_pretrained(tmp_path / "b", *parts, base_model_name_or_path="tiny")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["target_modules"] == ["output.dense", "query"]
    assert (config["modules_to_save"], config["task_type"], config["r"]) == (
        ["classifier"],
        "SEQ_CLS",
        2,
    )
    tensors = load_file(tmp_path / "a/adapter_model.safetensors")
    at = "base_model.model.bert.encoder.layer.1"
    assert tensors[f"{at}.attention.self.query.lora_A.weight"].shape == (2, 16)
    assert tensors[f"{at}.output.dense.lora_A.weight"].shape == (2, 24)
    assert tensors[f"{at}.output.dense.lora_B.weight"].shape == (16, 2)
    assert tensors["base_model.model.classifier.weight"].shape == (3, 16)
    assert len(tensors) == 2 * 2 * 3 + 2
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "b" / name
        ).read_bytes()


def test_loading_is_strict_and_lists_every_problem(families, tmp_path):
    model = families["llama"][1]
    peft.save_pretrained(tmp_path, *peft.apply(model, peft.lora(2, targets=["q_proj"])))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    at = "base_model.model.model.layers"
    del tensors[f"{at}.1.self_attn.q_proj.lora_B.weight"]
    tensors[f"{at}.0.self_attn.k_proj.lora_A.weight"] = np.zeros((2, 16), np.float32)
    tensors[f"{at}.2.self_attn.q_proj.lora_A.weight"] = np.zeros((3, 16), np.float32)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(peft.AdapterError) as error:
        peft.load_pretrained(tmp_path, model)
    message = str(error.value)
    assert (
        "missing base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
        in message
    )
    assert (
        "extra base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"
        in message
    )
    assert (
        "layers.2.self_attn.q_proj.lora_A.weight: expected shape [2, 16], got [3, 16]"
        in message
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rank_pattern": {"q_proj": 4}},
            r"q_proj.lora_A.weight: expected shape \[4, 16\], got \[2, 16\]",
        ),
        ({"bias": "all"}, r"'bias': 'all'"),
        ({"peft_type": "VERA"}, "'VERA' is not supported"),
        (
            {"target_modules": ["layers.1.self_attn.q_proj"]},
            "extra base_model.model.model.layers.0.self_attn.q_proj",
        ),
    ],
)
def test_options_that_would_change_the_outputs_are_refused(
    families, tmp_path, change, message
):
    model = families["llama"][1]
    peft.save_pretrained(tmp_path, *peft.apply(model, peft.lora(2, targets=["q_proj"])))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(peft.AdapterError, match=message):
        peft.load_pretrained(tmp_path, model)


def test_what_has_no_place_in_the_format_is_refused(families, tmp_path):
    model = families["bert"][1]
    with pytest.raises(ValueError, match=r"holds one of .* the model has none"):
        peft.save_pretrained(tmp_path, *peft.apply(model, peft.houlsby(2)))
    both = peft.combine(peft.lora(2, targets=["query"]), peft.bitfit())
    with pytest.raises(
        ValueError, match=r"trained too: \['bert.embeddings.LayerNorm.bias'"
    ):
        peft.save_pretrained(tmp_path, *peft.apply(model, both))
    vit = from_config(
        {
            "model_type": "vit",
            "hidden_size": 8,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
        },
        num_labels=2,
    )
    with pytest.raises(
        ValueError,
        match="ViTForImageClassification's task to place a prompt: give task_type=",
    ):
        peft.save_pretrained(tmp_path, *peft.apply(vit, peft.prefix_tuning(2)))
    with pytest.raises(
        FileNotFoundError, match=r"has no adapter_config.json; found \[\]"
    ):
        peft.load_pretrained(tmp_path, model)
