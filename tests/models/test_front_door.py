"""What people write first: names of models, of dtypes, padding; and settings that are
honoured or refused.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from flax import nnx

from fedjax_fm import models
from fedjax_fm.models import WeightError
from fedjax_fm.models.architectures import architecture
from fedjax_fm.models.locate import WITHOUT_OWNER

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

BERT = {"model_type": "bert", **published.SMALL}
SPELLINGS = [
    ("float32", "float32"),
    ("fp32", "float32"),
    ("f32", "float32"),
    (jnp.float32, "float32"),
    (np.float32, "float32"),
    (np.dtype("float32"), "float32"),
    (torch.float32, "float32"),
    ("bfloat16", "bfloat16"),
    ("bf16", "bfloat16"),
    ("BF16", "bfloat16"),
    ("torch.bfloat16", "bfloat16"),
    (jnp.bfloat16, "bfloat16"),
    (jnp.dtype("bfloat16"), "bfloat16"),
    (torch.bfloat16, "bfloat16"),
]


@pytest.mark.parametrize(("dtype", "expected"), SPELLINGS, ids=lambda value: str(value))
def test_dtypes_as_people_spell_them(tiny_bert, dtype, expected: str):
    read = models.from_pretrained(tiny_bert, dtype=dtype)
    new = models.from_config(BERT, dtype=dtype)
    for model in (read, new):
        assert model.pooler.dense.kernel.dtype == jnp.dtype(expected)


OTHERS = [
    "float16",
    "fp16",
    jnp.float16,
    torch.float16,
    "int8",
    "auto",
    None,
    32,
    "bfloat",
    True,
    np.float64,
]


@pytest.mark.parametrize("dtype", OTHERS, ids=lambda value: str(value))
def test_other_dtypes_are_refused_by_name(tiny_bert, dtype):
    message = r"expected dtype 'float32' .*'bf16', jnp\.bfloat16\), got "
    with pytest.raises(ValueError, match=message):
        models.from_pretrained(tiny_bert, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        models.from_config(BERT, dtype=dtype)


@pytest.mark.parametrize("num_labels", [True, 2.0, "2", 0, -1])
def test_numbers_of_labels_that_are_none(tiny_bert, num_labels):
    with pytest.raises(
        (TypeError, ValueError), match=f"num_labels >= 1, got num_labels={num_labels!r}"
    ):
        models.from_pretrained(tiny_bert, num_labels=num_labels)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A local cache of the hub, filled by a function (id, folder)."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    cached = {}

    def snapshot_download(name, local_files_only=False, allow_patterns=None):
        if name not in cached:
            raise FileNotFoundError(name)
        return str(cached[name])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return cached


@pytest.mark.parametrize("cached_as", ["roberta-base", "FacebookAI/roberta-base"])
def test_the_hub_s_first_models_have_no_owner_in_their_names(
    hub, tmp_path, cached_as: str
):
    hub[cached_as] = published.saved(tmp_path / "there", published.made("RobertaModel"))
    assert isinstance(models.from_pretrained("roberta-base"), models.RobertaModel)
    assert models.provenance("roberta-base")["source"] == "hub cache"


def test_names_without_an_owner_are_a_closed_list(hub):
    assert WITHOUT_OWNER["gpt2"] == "openai-community/gpt2"
    assert WITHOUT_OWNER["t5-small"] == "google-t5/t5-small"
    assert WITHOUT_OWNER["bert-base-uncased"] == "google-bert/bert-base-uncased"
    assert (
        WITHOUT_OWNER["distilbert-base-uncased"] == "distilbert/distilbert-base-uncased"
    )
    assert WITHOUT_OWNER["albert-base-v2"] == "albert/albert-base-v2"
    with pytest.raises(
        FileNotFoundError,
        match=r"cannot find the model 'gpt2': no folder 'gpt2'; .*HF_HUB_OFFLINE",
    ):
        models.locate("gpt2")
    with pytest.raises(
        FileNotFoundError, match="'my-model' is neither a folder nor a hub id"
    ):
        models.locate("my-model")


def test_a_repository_without_safetensors_says_what_to_do(hub, tmp_path, monkeypatch):
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    hub["somebody/something"] = folder
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(
        FileNotFoundError,
        match=r"the hub has no safetensors of it \(if it has pytorch_model\.bin",
    ):
        models.from_pretrained("somebody/something")


def test_a_folder_of_that_name_comes_first(hub, tmp_path):
    published.saved(tmp_path / "gpt2", published.made("GPT2LMHeadModel"))
    assert models.locate("gpt2").source == "folder"


@pytest.mark.parametrize("left", [False, True])
def test_roberta_reads_text_that_was_padded_with_another_id(tmp_path, left: bool):
    """`tokenize` pads with 0 unless told otherwise; with the attention mask the hidden
    states are right all the same.
    """
    folder = published.saved(tmp_path, published.made("RobertaModel"))
    model = models.from_pretrained(folder)
    given = published.reference.text(left=left, pad=1)
    expected = published.theirs(folder, "RobertaModel", given)
    real = given["attention_mask"] == 1
    zeros = {
        **given,
        "input_ids": np.where(real, given["input_ids"], 0).astype(np.int32),
    }
    assert (zeros["input_ids"] != given["input_ids"]).any()
    for inputs in (given, zeros):
        np.testing.assert_allclose(
            published.ours(model, inputs)[real], expected[real], atol=2e-4
        )


@pytest.mark.parametrize(
    ("name", "published_size"),
    [
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("mistralai/Mistral-7B-v0.3", 7_248_023_552),
    ],
)
def test_versions_of_mistral_have_vocabularies_of_their_own(
    name: str, published_size: int
):
    fields = architecture(name)
    assert fields is not None
    model = nnx.eval_shape(lambda: models.from_config(fields))
    assert (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model)))
        == published_size
    )
    assert model.config.sliding_window == (4096 if "v0.1" in name else None)


# (class, what is changed): honoured, so that logits equal transformers', or refused
# with a message that has these words.
SETTINGS = [
    ("BertModel", {"hidden_act": "relu"}, None),
    ("BertModel", {"hidden_act": "gelu_new"}, None),
    ("BertModel", {"hidden_act": "gelu_10"}, "hidden_act must be one of"),
    ("BertModel", {"layer_norm_eps": 1e-3}, None),
    ("BertModel", {"type_vocab_size": 3}, None),
    ("BertModel", {"chunk_size_feed_forward": 3}, None),
    ("RobertaModel", {"pad_token_id": 0}, None),
    ("AlbertModel", {"num_hidden_groups": 2}, "num_hidden_groups=2"),
    ("AlbertModel", {"inner_group_num": 2}, "inner_group_num=2"),
    ("DistilBertModel", {"activation": "relu"}, None),
    ("DistilBertModel", {"sinusoidal_pos_embds": True}, None),
    ("ViTModel", {"hidden_act": "quick_gelu"}, None),
    ("ViTModel", {"qkv_bias": False}, "qkv_bias=False"),
    ("Dinov2Model", {"hidden_act": "relu"}, None),
    ("Dinov2Model", {"layerscale_value": 0.1}, None),
    ("Dinov2Model", {"mlp_ratio": 3}, None),
    ("Dinov2Model", {"qkv_bias": False}, "qkv_bias=False"),
    ("Dinov2Model", {"use_swiglu_ffn": True}, "use_swiglu_ffn=True"),
    ("Gemma3ForCausalLM", {"attention_bias": True}, None),
    ("Gemma3ForCausalLM", {"hidden_activation": "silu"}, None),
    ("Gemma3ForCausalLM", {"query_pre_attn_scalar": 30}, None),
    ("Gemma3ForCausalLM", {"final_logit_softcapping": 2.0}, None),
    ("Gemma3ForCausalLM", {"sliding_window": 3}, None),
    ("Gemma3ForCausalLM", {"layer_types": ["full_attention"] * 2}, None),
    (
        "Gemma3ForCausalLM",
        {"layer_types": ["sliding_attention"] * 2, "sliding_window": 3},
        None,
    ),
    (
        "Gemma3ForCausalLM",
        {"attn_logit_softcapping": 50.0},
        "attn_logit_softcapping=50.0",
    ),
    (
        "Gemma3ForCausalLM",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention=True",
    ),
    ("GPT2LMHeadModel", {"reorder_and_upcast_attn": True}, None),
    ("GPT2LMHeadModel", {"n_inner": 20}, None),
    ("GPT2LMHeadModel", {"scale_attn_weights": False}, "scale_attn_weights=False"),
    (
        "GPT2LMHeadModel",
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx=True",
    ),
    ("GPT2LMHeadModel", {"layer_norm_epsilon": 1e-3}, None),
    ("LlamaForCausalLM", {"attention_bias": True}, None),
    ("LlamaForCausalLM", {"mlp_bias": True}, None),
    ("LlamaForCausalLM", {"head_dim": 12}, None),
    ("LlamaForCausalLM", {"rms_norm_eps": 1e-2}, None),
    ("LlamaForCausalLM", {"pretraining_tp": 2}, None),
    ("LlamaForCausalLM", {"num_key_value_heads": 1}, None),
    ("LlamaForCausalLM", {"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
    ("MistralForCausalLM", {"head_dim": 12, "sliding_window": 4}, None),
    ("Qwen2ForCausalLM", {"head_dim": 12}, None),
    ("Qwen3ForCausalLM", {"attention_bias": True}, None),
    (
        "T5ForConditionalGeneration",
        {"feed_forward_proj": "gated-silu", "initializer_factor": 0.3},
        None,
    ),
    ("T5ForConditionalGeneration", {"feed_forward_proj": "gelu"}, None),
    ("T5ForConditionalGeneration", {"relative_attention_max_distance": 20}, None),
    ("WhisperForConditionalGeneration", {"activation_function": "relu"}, None),
    ("WhisperForConditionalGeneration", {"scale_embedding": True}, None),
]


@pytest.mark.compatibility
@pytest.mark.parametrize(
    ("kind", "change", "refused"), SETTINGS, ids=lambda value: str(value)
)
def test_settings_are_honoured_or_refused_by_name(
    tmp_path, kind: str, change: dict, refused: str | None, compatibility
):
    folder = published.saved(tmp_path, published.made(kind, **change))
    row = f"{published.family_of(kind)}: {', '.join(f'{k}={v}' for k, v in change.items())}"
    if refused is not None:
        with pytest.raises(WeightError, match=refused) as raised:
            models.from_pretrained(folder)
        compatibility.refused("Architectures", row, raised)
        return
    given = published.inputs_of(kind)
    found = published.ours(models.from_pretrained(folder), given)
    np.testing.assert_allclose(found, published.theirs(folder, kind, given), atol=3e-4)
    compatibility.works("Architectures", row)
