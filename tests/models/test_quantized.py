"""Q4_1 blocks: the library's numbers, dense results, LoRA beside them, and what they
cost in memory.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models, peft
from fedjax_fm.models.quantized import Q4Linear, dequantize, split_blocks
from fedjax_fm.trees import nbytes

gguf = pytest.importorskip("gguf")
Q4_1 = gguf.GGMLQuantizationType.Q4_1


def packed(seed: int, n_out: int, n_in: int) -> tuple[Q4Linear, np.ndarray]:
    """(module, its weights f32[out, in] by the library)."""
    raw = gguf.quants.quantize(
        np.random.default_rng(seed).normal(size=(n_out, n_in)).astype(np.float32), Q4_1
    )
    linear = Q4Linear(n_in, n_out)
    for name, array in zip(
        ("codes", "scales", "minima"), split_blocks(raw), strict=True
    ):
        setattr(linear, name, getattr(linear, name).replace(jnp.asarray(array)))
    return linear, gguf.quants.dequantize(raw, Q4_1)


def test_blocks_become_the_numbers_of_the_library():
    raw = np.random.default_rng(0).integers(0, 256, (3, 7, 40), np.uint8)
    raw[..., [1, 3, 21, 23]] &= 0x3F  # the high bytes of the f16 halves: finite
    codes, scales, minima = split_blocks(raw)
    assert (codes.shape, scales.shape, minima.dtype) == (
        (3, 7, 2, 16),
        (3, 7, 2),
        np.float16,
    )
    np.testing.assert_array_equal(
        dequantize(codes, scales, minima), gguf.quants.dequantize(raw, Q4_1)
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_forward_and_gradient_equal_the_dense_layer(dtype):
    linear, weights = packed(0, 24, 64)
    dense = jnp.asarray(weights, dtype)
    x = jax.random.normal(jax.random.key(0), (5, 3, 64), dtype)
    y = linear(x)
    assert (y.shape, y.dtype) == ((5, 3, 24), dtype)
    tolerance = 1e-4 if dtype == jnp.float32 else 0.1
    np.testing.assert_allclose(
        np.asarray(y, np.float32), np.asarray(x @ dense.T, np.float32), atol=tolerance
    )
    found = jax.jit(jax.grad(lambda x: jnp.sin(linear(x)).sum().astype(jnp.float32)))(x)
    expected = jax.jit(
        jax.grad(lambda x: jnp.sin(x @ dense.T).sum().astype(jnp.float32))
    )(x)
    np.testing.assert_allclose(
        np.asarray(found, np.float32),
        np.asarray(expected, np.float32),
        atol=5 * tolerance,
    )


def test_lora_sits_beside_it_as_beside_a_dense_layer():
    linear, weights = packed(1, 24, 64)
    dense = nnx.Linear(64, 24, use_bias=False, rngs=nnx.Rngs(0))
    dense.kernel[...] = jnp.asarray(weights.T)

    class Holder(nnx.Module):
        def __init__(self, inner):
            self.q_proj = inner

    x = jax.random.normal(jax.random.key(0), (5, 64))
    outputs, shapes = [], []
    for inner in (linear, dense):
        graphdef, delta, backbone = peft.apply(
            Holder(inner), peft.lora(rank=4, targets="q_proj")
        )
        np.testing.assert_array_equal(
            nnx.merge(graphdef, delta, backbone).q_proj(x), inner(x)
        )
        moved = jax.tree.map(lambda leaf: leaf + 0.1, delta)
        outputs.append(nnx.merge(graphdef, moved, backbone).q_proj(x))
        shapes.append([leaf.shape for leaf in jax.tree.leaves(delta)])
    assert shapes == [[(64, 4), (4, 24)]] * 2
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-4)
    with pytest.raises(
        ValueError, match=r"rank=25 exceeds the smaller side of q_proj \(64 x 24\)"
    ):
        peft.apply(Holder(linear), peft.lora(rank=25, targets="q_proj"))


def test_blocks_are_never_trained():
    linear, _ = packed(2, 24, 64)
    assert not jax.tree.leaves(nnx.state(linear, nnx.Param))
    assert len(jax.tree.leaves(nnx.state(linear))) == 3


def test_rows_that_are_no_blocks():
    with pytest.raises(ValueError, match="multiple of 32, got 48"):
        Q4Linear(48, 8)
    with pytest.raises(ValueError, match=r"20-byte blocks, got uint8\[3, 41\]"):
        split_blocks(np.zeros((3, 41), np.uint8))
    with pytest.raises(ValueError, match="got float32"):
        split_blocks(np.zeros((3, 40), np.float32))


def config(layers: int) -> models.LlamaConfig:
    return models.LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="module")
def blocks(random_llama):
    """layers -> a model whose matrices are random blocks."""
    return lambda layers: random_llama(
        config(layers), linear=lambda n_in, n_out, bias, rngs: Q4Linear(n_in, n_out)
    )


def test_vmap_over_adapters_shares_the_blocks(blocks, noisy_copies):
    graphdef, delta, backbone = peft.apply(
        blocks(2), peft.lora(rank=4, targets=["q_proj", "v_proj"])
    )
    deltas = noisy_copies(delta, 3, 0.1)
    ids = np.random.default_rng(1).integers(0, 64, (3, 2, 9)).astype(np.int32)

    def loss(delta, backbone, ids):
        return models.next_token_losses(nnx.merge(graphdef, delta, backbone), ids)[
            0
        ].sum()

    together = jax.jit(jax.vmap(loss, (0, None, 0)))(deltas, backbone, ids)
    alone = [
        jax.jit(loss)(jax.tree.map(lambda x: x[i], deltas), backbone, ids[i])  # noqa: B023
        for i in range(3)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert np.std(alone) > 0.01


def test_the_backward_pass_holds_no_dense_copy_of_the_layers(blocks):
    """A gradient through 24 layers may not keep 24 unpacked layers."""
    graphdef, delta, backbone = peft.apply(
        blocks(24), peft.lora(rank=2, targets="q_proj")
    )

    def loss(d, b, ids):
        return models.next_token_losses(nnx.merge(graphdef, d, b), ids)[0].sum()

    step = (
        jax.jit(jax.grad(loss))
        .lower(delta, backbone, np.zeros((1, 4), np.int32))
        .compile()
    )
    temporary = step.memory_analysis().temp_size_in_bytes
    dense = 24 * 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256)
    print(
        f"temporary {temporary} bytes; all layers unpacked are {dense}, packed {dense * 5 // 32}"
    )
    assert temporary < 0.5 * dense


def logits(graphdef, state, batch) -> np.ndarray:
    return np.asarray(jax.jit(lambda state: nnx.merge(graphdef, state)(**batch))(state))


def test_real_blocks_equal_the_dense_weights(smollm2, smollm2_file, smollm2_chat):
    texts = ["The capital of France is Paris.", "In 1969, two men walked on the moon."]
    batch = models.pad_prompts(
        [smollm2_chat.tokenizer.encode(text).ids for text in texts], 2
    )
    blocks = smollm2_file.model(frozen="q4_1")
    expected, found = (logits(*nnx.split(model), batch) for model in (smollm2, blocks))
    difference = np.abs(found - expected)[batch["attention_mask"] == 1].max()
    print(f"largest logit difference {difference:.1e}")
    assert difference < 2e-4  # rounding; 1.03e-4 was seen


def test_bytes_of_the_real_backbone(smollm2_file):
    """Embedding (28,311,552 weights) and norms stay dense; 106,168,320 weights of the
    layers take 5 bits each.
    """
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        for frozen in ("dense", "q4_1"):
            model = smollm2_file.model(dtype, frozen)
            backbone = peft.apply(
                model, peft.lora(rank=8, targets=["q_proj", "v_proj"])
            )[2]
            found[jnp.dtype(dtype).name, frozen] = nbytes(backbone)
    matrices, others = 106_168_320, 134_515_008 - 106_168_320
    assert found == {
        ("float32", "dense"): 4 * (matrices + others),  # 538,060,032
        ("bfloat16", "dense"): 2 * (matrices + others),  # 269,030,016
        ("float32", "q4_1"): matrices * 5 // 8 + 4 * others,  # 179,741,952
        ("bfloat16", "q4_1"): matrices * 5 // 8 + 2 * others,  # 123,048,576
    }
