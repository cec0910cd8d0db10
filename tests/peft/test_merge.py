"""Adapters into the weights and out again."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models, peft
from fedjax_fm.models.quantized import Q4Linear
from fedjax_fm.peft.lora import LoRALinear
from fedjax_fm.peft.lora_sb import lora_xs

METHODS = {
    "lora": peft.lora(2, 6, targets=["query", "value"]),
    "rslora": peft.lora(3, targets=["output.dense"], use_rslora=True),
    "shared": peft.lora(2, targets=["query"], share_a=True),
    "dora": peft.dora(2, targets=["query", "intermediate.dense"]),
    "lora-xs": lora_xs(2, targets=["query"]),
    "ia3": peft.ia3(),
    "ia3 of lora": peft.combine(
        peft.ia3(), peft.lora(2, targets=["key", "output.dense"])
    ),
    "lora beside ia3": peft.combine(peft.lora(2, targets=["key"]), peft.ia3()),
    "lora on a layer": peft.on_layers(peft.lora(2, targets=["query"]), [1]),
    "lora and prefix": peft.combine(
        peft.lora(2, targets=["query"]), peft.prefix_tuning(2), peft.bitfit()
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_merged_computes_the_same_and_unmerged_has_the_weights_back(
    name, bert, text, run, shaken, by_path
):
    graphdef, delta, backbone = peft.apply(bert, METHODS[name])
    adapted = nnx.merge(graphdef, shaken(delta, 0.2), backbone)
    merged = peft.merge(adapted)
    graph, state = nnx.split(merged)
    adapted_graph, adapted_state = nnx.split(adapted)
    nothing = nnx.State({})
    expected = run((adapted_graph, adapted_state, nothing), *text)
    np.testing.assert_allclose(run((graph, state, nothing), *text), expected, atol=1e-5)
    assert np.abs(expected - bert(*text)).max() > 1e-3
    if name in ("lora", "dora", "ia3", "ia3 of lora", "lora beside ia3"):
        assert by_path(state).keys() == by_path(nnx.state(bert)).keys()
    back = by_path(nnx.state(peft.unmerge(merged, adapted)))
    before = by_path(nnx.state(adapted))
    assert back.keys() == before.keys()
    for path, leaf in before.items():
        np.testing.assert_allclose(back[path], leaf, atol=2e-6, err_msg=path)


def test_unmerging_carries_over_what_was_trained_after_merging(net, shaken):
    adapted = nnx.merge(*peft.apply(net, peft.lora(2, targets=["blocks.0"])))
    adapted.blocks[0].lora_b[...] += 1.0
    merged = peft.merge(adapted)
    merged.blocks[0].kernel[...] += 0.5
    merged.norm.bias[...] += 0.25
    back = peft.unmerge(merged, adapted)
    np.testing.assert_allclose(
        back.blocks[0].base.kernel[...], net.blocks[0].kernel[...] + 0.5, atol=1e-6
    )
    np.testing.assert_allclose(
        back.norm.bias[...], net.norm.bias[...] + 0.25, atol=1e-6
    )


def test_quantised_weights_cannot_be_merged():
    config = models.LlamaConfig(
        vocab_size=11,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )

    def linear(n_in, n_out, bias, rngs):
        return Q4Linear(n_in, n_out)

    model = models.LlamaForCausalLM(config, nnx.Rngs(0), linear=linear)
    adapted = nnx.merge(*peft.apply(model, peft.lora(2, targets=["q_proj"])))
    with pytest.raises(
        ValueError, match=r"q_proj.base: Q4Linear has quantised weights"
    ):
        peft.merge(adapted)
    with pytest.raises(ValueError, match="dense kernel, got Q4Linear"):
        peft.apply(model, peft.dora(2, targets=["q_proj"]))


def test_a_method_that_does_not_say_how_it_merges_is_refused(net):
    class Doubled(LoRALinear):
        def update(self, x):
            return 2 * super().update(x)

    adapted = nnx.merge(*peft.apply(net, peft.lora(2, targets="blocks", kind=Doubled)))
    with pytest.raises(ValueError, match="Doubled does not say how it is merged"):
        peft.merge(adapted)


def test_merging_in_half_precision_rounds_once(net):
    half = nnx.clone(net)
    for block in half.blocks:
        block.kernel = nnx.Param(block.kernel[...].astype(jnp.bfloat16))
    adapted = nnx.merge(*peft.apply(half, peft.lora(2, targets="blocks")))
    adapted.blocks[0].lora_b[...] += 0.1
    merged = peft.merge(adapted)
    exact = half.blocks[0].kernel[...].astype(jnp.float32) + adapted.blocks[0].product()
    assert merged.blocks[0].kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        merged.blocks[0].kernel[...], exact.astype(jnp.bfloat16)
    )
