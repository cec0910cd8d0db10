"""int8 and NF4 blocks: numpy's and torch's numbers, bytes, rounds over them, and what
is refused.
"""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_models as reference
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models, peft
from fedjax_fm.models.architectures import ARCHITECTURES
from fedjax_fm.models.families import from_config
from fedjax_fm.models.low_bits import FORMATS
from fedjax_fm.models.quantized import Frozen
from fedjax_fm.trees import nbytes

IN, OUT = 128, 24


def nf4_levels() -> np.ndarray:
    """From the quantiles of N(0, 1), as QLoRA's authors make them."""
    quantile, offset = NormalDist().inv_cdf, 0.9677083
    upper = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    lower = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    levels = np.sort([*upper, 0.0, *lower])
    return levels / levels.max()


class Holder(nnx.Module):
    """Two linear layers, one of them in a list of layers."""

    def __init__(self):
        self.layers = nnx.List([nnx.Linear(IN, OUT, rngs=nnx.Rngs(0))])
        self.out = nnx.Linear(OUT, 2, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.out(self.layers[0](x))


@pytest.fixture(scope="module")
def holder():
    model = Holder()
    model.layers[0].bias[...] = jnp.linspace(-1, 1, OUT)
    return model


def in_numpy(kernel: np.ndarray, kind: str) -> np.ndarray:
    blocks = kernel.T.reshape(OUT, -1, 64)
    scales = np.abs(blocks).max(-1, keepdims=True)
    if kind == "int8":
        return (np.round(blocks / scales * 127) * (scales / 127)).reshape(OUT, IN).T
    levels = nf4_levels().astype(np.float32)
    nearest = np.abs(blocks[..., None] / scales[..., None] - levels).argmin(-1)
    if kind == "nf4_double":
        flat, mean = scales.ravel(), scales.mean()
        step = np.abs(flat - mean).max() / 127  # 48 scales are one block
        scales = (np.round((flat - mean) / step) * step + mean).reshape(scales.shape)
    return (levels[nearest] * scales).reshape(OUT, IN).T


@pytest.mark.parametrize("kind", FORMATS)
def test_dense_again_they_are_what_numpy_and_torch_compute(holder, kind):
    torch = pytest.importorskip("torch")
    layer = models.quantize(holder, kind).layers[0]
    assert layer.linear_shape == (IN, OUT)
    assert layer.stored["codes"].shape == (
        (OUT, 2, 64) if kind == "int8" else (OUT, 2, 32)
    )
    kernel = np.asarray(layer.kernel())
    np.testing.assert_allclose(
        kernel,
        in_numpy(np.asarray(holder.layers[0].kernel[...]), kind),
        rtol=2e-6,
        atol=1e-7,
    )
    x = np.random.default_rng(0).normal(size=(3, 5, IN)).astype(np.float32)
    theirs = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.linear(
        theirs, torch.tensor(kernel.T), torch.tensor(np.asarray(layer.bias[...]))
    )
    torch.sin(y).sum().backward()
    np.testing.assert_allclose(layer(x), y.detach().numpy(), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: jnp.sin(layer(x)).sum()))(x)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-5)
    half = layer(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(half, np.float32), y.detach().numpy(), atol=0.1
    )


