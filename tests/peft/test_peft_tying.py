"""Tied embeddings and heads as PEFT treats them, in and out: trained apart, together,
or in rows.
"""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from peft_pairs import IDS, make_pair, opened_by_peft, ours, peft_adapter, theirs
from safetensors.numpy import load_file, save_file

from fedjax_fm import models, peft

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
hugging_face = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made = {}

    def pair(family):
        if family not in made:
            made[family] = make_pair(family, tmp_path_factory.mktemp(family))
        return made[family]

    return pair


# name: (family, LoraConfig's words)
CASES = {
    "embedding without its head": ("tied", {"modules_to_save": ["embed_tokens"]}),
    "head without its embedding": ("tied", {"modules_to_save": ["lm_head"]}),
    "both, apart": ("tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "embedding and head as one": (
        "tied",
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "head and embedding as one": (
        "tied",
        {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    ),
    "LoRA on a tied head": ("tied", {"target_modules": ["q_proj", "lm_head"]}),
    "LoRA on an untied head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "LoRA on an untied head alone": (
        "llama",
        {"target_modules": ["lm_head"], "rank_pattern": {"lm_head": 3}},
    ),
    "tokens of a tied embedding": ("tied", {"trainable_token_indices": [4, 9]}),
    "tokens of both, as one": (
        "tied",
        {"trainable_token_indices": {"embed_tokens": [4, 9], "lm_head": [4, 9]}},
    ),
    "tokens of an untied embedding": ("llama", {"trainable_token_indices": [9, 4]}),
    "tokens of GPT-2": (
        "gpt2",
        {"target_modules": ["c_attn"], "trainable_token_indices": [9, 4]},
    ),
    "GPT-2's embedding and head as one": (
        "gpt2",
        {
            "target_modules": ["c_attn"],
            "modules_to_save": ["lm_head"],
            "ensure_weight_tying": True,
        },
    ),
    "BERT's tokens": (
        "bert",
        {
            "target_modules": ["query"],
            "trainable_token_indices": [9, 4],
            "task_type": "SEQ_CLS",
        },
    ),
    "heads that end alike": (
        "distilbert",
        {"target_modules": ["q_lin"], "task_type": "SEQ_CLS"},
    ),
    "a head of two layers": (
        "roberta",
        {"target_modules": ["dense", "query"], "task_type": "SEQ_CLS"},
    ),
}


@pytest.mark.compatibility
@pytest.mark.parametrize("name", CASES)
def test_logits_are_pefts_both_ways(name, pairs, tmp_path, compatibility):
    family, fields = CASES[name]
    pair = pairs(family)
    kept = {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        **fields,
    }
    expected = theirs(
        peft_adapter(pair, hugging_face.LoraConfig(**kept), tmp_path / "theirs")
    )
    parts = peft.load_pretrained(tmp_path / "theirs", pair.model)
    np.testing.assert_allclose(ours(parts), expected, atol=1e-4)
    assert np.abs(expected - ours(pair.model)).max() > 1e-2
    peft.save_pretrained(tmp_path / "ours", *parts)
    np.testing.assert_allclose(
        theirs(opened_by_peft(pair, tmp_path / "ours")), expected, atol=1e-4
    )
    np.testing.assert_allclose(
        ours(peft.load_pretrained(tmp_path / "ours", pair.model)), expected, atol=1e-4
    )
    compatibility.works("PEFT fields", name, "tied weights and heads")


OURS = {
    "a tied embedding": ("tied", {"modules_to_save": ["embed_tokens"]}),
    "an untied head": ("llama", {"targets": ["q_proj", "lm_head"]}),
    "tokens and ranks": (
        "tied",
        {
            "trainable_token_indices": [7],
            "rank_pattern": {"layers.1.self_attn.q_proj": 4},
        },
    ),
    "GPT-2's embedding": ("gpt2", {"targets": ["c_attn"], "modules_to_save": ["wte"]}),
    "a part of a head": (
        "distilbert",
        {"targets": ["q_lin"], "modules_to_save": ["classifier"]},
    ),
    "an own alpha": (
        "llama",
        {
            "alpha": None,
            "rank_pattern": {"k_proj": 1, "v_proj": 3},
            "targets": "[qkv]_proj",
        },
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_what_is_trained_here_opens_in_peft(name, pairs, shaken, tmp_path):
    family, options = OURS[name]
    pair = pairs(family)
    method = peft.lora(2, **{"alpha": 3, "targets": ["q_proj"], **options})
    graphdef, delta, backbone = peft.apply(pair.model, method)
    parts = graphdef, shaken(delta, 0.3), backbone
    peft.save_pretrained(tmp_path, *parts)
    found = ours(parts)
    np.testing.assert_allclose(theirs(opened_by_peft(pair, tmp_path)), found, atol=1e-4)
    np.testing.assert_allclose(
        ours(peft.load_pretrained(tmp_path, pair.model)), found, atol=1e-4
    )


def test_an_untied_copy_computes_the_same_and_its_parts_move_apart(
    pairs, shaken, tmp_path
):
    model = pairs("tied").model
    free = peft.untie(model)
    np.testing.assert_allclose(ours(free), ours(model), atol=1e-5)
    assert model.config.tie_word_embeddings
    assert not hasattr(model, "lm_head")
    graphdef, delta, backbone = peft.apply(
        free, peft.lora(2, targets=["q_proj", "lm_head"], modules_to_save=[])
    )
    fields = json.loads((pairs("tied").folder / "config.json").read_text())
    assert fields["tie_word_embeddings"]
    parts = graphdef, shaken(delta, 0.5), backbone
    peft.save_merged(tmp_path, nnx.merge(*parts), fields)
    np.testing.assert_allclose(
        ours(models.from_pretrained(tmp_path)), ours(parts), atol=1e-5
    )
    np.testing.assert_allclose(
        theirs(transformers.LlamaForCausalLM.from_pretrained(tmp_path)),
        ours(parts),
        atol=1e-4,
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_what_is_not_tied_is_not_untied(family, pairs):
    with pytest.raises(ValueError, match=r"is not tied|cannot be untied"):
        peft.untie(pairs(family).model)


@pytest.mark.parametrize("tying", [False, True])  # which PEFT does not do by this name
def test_a_tied_embedding_without_its_head_is_refused_where_the_model_cannot_be_untied(
    tying, pairs, tmp_path
):
    config = hugging_face.LoraConfig(
        target_modules=["c_attn"],
        modules_to_save=["wte"],
        ensure_weight_tying=tying,
        task_type="CAUSAL_LM",
    )
    peft_adapter(pairs("gpt2"), config, tmp_path)
    with pytest.raises(
        peft.AdapterError,
        match=r"modules_to_save=\['wte'\].* GPT2LMHeadModel, whose head cannot",
    ):
        peft.load_pretrained(tmp_path, pairs("gpt2").model)


def test_lora_on_an_embedding_is_refused_by_name(pairs, tmp_path):
    config = hugging_face.LoraConfig(
        target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"
    )
    peft_adapter(pairs("llama"), config, tmp_path)
    with pytest.raises(peft.AdapterError, match="adapt an embedding"):
        peft.load_pretrained(tmp_path, pairs("llama").model)


def test_rows_of_a_head_by_itself_are_refused(pairs, tmp_path):
    config = hugging_face.LoraConfig(
        target_modules=["q_proj"],
        trainable_token_indices={"lm_head": [1]},
        task_type="CAUSAL_LM",
    )
    for family in ("tied", "llama"):
        peft_adapter(pairs(family), config, tmp_path)
        with pytest.raises(
            ValueError,
            match=r"rows of the head|trainable_token_indices=\['lm_head'\] match no",
        ):
            peft.load_pretrained(tmp_path, pairs(family).model)


def test_a_head_that_is_said_to_be_tied_and_is_another_is_refused(pairs, tmp_path):
    config = hugging_face.LoraConfig(
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens"],
        ensure_weight_tying=True,
        task_type="CAUSAL_LM",
    )
    peft_adapter(pairs("tied"), config, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.weight"] = (
        tensors["base_model.model.lm_head.weight"] + 1
    )
    save_file(tensors, path)
    with pytest.raises(
        peft.AdapterError, match=r"lm_head.weight differs from .*embed_tokens.weight"
    ):
        peft.load_pretrained(tmp_path, pairs("tied").model)


def test_base_weights_that_peft_stores_replace_the_models(pairs, tmp_path):
    """As PEFT does when it reads them: here of a head whose base was another one when
    the adapter was trained.
    """
    config = hugging_face.LoraConfig(
        r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"
    )
    peft_adapter(pairs("llama"), config, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.base_layer.weight"] += 0.5
    save_file(tensors, path)
    expected = theirs(opened_by_peft(pairs("llama"), tmp_path))
    np.testing.assert_allclose(
        ours(peft.load_pretrained(tmp_path, pairs("llama").model)), expected, atol=1e-4
    )
    tensors["base_model.model.lm_head.base_layer.weight"] = np.zeros(
        (30, 16), np.float32
    )
    save_file(tensors, path)
    with pytest.raises(
        peft.AdapterError, match=r"lm_head.base_layer.weight: expected shape \[31, 16\]"
    ):
        peft.load_pretrained(tmp_path, pairs("llama").model)


def test_trained_tokens_are_merged_and_taken_out_again(pairs, shaken):
    model = pairs("tied").model
    graphdef, delta, backbone = peft.apply(
        model, peft.lora(2, targets=["q_proj"], trainable_token_indices=[3, 11])
    )
    np.testing.assert_array_equal(ours((graphdef, delta, backbone)), ours(model))
    adapted = nnx.merge(graphdef, shaken(delta, 0.5), backbone)
    merged = peft.merge(adapted)
    np.testing.assert_allclose(ours(merged), ours(adapted), atol=1e-5)
    table, before = (
        np.asarray(m.model.embed_tokens.embedding[...]) for m in (merged, model)
    )
    assert sorted(set(np.nonzero((table != before).any(1))[0])) == [3, 11]
    back = peft.unmerge(merged, adapted)
    np.testing.assert_allclose(ours(back), ours(adapted), atol=1e-5)
    np.testing.assert_array_equal(back.model.embed_tokens.base.embedding[...], before)


def test_only_the_trained_tokens_get_a_gradient(pairs):
    import jax

    graphdef, delta, backbone = peft.apply(
        pairs("llama").model,
        peft.lora(2, targets=["q_proj"], trainable_token_indices=[int(IDS[0, 0]), 30]),
    )

    def loss(delta):
        return jnp.sum(nnx.merge(graphdef, delta, backbone)(jnp.asarray(IDS)) ** 2)

    rows = next(
        v for p, v in nnx.to_flat_state(jax.grad(loss)(delta)) if p[-1] == "rows"
    )
    sizes = np.abs(np.asarray(rows[...])).max(1)
    assert sizes[0] > 0
    assert (30 in IDS) or sizes[1] == 0


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([31], r"vocabulary of 31, got trainable_token_indices=\[31\]"),
        ({"embed": [1]}, r"trainable_token_indices=\['embed'\] match no Embed"),
        ([1, 1], "each token once"),
        ([], "a list of token ids"),
        ("1", "a list of token ids"),
        ([1.5], "trainable_token_indices=1.5"),
        ([True], "trainable_token_indices=True"),
        ([-1], "trainable_token_indices=-1"),
    ],
)
def test_tokens_that_are_none_are_refused(indices, message, pairs):
    with pytest.raises((ValueError, TypeError), match=message):
        peft.apply(
            pairs("llama").model,
            peft.lora(2, targets=["q_proj"], trainable_token_indices=indices),
        )


def test_an_embedding_is_trained_in_full_or_in_rows(pairs):
    method = peft.lora(
        2,
        targets=["q_proj"],
        trainable_token_indices=[1],
        modules_to_save=["embed_tokens"],
    )
    with pytest.raises(
        ValueError,
        match="embed_tokens is trained in full by modules_to_save and in rows",
    ):
        peft.apply(pairs("llama").model, method)


def test_prompts_beside_a_tied_embedding_that_is_trained_have_no_place_in_the_format(
    pairs, tmp_path
):
    parts = peft.apply(
        pairs("tied").model, peft.prompt_tuning(2, modules_to_save=["embed_tokens"])
    )
    with pytest.raises(
        ValueError,
        match=r"trains model.embed_tokens.embedding without the head .* peft.untie",
    ):
        peft.save_pretrained(tmp_path / "a", *parts)
    assert not list(tmp_path.iterdir())
    assert dataclasses.is_dataclass(pairs("tied").model.config)
