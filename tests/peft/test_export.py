"""Whole models under Hugging Face's names: transformers and `from_pretrained` read them back."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models, peft
from fedjax_fm.models.families import from_config

SMALL = {
    "bert": dict(
        vocab_size=31, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16,
    ),
    "llama": dict(
        vocab_size=31, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=12, max_position_embeddings=16, tie_word_embeddings=False,
    ),
    "gpt2": dict(vocab_size=31, n_embd=8, n_layer=2, n_head=2, n_positions=16),
    "t5": dict(vocab_size=31, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_decoder_layers=2, num_heads=2),
    "vit": dict(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=8, patch_size=4
    ),
}  # fmt: skip
IDS = np.array([[3, 9, 4, 7, 1, 2], [5, 8, 8, 2, 6, 3]])


def small(family, num_labels=None):
    fields = {"model_type": family, **SMALL[family]}
    return from_config(fields, num_labels=num_labels), fields


@pytest.mark.parametrize("family", SMALL)
def test_what_is_saved_is_read_back_bit_for_bit(family, tmp_path, by_path):
    model, fields = small(family)
    peft.save_merged(tmp_path, model, fields)
    before, after = (
        by_path(nnx.state(m)) for m in (model, models.from_pretrained(tmp_path))
    )
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        np.testing.assert_array_equal(leaf, after[path], err_msg=path)


@pytest.mark.parametrize(
    ("family", "kind"), [("bert", "BertModel"), ("llama", "LlamaForCausalLM")]
)
def test_transformers_reads_a_tuned_model(family, kind, tmp_path, shaken, run):
    transformers, torch = (
        pytest.importorskip("transformers"),
        pytest.importorskip("torch"),
    )
    model, fields = small(family)
    targets = ["query"] if family == "bert" else ["q_proj"]
    method = peft.combine(
        peft.lora(2, targets=targets),
        peft.on_layers(peft.by_path(lambda p: "orm" in p), [1], modules_to_save=()),
    )
    graphdef, delta, backbone = peft.apply(model, method)
    parts = graphdef, shaken(delta, 0.5), backbone
    peft.save_merged(tmp_path, nnx.merge(*parts), fields)
    reference = getattr(transformers, kind).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor(IDS))[0].numpy()
    np.testing.assert_allclose(run(parts, jnp.asarray(IDS)), expected, atol=1e-5)


def test_adapters_of_other_kinds_are_refused(tmp_path):
    model, fields = small("llama")
    for method, where in (
        (peft.prefix_tuning(2), "self_attn.prefix"),
        (peft.houlsby(2), "o_proj"),
    ):
        with pytest.raises(
            ValueError, match=f"no place in a model's own files: .*{where}"
        ):
            peft.save_merged(tmp_path, nnx.merge(*peft.apply(model, method)), fields)
    with pytest.raises(ValueError, match="Linear has no counterpart"):
        peft.save_merged(tmp_path, nnx.Linear(2, 2, rngs=nnx.Rngs(0)), {})
