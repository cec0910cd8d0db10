"""Checkpoints as they are published: heads, prefixes, causal encoders, windows, old and
new keys, against transformers.
"""

import re

import numpy as np
import published
import pytest

from fedjax_fm import models
from fedjax_fm.models import WeightError

pytest.importorskip("torch")
pytest.importorskip("transformers")

FORMS = "Checkpoint forms"
TIED_KINDS = [
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma3ForCausalLM",
    "GPT2LMHeadModel",
]
TIED_KINDS += ["T5ForConditionalGeneration"]
EMBEDDINGS = {"GPT2": "transformer.wte.weight", "T5": "shared.weight"}


def agree(folder, kind: str, model=None, given=None) -> np.ndarray:
    """Asserts that logits equal those of transformers' class, and returns them."""
    given = published.inputs_of(kind) if given is None else given
    expected = published.theirs(folder, kind, given)
    found = published.ours(
        models.from_pretrained(folder) if model is None else model, given
    )
    np.testing.assert_allclose(found, expected, atol=2e-4)
    return expected


def embedding_of(kind: str) -> str:
    return EMBEDDINGS.get(published.family_of(kind), "model.embed_tokens.weight")


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", TIED_KINDS)
@pytest.mark.parametrize("form", ["the embedding", "something else", "alone"])
def test_a_tied_model_that_stores_its_head(
    tmp_path, kind: str, form: str, compatibility
):
    name = embedding_of(kind)

    def with_head(tensors):
        table = tensors[name]
        if form == "alone":  # transformers 5 ties whichever of both is there
            tensors = {
                other: array for other, array in tensors.items() if other != name
            }
        return {
            **tensors,
            "lm_head.weight": 0.5 - table[::-1] if form == "something else" else table,
        }

    folder = published.saved(tmp_path, published.made(kind), tensors=with_head)
    plain = published.saved(tmp_path / "plain", published.made(kind))
    logits = agree(folder, kind)
    same = np.allclose(
        logits, published.theirs(plain, kind, published.inputs_of(kind)), atol=1e-3
    )
    assert same is (form != "something else")
    assert models.from_pretrained(folder).config.tie_word_embeddings is same
    compatibility.works(
        FORMS, f"tied, lm_head.weight stored: {form}", published.family_of(kind)
    )


def test_stored_copies_of_t5_s_table_that_are_no_copies(tmp_path):
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    model = published.made("T5ForConditionalGeneration")
    equal = published.saved(
        tmp_path / "a",
        model,
        tensors=lambda t: t | {copy: t["shared.weight"] for copy in copies},
    )
    agree(equal, "T5ForConditionalGeneration")
    for copy in copies:
        other = published.saved(
            tmp_path / "b",
            model,
            tensors=lambda t, copy=copy: t | {copy: -t["shared.weight"]},
        )
        with pytest.raises(WeightError, match=f"{copy} .*differs from shared.weight"):
            models.from_pretrained(other)
        with pytest.raises(WeightError, match=f"{copy} .*differs from shared.weight"):
            models.from_pretrained(other, num_labels=2)


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", TIED_KINDS[:6])
def test_an_untied_model_without_a_head_is_refused_by_name(
    tmp_path, kind: str, compatibility
):
    untied = {"tie_word_embeddings": False}
    folder = published.saved(tmp_path, published.made(kind), config=untied)
    with pytest.raises(
        WeightError, match=r"no lm_head\.weight.*tie_word_embeddings.*num_labels"
    ) as raised:
        models.from_pretrained(folder)
    assert models.from_pretrained(folder, num_labels=2) is not None
    compatibility.refused(
        FORMS, "untied, no lm_head.weight", raised, published.family_of(kind)
    )


@pytest.mark.parametrize("kind", TIED_KINDS)
def test_an_untied_model_with_its_head(tmp_path, kind: str):
    untied = published.made(kind, tie_word_embeddings=False)
    rows = published.CONFIGS[published.family_of(kind)]["vocab_size"]

    def with_head(tensors):
        head = np.random.default_rng(5).normal(
            size=(rows, tensors[embedding_of(kind)].shape[1])
        )
        return {**tensors, "lm_head.weight": head.astype(np.float32)}

    folder = published.saved(
        tmp_path, untied, tensors=with_head, config={"tie_word_embeddings": False}
    )
    agree(folder, kind)
    assert models.from_pretrained(folder).config.tie_word_embeddings is False