def test_a_weight_errs_by_half_a_step_at_most(holder):
    dense = np.asarray(holder.layers[0].kernel[...])
    largest = np.abs(dense.reshape(2, 64, OUT)).max(1, keepdims=True)
    widest = np.diff(nf4_levels()).max() / 2
    for kind, bound in (("int8", 0.5 / 127), ("nf4", widest)):
        found = np.asarray(models.quantize(holder, kind).layers[0].kernel())
        errors = np.abs(found - dense).reshape(2, 64, OUT) / largest
        assert errors.max() <= bound * (1 + 1e-5)
        assert errors.max() > bound / 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_of_a_backbone(kind, dtype):
    """SmolLM2-135M by shapes alone: 106,168,320 weights in the layers, 28,346,688 outside."""
    fields = dict(ARCHITECTURES["smollm2-135m"])
    shapes = nnx.eval_shape(
        lambda: models.quantize(from_config(fields, dtype=dtype), kind)
    )
    backbone = nnx.eval_shape(
        lambda: peft.apply(shapes, peft.lora(8, targets=["q_proj", "v_proj"]))[2]
    )
    layers, others = 106_168_320, 28_346_688
    n_scales = layers // 64  # 55,296 a layer: whole blocks of 256, matrix by matrix
    per_scale = {"int8": 4, "nf4": 4, "nf4_double": 1}[kind] * n_scales
    if kind == "nf4_double":
        matrices = [576 * 576, 192 * 576, 192 * 576, 576 * 576, *(3 * [576 * 1536])]
        per_scale += 30 * sum(4 * -(-m // 64 // 256) + 4 for m in matrices)
    codes = layers if kind == "int8" else layers // 2
    assert nbytes(backbone) == codes + per_scale + others * jnp.dtype(dtype).itemsize


CONFIG = models.LlamaConfig(
    vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=24, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
)  # fmt: skip


def tree_of(model, targets=("q_proj", "v_proj")):
    return peft.apply(model, peft.lora(4, targets=list(targets)))


def loss_of(graphdef):
    def loss(delta, backbone, ids):
        losses, mask = models.next_token_losses(
            nnx.merge(graphdef, delta, backbone), ids
        )
        return losses.sum(-1) / mask.sum(-1)

    return loss


@pytest.mark.parametrize("kind", ["int8", "nf4_double"])
def test_a_gradient_holds_no_dense_copy_of_the_layers(random_llama, kind):
    graphdef, delta, backbone = tree_of(models.quantize(random_llama(CONFIG), kind))
    loss = loss_of(graphdef)
    step = jax.jit(jax.grad(lambda *args: loss(*args).sum()))
    temporary = (
        step.lower(delta, backbone, np.zeros((1, 4), np.int32))
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )
    dense = 24 * 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256)
    print(
        f"{kind}: temporary {temporary} bytes; all layers dense {dense}, stored {nbytes(backbone)}"
    )
    assert temporary < dense / 8


def test_rounds_over_nf4_train_lora_and_leave_the_blocks_alone(
    random_llama, noisy_copies
):
    config = models.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )
    model = models.quantize(random_llama(config), "nf4")
    graphdef, delta, backbone = tree_of(model)
    before = jax.tree.map(np.array, backbone)
    rng, loss = np.random.default_rng(0), loss_of(graphdef)
    clients = [
        {"ids": np.tile(rng.integers(0, 64, (n, 3)), 3).astype(np.int32)}
        for n in (4, 2, 3, 4)
    ]
    simulator = ffm.Simulator(
        ffm.fedavg(
            ffm.Task(
                lambda delta, backbone, batch, key: (
                    loss(delta, backbone, batch["ids"]),
                    {},
                )
            ),
            optax.adam(3e-2),
            local_steps=2,
            batch_size=4,
        ),
        ffm.Population.from_clients(clients),
        backbone=backbone,
        cohort_size=4,
        block_size=4,
        devices=1,
    )
    state, metrics = simulator.run(simulator.init(delta), 8)
    assert metrics["loss"][-1] < 0.9 * metrics["loss"][0]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.delta))
    for old, new in zip(
        jax.tree.leaves(before), jax.tree.leaves(simulator.backbone), strict=True
    ):
        np.testing.assert_array_equal(old, new)

    # Each client with adapters of its own, over the blocks and over dense weights of
    # the same values.
    deltas = noisy_copies(state.delta, 3, 0.1)
    ids = rng.integers(0, 64, (3, 2, 9)).astype(np.int32)
    found, expected = (
        reference.quick_jit(jax.vmap(loss_of(parts[0]), (0, None, 0)))(
            deltas, parts[2], ids
        )
        for parts in (tree_of(model), tree_of(models.dequantize(model)))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.std(found) > 0.01


FAMILIES = {
    "albert": dict(
        vocab_size=31, embedding_size=16, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64,
    ),
    "bert": dict(vocab_size=31, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64),
    "dinov2": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1, image_size=8, patch_size=4),
    "distilbert": dict(vocab_size=31, dim=64, n_layers=2, n_heads=2, hidden_dim=64),
    "gpt2": dict(vocab_size=31, n_embd=64, n_layer=2, n_head=2, n_positions=16),
    "t5": dict(vocab_size=31, d_model=64, d_kv=32, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=2),
    "vit": dict(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=4
    ),
    "whisper": dict(
        d_model=64, encoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        num_mel_bins=4, max_source_positions=6,
    ),
}  # fmt: skip
INSIDE = {
    "albert": 6,
    "bert": 6,
    "dinov2": 6,
    "distilbert": 6,
    "gpt2": 4,
    "t5": 16,
    "vit": 6,
    "whisper": 6,
}  # linear layers of a layer


