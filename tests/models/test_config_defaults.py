"""What a key means that config.json lacks, and which keys are read at all: every family
against transformers' classes.
"""

import dataclasses
import functools

import pytest
from flax import nnx

from fedjax_fm import models
from fedjax_fm.models.activations import ACTIVATIONS

transformers = pytest.importorskip("transformers")

FAMILIES = [
    "albert",
    "bert",
    "dinov2",
    "distilbert",
    "gemma3_text",
    "gpt2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "roberta",
    "t5",
    "vit",
    "whisper",
]
TOWERS = {"clip_text_model": "text_config", "clip_vision_model": "vision_config"}
# Ours alone: what a family always has, or a place to which transformers moved a key.
OURS = {"attention_output_bias", "qk_norm", "rope_theta", "rope_scaling"}
# Ours: (kind of layer, key) of transformers' rotary settings.
ROPE = {
    "rope_theta": ("full_attention", "rope_theta"),
    "rope_scaling": ("full_attention", "rope_type"),
    "rope_local_base_freq": ("sliding_attention", "rope_theta"),
    "rope_local_scaling": ("sliding_attention", "rope_type"),
}
# Keys that do not change what is computed here: training, initial values, generation,
# output format, other tasks' heads.
INERT = set(transformers.PretrainedConfig().to_dict()) | {
    "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "bos_token_id", "classifier_dropout",
    "classifier_dropout_prob", "dropout", "dropout_rate", "embd_pdrop", "encoder_stride", "eos_token_id",
    "hidden_dropout_prob", "initializer_factor", "initializer_range", "pad_token_id", "pooler_act",
    "pooler_output_size", "pretraining_tp", "qa_dropout", "resid_pdrop", "seq_classif_dropout", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "use_cache",
}  # fmt: skip
# Keys that are read, honoured or refused in another way than by a field of ours of that
# name; each has a test.
ELSEWHERE = {
    "bert": {"tie_word_embeddings"},  # of its masked-language head
    "roberta": {"tie_word_embeddings"},
    "albert": {"tie_word_embeddings"},
    "distilbert": {
        "tie_word_embeddings",
        "sinusoidal_pos_embds",
    },  # the table is stored all the same
    # of pretraining, and of backbones for other tasks
    "dinov2": {
        "apply_layernorm",
        "drop_path_rate",
        "out_features",
        "out_indices",
        "reshape_hidden_states",
        "stage_names",
        "use_mask_token",
    },
    "gemma3_text": {
        "_sliding_window_pattern",  # written beside layer_types, not read
        "attn_logit_softcapping",
        "rope_parameters",
        "use_bidirectional_attention",
    },
    "gpt2": {"reorder_and_upcast_attn"},  # the order of a product; softmax is f32 here
    "llama": {"rope_parameters"},
    "mistral": {"rope_parameters"},
    "qwen2": {"rope_parameters", "use_sliding_window", "max_window_layers"},
    "qwen3": {"rope_parameters", "use_sliding_window", "max_window_layers"},
    "t5": {"is_decoder", "dense_act_fn", "is_gated_act"},  # from feed_forward_proj
    # of training and generation; transformers reads scale_embedding and does nothing
    "whisper": {
        "activation_dropout",
        "apply_spec_augment",
        "begin_suppress_tokens",
        "decoder_layerdrop",
        "encoder_layerdrop",
        "init_std",
        "mask_feature_length",
        "mask_feature_min_masks",
        "mask_feature_prob",
        "mask_time_length",
        "mask_time_min_masks",
        "mask_time_prob",
        "median_filter_width",
        "scale_embedding",
        "suppress_tokens",
    },
    "clip_text_model": {"projection_dim"},
    "clip_vision_model": {"projection_dim"},
}


@functools.cache
def ours(family: str):
    if family in TOWERS:
        return getattr(ours("clip"), TOWERS[family])
    return nnx.eval_shape(lambda: models.from_config({"model_type": family})).config


@functools.cache
def theirs(family: str):
    return transformers.CONFIG_MAPPING[family]()


def keys():
    """All (family, field of our configuration)."""
    found = []
    for family in (*FAMILIES, *TOWERS, "clip"):
        for field in dataclasses.fields(ours(family)):
            found.append(pytest.param(family, field.name, id=f"{family}-{field.name}"))
    return found