# (what is saved, what reads it)
PREFIXES = [
    ("LlamaModel", "LlamaForCausalLM"),
    ("MistralModel", "MistralForCausalLM"),
    ("Qwen2Model", "Qwen2ForCausalLM"),
    ("Qwen3Model", "Qwen3ForCausalLM"),
    ("Gemma3TextModel", "Gemma3ForCausalLM"),
    ("GPT2Model", "GPT2LMHeadModel"),
    ("T5Model", "T5ForConditionalGeneration"),
    ("BertForMaskedLM", "BertModel"),
    ("BertModel", "BertModel"),
    ("BertForTokenClassification", "BertModel"),
    ("BertForNextSentencePrediction", "BertModel"),
    ("RobertaForMaskedLM", "RobertaModel"),
    ("RobertaForTokenClassification", "RobertaModel"),
    ("RobertaModel", "RobertaModel"),
    ("AlbertForMaskedLM", "AlbertModel"),
    ("AlbertForPreTraining", "AlbertModel"),
    ("AlbertModel", "AlbertModel"),
    ("DistilBertForMaskedLM", "DistilBertModel"),
    ("DistilBertForQuestionAnswering", "DistilBertModel"),
    ("DistilBertModel", "DistilBertModel"),
    ("Dinov2ForImageClassification", "Dinov2Model"),
    ("Dinov2Model", "Dinov2Model"),
    ("ViTForImageClassification", "ViTModel"),
    ("ViTModel", "ViTModel"),
    ("WhisperModel", "WhisperForConditionalGeneration"),
]


@pytest.mark.compatibility
@pytest.mark.parametrize(("stored", "kind"), PREFIXES)
def test_files_with_and_without_the_prefix(
    tmp_path, stored: str, kind: str, compatibility
):
    folder = published.saved(tmp_path, published.made(stored))
    agree(folder, kind)
    compatibility.works(FORMS, f"saved from {stored}", kind)


# (what is saved, our module inside a classifier, what reads it)
CLASSIFIERS = [
    ("LlamaModel", "model", "LlamaModel"),
    ("Qwen3Model", "model", "Qwen3Model"),
    ("Gemma3TextModel", "model", "Gemma3TextModel"),
    ("GPT2Model", "transformer", "GPT2Model"),
    ("BertModel", "bert", "BertModel"),
    ("RobertaModel", "roberta", "RobertaModel"),
    ("AlbertModel", "albert", "AlbertModel"),
    ("DistilBertModel", "distilbert", "DistilBertModel"),
    ("Dinov2Model", "dinov2", "Dinov2Model"),
    ("ViTModel", "vit", "ViTModel"),
]


@pytest.mark.parametrize(("stored", "inner", "kind"), CLASSIFIERS)
def test_classifiers_on_files_of_base_models(
    tmp_path, stored: str, inner: str, kind: str
):
    folder = published.saved(tmp_path, published.made(stored))
    agree(folder, kind, getattr(models.from_pretrained(folder, num_labels=2), inner))


def test_a_head_of_which_half_is_there_is_no_head(tmp_path):
    model = published.made("BertForSequenceClassification")

    def without(tensors):
        return {
            name: array for name, array in tensors.items() if name != "classifier.bias"
        }

    folder = published.saved(tmp_path, model, tensors=without)
    with pytest.raises(WeightError, match=r"missing classifier\.bias"):
        models.from_pretrained(folder, num_labels=2)


