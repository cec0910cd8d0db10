"""Every field of PEFT's configurations: honoured with equal logits both ways, without a
say, or refused by name.
"""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx
from peft_pairs import make_pair, opened_by_peft, ours, peft_adapter, theirs

from fedjax_fm import peft

pytest.importorskip("torch")
pytest.importorskip("transformers")
hugging_face = pytest.importorskip("peft")

# field: values that PEFT and we must agree on, in words of LoraConfig
HONOURED = {
    "r": [{"r": 3}],
    "lora_alpha": [{"lora_alpha": 5}],
    "lora_dropout": [{"lora_dropout": 0.3}],
    "use_rslora": [{"use_rslora": True, "r": 4}],
    "use_dora": [{"use_dora": True}],
    "rank_pattern": [
        {"rank_pattern": {"q_proj": 3}},
        {
            "rank_pattern": {
                "^model.layers.1.self_attn.q_proj": 4,
                r".*layers\.2.*v_proj": 1,
            }
        },
        {"rank_pattern": {"q_proj": 3}, "use_rslora": True},
        {"rank_pattern": {"layers.0.self_attn.v_proj": 3}, "use_dora": True},
    ],
    "alpha_pattern": [
        {"alpha_pattern": {"v_proj": 7}},
        {
            "alpha_pattern": {r"layers\.[01]\..*v_proj": 7},
            "rank_pattern": {"v_proj": 1},
        },
    ],
    "target_modules": [
        {"target_modules": ["self_attn.q_proj", "down_proj"]},
        {"target_modules": r".*\.layers\.[12]\..*(q_proj|up_proj)"},
        {
            "target_modules": [
                "model.layers.1.self_attn.q_proj",
                "model.layers.0.mlp.up_proj",
            ]
        },
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "of_another_family"]},
    ],
    "exclude_modules": [
        {"exclude_modules": ["v_proj"]},
        {
            "exclude_modules": [
                "model.layers.0.self_attn.q_proj",
                "layers.2.self_attn.v_proj",
            ]
        },
        {"exclude_modules": r".*\.1\.self_attn\.v_proj"},
    ],
    "layers_to_transform": [
        {"layers_to_transform": [0, 2]},
        {"layers_to_transform": 1},
    ],
    "layers_pattern": [{"layers_to_transform": [2], "layers_pattern": "layers"}],
    "modules_to_save": [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["model.norm"]},
        {"modules_to_save": ["norm"]},
        {
            "modules_to_save": ["lm_head", "up_proj"],
            "target_modules": ["q_proj", "up_proj"],
        },
        {"modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    "trainable_token_indices": [
        {"trainable_token_indices": [5, 1, 30]},
        {"trainable_token_indices": {"embed_tokens": [2, 3]}},
    ],
    "init_lora_weights": [
        {"init_lora_weights": value} for value in (False, "gaussian", "orthogonal")
    ],
    "ensure_weight_tying": [
        {"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]}
    ],
}
# field: a value in adapter_config.json that changes nothing for a stored adapter
INERT = {
    "task_type": None,
    "peft_type": "LORA",
    "auto_mapping": {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers",
    },
    "peft_version": "0.1.0",
    "base_model_name_or_path": "somewhere",
    "revision": "main",
    "inference_mode": False,
    "fan_in_fan_out": True,
    "megatron_core": "another.core",
    "qalora_group_size": 8,
    "loftq_config": {"loftq_bits": 4, "loftq_iter": 1},
    "eva_config": {"rho": 1.5},
    "corda_config": {"cache_file": "a"},
    "lora_ga_config": {"stable_gamma": 8},
    "runtime_config": {"ephemeral_gpu_offload": False},
}
# field: values that would change the outputs
REFUSED = {
    "bias": ["all", "lora_only"],
    "megatron_config": [{"a": 1}],
    "velora_config": [{"num_groups": 2}],
    "alora_invocation_tokens": [[1, 2]],
    "use_qalora": [True],
    "monteclora_config": [{"num_samples": 2}],
    "layer_replication": [[[0, 2], [1, 3]]],
    "lora_bias": [True],
    "target_parameters": [["mlp.up_proj.weight"]],
    "use_bdlora": [{"nblocks": 2}],
    "arrow_config": [{"top_k": 2}],
    "kasa_config": [{"alpha": 1.0}],
    "init_lora_weights": [
        "pissa",
        "pissa_niter_16",
        "olora",
        "corda",
        "loftq",
        "lora_ga",
        "mica",
    ],
    "a_field_of_tomorrow": [True, {"b": 1}],
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_pair("llama", tmp_path_factory.mktemp("llama"))


def config_of(**fields):
    kept = {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        **fields,
    }
    return hugging_face.LoraConfig(**kept)


def test_the_table_has_every_field_of_lora_config():
    fields = {field.name for field in dataclasses.fields(hugging_face.LoraConfig)}
    assert (HONOURED.keys() | INERT.keys() | REFUSED.keys()) - {
        "a_field_of_tomorrow"
    } == fields


@pytest.mark.compatibility
@pytest.mark.parametrize(
    ("field", "fields"),
    [(field, value) for field in HONOURED for value in HONOURED[field]],
    ids=str,
)
def test_a_field_is_honoured_both_ways(field, fields, llama, tmp_path, compatibility):
    adapted = peft_adapter(llama, config_of(**fields), tmp_path / "theirs")
    expected = theirs(adapted)
    parts = peft.load_pretrained(tmp_path / "theirs", llama.model)
    np.testing.assert_allclose(ours(parts), expected, atol=1e-4)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert sum(leaf.size for leaf in nnx.to_flat_state(parts[1]).leaves) == trained
    peft.save_pretrained(tmp_path / "ours", *parts)
    np.testing.assert_allclose(
        theirs(opened_by_peft(llama, tmp_path / "ours")), expected, atol=1e-4
    )
    np.testing.assert_allclose(
        ours(peft.load_pretrained(tmp_path / "ours", llama.model)), expected, atol=1e-4
    )
    compatibility.works("PEFT fields", field)


@pytest.fixture(scope="module")
def stored(llama, tmp_path_factory):
    """A plain adapter as PEFT stores it, and its logits."""
    folder = tmp_path_factory.mktemp("stored")
    expected = theirs(peft_adapter(llama, config_of(), folder))
    return folder, expected


def changed(folder, **fields):
    path = folder / "adapter_config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | fields))
    return before


@pytest.mark.compatibility
@pytest.mark.parametrize("field", INERT)
def test_a_field_has_no_say_in_a_stored_adapter(field, llama, stored, compatibility):
    folder, expected = stored
    before = changed(folder, **{field: INERT[field]})
    try:
        np.testing.assert_allclose(
            ours(peft.load_pretrained(folder, llama.model)), expected, atol=1e-4
        )
        if field != "runtime_config":  # which PEFT never stores
            np.testing.assert_allclose(
                theirs(opened_by_peft(llama, folder)), expected, atol=1e-4
            )
    finally:
        (folder / "adapter_config.json").write_text(before)
    compatibility.works("PEFT fields", field, "changes nothing")


@pytest.mark.compatibility
@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field in REFUSED for value in REFUSED[field]],
    ids=str,
)
def test_a_field_that_would_change_the_outputs_is_refused_by_name(
    field, value, llama, stored, compatibility
):
    folder, _ = stored
    before = changed(folder, **{field: value})
    try:
        with pytest.raises(
            peft.AdapterError, match=f"not supported: .*'{field}'"
        ) as raised:
            peft.load_pretrained(folder, llama.model)
    finally:
        (folder / "adapter_config.json").write_text(before)
    if field != "a_field_of_tomorrow":
        compatibility.refused("PEFT fields", field, raised, str(value))