def random_model(fields):
    """A classifier with numpy's random numbers: drawing by jax.random compiles for every shape."""
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: from_config(fields, num_labels=2))
    )
    rng = np.random.default_rng(0)

    def draw(path, v):
        return v.replace(
            jnp.asarray((path[-1] == "scale") + 0.1 * rng.normal(size=v.shape), v.dtype)
        )

    return nnx.merge(
        graphdef,
        nnx.from_flat_state(
            [(path, draw(path, v)) for path, v in nnx.to_flat_state(state)]
        ),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_every_family_and_nothing_outside_of_them(family):
    model = random_model({"model_type": family, **FAMILIES[family]})
    found = models.quantize(model, "nf4")
    blocks = [
        path
        for path, _ in nnx.to_flat_state(nnx.state(found, Frozen))
        if path[-1] == "codes"
    ]
    assert len(blocks) == INSIDE[family]
    heads = {
        "pooler",
        "classifier",
        "pre_classifier",
        "classification_head",
        "score",
        "projection",
        "embeddings",
        "conv1",
        "conv2",
        "projector",
    }
    assert not any(set(map(str, path)) & heads for path in blocks)
    inputs = np.array([[3, 9, 4, 1], [5, 8, 2, 1]])
    if family in ("dinov2", "vit"):
        inputs = np.ones((2, 3, 8, 8), np.float32)
    elif family == "whisper":
        inputs = np.ones((2, 4, 12), np.float32)
    dense = models.dequantize(found)
    assert jax.tree.structure(nnx.state(dense)) == jax.tree.structure(nnx.state(model))
    forward = reference.quick_jit(
        lambda graphdef, state: nnx.merge(graphdef, state)(inputs), static_argnums=0
    )
    np.testing.assert_allclose(
        forward(*nnx.split(found)), forward(*nnx.split(dense)), atol=1e-5
    )


def test_what_would_train_blocks_is_refused(holder):
    model = models.quantize(holder, "nf4")
    for method in (
        peft.full(),
        peft.on_layers(peft.full(), [0]),
        peft.by_path(lambda path: path.startswith("layers")),
        peft.lora(2, targets="out", modules_to_save=["layers.0"]),
    ):
        with pytest.raises(
            ValueError,
            match=r"train quantised weights, which have no gradient \(.*codes",
        ):
            peft.apply(model, method)
    with pytest.raises(ValueError, match="dense kernel, got LowBitLinear"):
        peft.apply(model, peft.dora(2, targets="layers"))
    _, delta, _ = peft.apply(model, peft.bitfit(modules_to_save=["out"]))
    assert len(jax.tree.leaves(delta)) == 3


def test_unknown_kinds_and_odd_widths(holder, tiny_bert):
    with pytest.raises(
        ValueError, match="expected kind 'int8', 'nf4', 'nf4_double', got 'fp4'"
    ):
        models.quantize(holder, "fp4")
    with pytest.raises(
        ValueError, match="no dense linear layer to quantise, targets='query'"
    ):
        models.quantize(holder, "nf4", targets="query")
    with pytest.raises(
        ValueError, match=r"layers\.0 has 128 inputs, no multiple of block_size=48"
    ):
        models.quantize(holder, "nf4", block_size=48)
    with pytest.raises(ValueError, match="even block_size >= 2, got 7"):
        models.quantize(holder, "nf4", block_size=7)
    with pytest.raises(ValueError, match="has 16 inputs, no multiple of block_size=64"):
        models.from_pretrained(tiny_bert, frozen="nf4")
    assert models.quantize(
        holder, "nf4", targets="^out$", block_size=8
    ).out.linear_shape == (OUT, 2)


def test_merged_and_saved_from_dense_weights_only(tmp_path):
    fields = {"model_type": "bert", **FAMILIES["bert"], "max_position_embeddings": 16}
    model = random_model(fields)
    peft.save_merged(tmp_path / "dense", model, fields)
    found = models.from_pretrained(tmp_path / "dense", num_labels=2, frozen="nf4")
    graphdef, delta, backbone = peft.apply(found, peft.lora(2, targets="query|value"))
    delta = jax.tree.map(lambda leaf: leaf + 0.05, delta)
    adapted = nnx.merge(graphdef, delta, backbone)
    with pytest.raises(
        ValueError, match="LowBitLinear has quantised weights, which hold no sums"
    ):
        peft.merge(adapted)
    with pytest.raises(ValueError, match="this model's are quantised"):
        peft.save_merged(tmp_path / "no", found, fields)
    peft.save_merged(tmp_path / "merged", models.dequantize(adapted), fields)
    again = models.from_pretrained(tmp_path / "merged", num_labels=2)
    ids = np.array([[3, 9, 4, 1], [5, 8, 2, 1]])
    np.testing.assert_allclose(again(ids), adapted(ids), atol=2e-5)
    assert np.abs(np.asarray(again(ids)) - np.asarray(found(ids))).max() > 1e-3