CAUSAL = [
    "BertModel",
    "RobertaModel",
    "BertForSequenceClassification",
    "RobertaForSequenceClassification",
]


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", CAUSAL)
def test_encoders_with_is_decoder_are_causal(tmp_path, kind: str, compatibility):
    folder = published.saved(tmp_path / "a", published.made(kind, is_decoder=True))
    both = published.saved(
        tmp_path / "b", published.made(kind), config={"is_decoder": False}
    )
    labels = 2 if "Classification" in kind else None
    rng, given = np.random.default_rng(0), {"attention_mask": np.ones((2, 9), np.int32)}
    given["attention_mask"][1, 6:] = 0
    given["input_ids"] = np.where(
        given["attention_mask"] == 1, rng.integers(5, 99, (2, 9)), 1
    ).astype(np.int32)
    results = []
    for place in (folder, both):
        expected = published.theirs(place, kind, given)
        found = published.ours(models.from_pretrained(place, num_labels=labels), given)
        real = given["attention_mask"].astype(bool) if labels is None else slice(None)
        np.testing.assert_allclose(found[real], expected[real], atol=2e-4)
        results.append(expected)
    assert np.abs(results[0] - results[1]).max() > 0.1
    compatibility.works(
        FORMS, "encoder with is_decoder=true (causal)", published.family_of(kind)
    )


@pytest.mark.compatibility
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_cross_attention_is_refused(family: str, compatibility):
    fields = {
        "model_type": family,
        **published.SMALL,
        "is_decoder": True,
        "add_cross_attention": True,
    }
    with pytest.raises(
        ValueError, match="add_cross_attention=True is not supported"
    ) as raised:
        models.from_config(fields)
    compatibility.refused(
        FORMS, "encoder with add_cross_attention=true", raised, family
    )


@pytest.mark.parametrize("family", ["albert", "distilbert"])
def test_encoders_that_cannot_be_causal_refuse_it(family: str):
    kind = "AlbertModel" if family == "albert" else "DistilBertModel"
    fields = {
        "model_type": family,
        **published.CONFIGS[published.family_of(kind)],
        "is_decoder": True,
    }
    with pytest.raises(ValueError, match="is_decoder=True is not supported"):
        models.from_config(fields)


LONG = {"input_ids": np.random.default_rng(0).integers(5, 99, (2, 40)).astype(np.int32)}


@pytest.mark.compatibility
def test_mistral_s_window_hides_what_is_far(tmp_path, compatibility):
    folder = published.saved(
        tmp_path, published.made("MistralForCausalLM", sliding_window=7)
    )
    model = models.from_pretrained(folder)
    windowed = agree(folder, "MistralForCausalLM", model, LONG)
    full = published.saved(
        tmp_path / "full", published.made("MistralForCausalLM", sliding_window=None)
    )
    assert np.abs(windowed - agree(full, "MistralForCausalLM", None, LONG)).max() > 0.1
    compatibility.works(FORMS, "sliding_window shorter than the text", "Mistral")


def test_mistral_without_the_key_has_a_window_of_4096():
    fields = {
        "model_type": "mistral",
        **published.TIED,
        "max_position_embeddings": 8192,
    }
    assert models.from_config(fields).config.sliding_window == 4096
    assert (
        models.from_config({**fields, "sliding_window": None}).config.sliding_window
        is None
    )


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize(
    "windows",
    [
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {"use_sliding_window": False, "sliding_window": 5},
    ],
)
def test_qwen_s_windows_of_some_layers(
    tmp_path, kind: str, windows: dict, compatibility
):
    folder = published.saved(tmp_path, published.made(kind, **windows))
    agree(folder, kind, None, LONG)
    compatibility.works(FORMS, f"windows: {windows}", published.family_of(kind))


def test_generation_and_padding_see_the_window(tmp_path):
    """One token after the other from the cache, behind padding on the left, equals
    reading all at once.
    """
    folder = published.saved(
        tmp_path,
        published.made(
            "Qwen2ForCausalLM",
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=1,
        ),
    )
    model, ids = models.from_pretrained(folder), LONG["input_ids"][:, :20]
    whole = published.theirs(folder, "Qwen2ForCausalLM", {"input_ids": ids})
    mask = np.ones((2, 23), np.int32)
    mask[:, :3] = 0
    padded = np.pad(ids, ((0, 0), (3, 0)), constant_values=7)
    found = published.ours(model, {"input_ids": padded, "attention_mask": mask})
    np.testing.assert_allclose(found[:, 3:], whole, atol=2e-4)
    cache = model.empty_cache(2, 23)
    for start, end in ((0, 11), (11, 12), (12, 23)):
        logits, cache = model(padded[:, start:end], mask[:, start:end], cache=cache)
        real = slice(max(3 - start, 0), None)
        np.testing.assert_allclose(
            logits[:, real], whole[:, max(start - 3, 0) : end - 3], atol=2e-4
        )