OTHERS = {
    "IA3Config": {
        "honoured": {
            "target_modules",
            "exclude_modules",
            "feedforward_modules",
            "modules_to_save",
        }
    },
    "PromptTuningConfig": {"honoured": {"num_virtual_tokens", "modules_to_save"}},
    "PrefixTuningConfig": {"honoured": {"num_virtual_tokens", "modules_to_save"}},
}


@pytest.mark.parametrize("kind", ["LoraConfig", *OTHERS])
def test_what_is_known_of_a_configuration_is_all_of_its_fields(kind):
    from fedjax_fm.peft.peft_fields import KNOWN

    config = getattr(hugging_face, kind)(
        **({"num_virtual_tokens": 2} if kind.startswith("Pr") else {})
    )
    known = KNOWN[config.peft_type.value]
    fields = {field.name for field in dataclasses.fields(config)}
    assert set(known.honoured) | known.inert.keys() | known.limited.keys() == fields
    assert not set(known.honoured) & known.inert.keys()
    assert not (set(known.honoured) | known.inert.keys()) & known.limited.keys()


IA3 = {
    "target_modules": {
        "target_modules": ["k_proj", "up_proj"],
        "feedforward_modules": [],
    },
    "exclude_modules": {"exclude_modules": ["v_proj"]},
    "feedforward_modules": {
        "target_modules": ["v_proj", "up_proj", "down_proj"],
        "feedforward_modules": ["up_proj"],
    },
    "modules_to_save": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.compatibility
@pytest.mark.parametrize("field", IA3)
def test_a_field_of_ia3_is_honoured_both_ways(field, llama, tmp_path, compatibility):
    config = hugging_face.IA3Config(task_type="CAUSAL_LM", **IA3[field])
    expected = theirs(peft_adapter(llama, config, tmp_path / "theirs"))
    parts = peft.load_pretrained(tmp_path / "theirs", llama.model)
    np.testing.assert_allclose(ours(parts), expected, atol=1e-4)
    peft.save_pretrained(tmp_path / "ours", *parts)
    np.testing.assert_allclose(
        theirs(opened_by_peft(llama, tmp_path / "ours")), expected, atol=1e-4
    )
    compatibility.works("PEFT fields", f"IA3Config.{field}")


VIRTUAL = {
    "prompt": (hugging_face.PromptTuningConfig, {"modules_to_save": ["lm_head"]}),
    "sampled prompt": (
        hugging_face.PromptTuningConfig,
        {"prompt_tuning_init": "SAMPLE_VOCAB"},
    ),
    "prefix": (hugging_face.PrefixTuningConfig, {"modules_to_save": ["lm_head"]}),
    "projected prefix": (
        hugging_face.PrefixTuningConfig,
        {"prefix_projection": True, "encoder_hidden_size": 5},
    ),
    "zero prefix": (hugging_face.PrefixTuningConfig, {"init_weights": "zero"}),
}


@pytest.mark.parametrize("name", VIRTUAL)
def test_fields_of_prompts_and_prefixes(name, llama, tmp_path):
    kind, fields = VIRTUAL[name]
    adapted = peft_adapter(
        llama, kind(task_type="CAUSAL_LM", num_virtual_tokens=3, **fields), tmp_path
    )
    expected = theirs(adapted)[:, -7:]
    np.testing.assert_allclose(
        ours(peft.load_pretrained(tmp_path, llama.model)), expected, atol=1e-4
    )
    changed(tmp_path, num_transformer_submodules=2)
    with pytest.raises(peft.AdapterError, match="num_transformer_submodules"):
        peft.load_pretrained(tmp_path, llama.model)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "rank_pattern": {"layers.1.self_attn.q_proj": 4},
            "alpha_pattern": {"v_proj": 7},
        },
        {"exclude_modules": ["layers.0.self_attn.q_proj"], "use_rslora": True},
        {"target_modules": "all-linear", "modules_to_save": ["norm"]},
        {
            "trainable_token_indices": [3, 4],
            "use_dora": True,
            "layers_to_transform": [1],
        },
    ],
    ids=str,
)
def test_a_configuration_of_pefts_makes_the_adapter_that_peft_makes(
    fields, llama, tmp_path, shaken
):
    """In PEFT's own words, from the first step on; the numbers that are trained are as
    many, and PEFT reads them.
    """
    config = config_of(**fields)
    graphdef, delta, backbone = peft.apply(llama.model, peft.lora_from_config(config))
    adapted = hugging_face.get_peft_model(llama.reference(), config_of(**fields))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert sum(leaf.size for leaf in nnx.to_flat_state(delta).leaves) == trained
    parts = graphdef, shaken(delta, 0.3), backbone
    peft.save_pretrained(tmp_path, *parts)
    np.testing.assert_allclose(
        theirs(opened_by_peft(llama, tmp_path)), ours(parts), atol=1e-4
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"init_lora_weights": "gaussian"},
            "init_lora_weights='gaussian' is not supported for a new adapter",
        ),
        ({"bias": "all"}, "'bias': 'all'"),
        ({"target_modules": None}, "target_modules=None: expected the names"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused_at_once(fields, message):
    with pytest.raises(peft.AdapterError, match=message):
        peft.lora_from_config(config_of(**fields).to_dict())


@pytest.mark.parametrize(
    "field", ["target_modules", "exclude_modules", "modules_to_save"]
)
def test_a_name_that_nothing_has_is_refused_in_a_new_adapter(field, llama):
    good = {
        "target_modules": "q_proj",
        "exclude_modules": "v_proj",
        "modules_to_save": "norm",
    }[field]
    with pytest.raises(ValueError, match=rf"{field}=\['valeu'\] match no"):
        peft.apply(
            llama.model, peft.lora_from_config(config_of(**{field: [good, "valeu"]}))
        )


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_nothing_has_is_refused_in_a_new_adapter(field, llama):
    with pytest.raises(
        ValueError, match=rf"{field}=\['valeu'\] match no adapted layer"
    ):
        peft.apply(
            llama.model,
            peft.lora_from_config(config_of(**{field: {"q_proj": 3, "valeu": 3}})),
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("r", True),
        ("r", "8"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", "16"),
        ("lora_dropout", 1.0),
        ("use_rslora", "false"),
        ("use_dora", 1),
        ("rank_pattern", {"q_proj": 1.5}),
        ("alpha_pattern", {"q_proj": None}),
    ],
)
def test_numbers_that_are_none_are_refused_at_once(field, value):
    shown = next(iter(value.values())) if isinstance(value, dict) else value
    with pytest.raises((TypeError, ValueError), match=f"{field}={shown!r}"):
        peft.lora_from_config({"target_modules": ["q_proj"], field: value})