@pytest.mark.parametrize(("family", "key"), keys())
def test_a_key_that_is_not_there_means_what_it_means_in_transformers(
    family: str, key: str
):
    found = getattr(ours(family), key)
    if key in TOWERS.values():
        return  # compared key by key above
    if family == "gemma3_text" and key in ROPE:
        kind, name = ROPE[key]
        expected = theirs(family).rope_parameters[kind][name]
        assert found == (None if expected == "default" else expected)
    elif key == "rope_theta":
        assert found == theirs(family).rope_parameters["rope_theta"]
    elif key == "rope_scaling":
        assert (found, theirs(family).rope_parameters["rope_type"]) == (None, "default")
    elif key in OURS:
        assert found in (True, False)  # test_published_forms compares logits
    elif (family, key) == ("qwen2", "attention_bias"):
        assert found is True  # of q, k and v; transformers has no key for it
    elif key == "head_dim" and not hasattr(theirs(family), key):
        assert found == theirs(family).hidden_size // theirs(family).num_attention_heads
    elif not hasattr(theirs(family), key):
        assert found in (
            None,
            False,
        )  # a key of another family of decoders, not read for this one
    elif key == "n_inner":
        assert (found, theirs(family).n_inner) == (4 * ours(family).n_embd, None)
    elif key == "layer_types":
        assert found is None or list(found) == theirs(family).layer_types
    elif (family, key) == ("t5", "decoder_start_token_id"):
        assert (
            found == theirs(family).pad_token_id
        )  # there it has no default, and T5's is the padding
    else:
        assert found == getattr(theirs(family), key)


@pytest.mark.parametrize("family", [*FAMILIES, *TOWERS])
def test_every_key_of_transformers_is_read_or_changes_nothing(family: str):
    known = {field.name for field in dataclasses.fields(ours(family))}
    unknown = (
        set(theirs(family).to_dict())
        - known
        - INERT
        - ELSEWHERE.get(family, set())
        - {"model_type"}
    )
    assert not unknown


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"num_attention_heads": 16}, {"head_dim": 256, "num_key_value_heads": 16}),
        (
            {"num_attention_heads": 16, "num_key_value_heads": None, "head_dim": None},
            {"num_key_value_heads": 16},
        ),
        ({"num_attention_heads": 16, "hidden_size": 1024}, {"head_dim": 64}),
    ],
)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_sizes_that_follow_from_others(family: str, sizes: dict, expected: dict):
    # What transformers refuses as null is left out.
    never_null = {"qwen3": "head_dim", "mistral": "num_key_value_heads"}.get(family)
    sizes = {
        name: value
        for name, value in sizes.items()
        if value is not None or name != never_null
    }
    theirs = transformers.CONFIG_MAPPING[family](**sizes)
    fields = {"model_type": family, "num_hidden_layers": 2, **sizes}
    if (
        theirs.num_attention_heads % theirs.num_key_value_heads
    ):  # Qwen's default of 32 where there are 16 heads
        with pytest.raises(
            ValueError, match="is not a multiple of num_key_value_heads=32"
        ):
            models.from_config(fields)
        return
    found = nnx.eval_shape(lambda: models.from_config(fields)).config
    for name in expected:
        default = (
            theirs.hidden_size // theirs.num_attention_heads
            if name == "head_dim"
            else None
        )
        assert getattr(found, name) == getattr(theirs, name, default)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_those_of_transformers(name: str):
    import numpy as np
    import torch
    from transformers.activations import ACT2FN

    x = np.linspace(-8, 8, 101).astype(np.float32)
    np.testing.assert_allclose(
        ACTIVATIONS[name](x), ACT2FN[name](torch.tensor(x)).numpy(), atol=1e-5
    )


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_keys_of_other_families_are_not_read(family: str):
    """transformers does not read these for that family, so a file with them computes
    the same as without.
    """
    unread = {
        "qk_norm": True,
        "mlp_bias": True,
        "layer_types": None,
        "attention_output_bias": True,
    }
    if family == "llama":
        unread = {"qk_norm": True, "sliding_window": 16, "attention_output_bias": True}
    config = nnx.eval_shape(
        lambda: models.from_config(
            {"model_type": family, "num_hidden_layers": 2, **unread}
        )
    ).config
    plain = nnx.eval_shape(
        lambda: models.from_config({"model_type": family, "num_hidden_layers": 2})
    ).config
    assert config == plain