def test_packed_texts_have_windows_of_their_own(tmp_path):
    folder = published.saved(
        tmp_path, published.made("MistralForCausalLM", sliding_window=4)
    )
    model, ids = models.from_pretrained(folder), LONG["input_ids"][:1, :19]
    texts = np.array([[1] * 8 + [2] * 11], np.int32)
    found = published.ours(model, {"input_ids": ids, "attention_mask": texts})
    for part in (slice(0, 8), slice(8, 19)):
        alone = published.theirs(
            folder, "MistralForCausalLM", {"input_ids": ids[:, part]}
        )
        np.testing.assert_allclose(found[:, part], alone, atol=2e-4)


LLAMA3 = {
    name: value
    for name, value in published.reference.LLAMA3.items()
    if name != "rope_theta"
}
LINEAR = {"factor": 4.0}
# (keys set, keys left out)
ROPES = {
    "rope_theta at the top": ({"rope_theta": 500.0}, ("rope_parameters",)),
    "rope_parameters": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        (),
    ),
    "rope_parameters without a base": (
        {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default"}},
        (),
    ),
    "rope_parameters linear": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, **LINEAR}},
        (),
    ),
    "rope_scaling null": (
        {"rope_theta": 500.0, "rope_scaling": None},
        ("rope_parameters",),
    ),
    "rope_scaling linear, old spelling": (
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", **LINEAR}},
        ("rope_parameters",),
    ),
    "rope_scaling llama3 beside rope_theta": (
        {"rope_theta": 500.0, "rope_scaling": LLAMA3},
        ("rope_parameters",),
    ),
    "both": (
        {
            "rope_scaling": {"type": "linear", **LINEAR},
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        (),
    ),
    "neither": ({}, ("rope_parameters",)),
}


@pytest.mark.compatibility
@pytest.mark.parametrize("form", ROPES)
def test_where_rotary_settings_may_stand(tmp_path, form: str, compatibility):
    changes, without = ROPES[form]
    folder = published.saved(
        tmp_path, published.made("LlamaForCausalLM"), config=changes, without=without
    )
    agree(folder, "LlamaForCausalLM", None, LONG)
    compatibility.works(FORMS, f"rotary settings: {form}", "Llama")


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope", "su", "mrope"])
def test_other_rotary_embeddings_are_refused_by_name(kind: str, compatibility):
    fields = {
        "model_type": "llama",
        **published.TIED,
        "rope_scaling": {"rope_type": kind, "factor": 2.0},
    }
    with pytest.raises(
        ValueError, match=f"rope type '{kind}' is not supported"
    ) as raised:
        models.from_config(fields)
    compatibility.refused(FORMS, f"rope type {kind}", raised, "Llama")


@pytest.mark.parametrize("place", ["top", "rope_parameters", "rope_scaling"])
def test_partial_rotary_embeddings_are_refused(place: str):
    fields = {"model_type": "llama", **published.TIED}
    partial = {"partial_rotary_factor": 0.5}
    fields |= (
        partial if place == "top" else {place: {"rope_type": "default", **partial}}
    )
    with pytest.raises(ValueError, match="partial rotary embedding is not supported"):
        models.from_config(fields)


@pytest.mark.compatibility
def test_qwen3_without_head_dim_has_heads_of_128(tmp_path, compatibility):
    model = published.made("Qwen3ForCausalLM", head_dim=128)
    folder = published.saved(tmp_path, model, without=("head_dim",))
    agree(folder, "Qwen3ForCausalLM")
    compatibility.works(FORMS, "no head_dim in config.json", "Qwen3")


@pytest.mark.compatibility
def test_folders_that_hold_no_safetensors_say_what_to_do(tmp_path, compatibility):
    import torch

    model = published.made("LlamaForCausalLM")
    folder = published.saved(tmp_path, model)
    (folder / "model.safetensors").unlink()
    for name in (
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "tf_model.h5",
        "flax_model.msgpack",
    ):
        torch.save(model.state_dict(), folder / name)
        with pytest.raises(
            FileNotFoundError,
            match=rf"{re.escape(name)}.*safe_serialization|{name}.*save_pretrained",
        ) as e:
            models.from_pretrained(folder)
        (folder / name).unlink()
        compatibility.refused(FORMS, f"only {name}", e)


@pytest.mark.compatibility
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_tensors_of_eight_bit_floats_are_refused_by_name(
    tmp_path, dtype: str, compatibility
):
    import torch
    from safetensors.torch import load_file, save_file

    folder = published.saved(tmp_path, published.made("LlamaForCausalLM"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(
        tensors | {name: tensors[name].to(getattr(torch, dtype))},
        folder / "model.safetensors",
    )
    with pytest.raises(
        WeightError, match=rf"{name}: expected floating point numbers.*got {dtype}"
    ) as raised:
        models.from_pretrained(folder)
    compatibility.refused(FORMS, f"tensors of {dtype}", raised)


@pytest.mark.compatibility
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "BertModel"])
def test_tensors_of_other_floats_are_read(
    tmp_path, dtype: str, kind: str, compatibility
):
    import torch

    folder = published.saved(tmp_path, published.made(kind).to(getattr(torch, dtype)))
    agree(folder, kind)
    compatibility.works(FORMS, f"tensors of {dtype}", published.family_of(kind))


@pytest.mark.compatibility
@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_quantised_checkpoints_are_refused_by_name(
    tmp_path, method: str, compatibility
):
    quantised = {"quantization_config": {"quant_method": method, "bits": 4}}
    folder = published.saved(
        tmp_path, published.made("LlamaForCausalLM"), config=quantised
    )
    with pytest.raises(
        WeightError, match=f"quantised by '{method}'.*frozen="
    ) as raised:
        models.from_pretrained(folder)
    compatibility.refused(FORMS, f"quantization_config of {method}", raised)


def test_old_clip_configurations_say_it_twice(tmp_path):
    """openai's files have text_config_dict and vision_config_dict beside the plain
    ones, null or overriding them.
    """
    model = published.made("CLIPModel")
    towers = published.CONFIGS["CLIP"]
    given = published.reference.text(end=100) | published.reference.pixels()
    nulls = {"text_config_dict": None, "vision_config_dict": None}
    agree(
        published.saved(tmp_path / "null", model, config=nulls),
        "CLIPModel",
        None,
        given,
    )
    only = {
        "text_config_dict": towers["text_config"],
        "vision_config_dict": towers["vision_config"],
    }
    folder = published.saved(
        tmp_path / "only", model, config=only, without=("text_config", "vision_config")
    )
    agree(folder, "CLIPModel", None, given)


@pytest.mark.compatibility
def test_shards_and_their_index(tmp_path, compatibility):
    folder = published.saved(tmp_path, published.made("LlamaForCausalLM"))
    model = published.made("LlamaForCausalLM")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    agree(folder, "LlamaForCausalLM")
    compatibility.works(FORMS, "shards and their index")


def test_shards_that_hold_a_tensor_twice(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = published.saved(tmp_path, published.made("LlamaForCausalLM"))
    (folder / "model.safetensors").unlink()
    published.made("LlamaForCausalLM").save_pretrained(folder, max_shard_size="20KB")
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    name = "model.layers.0.mlp.up_proj.weight"
    for shard in (first, second):
        save_file(load_file(shard) | {name: np.zeros((24, 32), np.float32)}, shard)
    with pytest.raises(WeightError, match=rf"{second.name} holds {name} once more"):
        models.from_pretrained(folder)
