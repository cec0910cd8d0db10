"""One table for all methods: closed-form counts, the start, and what rounds of FedAvg
move and leave alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft, trees

L, D, W, P, M, R, H, HEAD = (
    2,
    8,
    12,
    3,
    5,
    2,
    7,
    8 * 2 + 2,
)  # layers, d, feed-forward, tokens, m, r, hidden, head
LAYER = 4 * (D * D + D) + 2 * D * W + D + W + 4 * D
BERT = (
    (31 + 24 + 2) * D + 2 * D + L * LAYER + D * D + D
)  # embeddings, their norm, layers, pooler

# name: (method, numbers trained beside the head, whether the outputs are unchanged at first)
METHODS = {
    "lora": (peft.lora(R, targets=["query", "value"]), L * 2 * R * (D + D), True),
    "lora-shared-a": (
        peft.lora(R, targets=["query"], share_a=True),
        R * D + L * R * D,
        True,
    ),
    "lora-ffa": (peft.lora(R, targets=["query"], freeze_a=True), L * R * D, True),
    "dora": (
        peft.dora(R, targets=["query", "output.dense"]),
        L * (R * (5 * D + W) + 3 * D),
        True,
    ),
    "houlsby": (peft.houlsby(M), L * (2 * (2 * D * M + D + M) + 4 * D), False),
    "houlsby-no-norms": (
        peft.houlsby(M, norms=False),
        L * 2 * (2 * D * M + D + M),
        False,
    ),
    "parallel": (peft.parallel_adapter(M), L * (2 * D * M + D + M), True),
    "ia3": (peft.ia3(), L * (D + D + D + W), True),
    "bitfit": (peft.bitfit(), D + L * (4 * D + W + D + 2 * D) + D, True),
    "bitfit-query-ffn": (peft.bitfit("query-ffn"), L * (D + W), True),
    "prompt": (peft.prompt_tuning(P), P * D, False),
    "prefix": (peft.prefix_tuning(P), 2 * L * P * D, False),
    "prefix-mlp": (
        peft.prefix_tuning(P, hidden=H),
        P * D + (D + 1) * H + (H + 1) * 2 * L * D,
        False,
    ),
    "p-tuning-v2": (peft.p_tuning_v2(P), 2 * L * P * D, False),
    "head": (peft.head(), 0, True),
    "full": (peft.full(), BERT, True),
    "last-layer": (peft.on_layers(peft.full(), [-1]), LAYER, True),
    "lora-on-one-layer": (
        peft.on_layers(peft.lora(R, targets=["query"]), [0]),
        2 * R * D,
        True,
    ),
    "norms-by-path": (
        peft.by_path(lambda p: "LayerNorm" in p or "classifier" in p),
        2 * D + L * 4 * D,
        True,
    ),
    "combined": (
        peft.combine(
            peft.lora(R, targets=["query"]), peft.bitfit(), peft.prefix_tuning(P)
        ),
        L * 2 * R * D + D + L * (7 * D + W) + D + 2 * L * P * D,
        False,
    ),
}

# Each differs from a row that is trained by a choice of leaves only (LoRA: see
# test_lora): no rounds of their own.
COUNTED = {
    "lora",
    "houlsby-no-norms",
    "bitfit-query-ffn",
    "p-tuning-v2",
    "head",
    "lora-on-one-layer",
    "norms-by-path",
}
TRAINED = [name for name in METHODS if name not in COUNTED]


class Trained(NamedTuple):
    """All methods after two rounds, trained side by side by one simulator, which compiles once."""

    deltas: dict
    backbones: dict  # as the simulator holds them
    before: dict  # copies of what was given
    outputs: dict  # afterwards


@pytest.fixture(scope="module")
def parts(bert):
    return {name: peft.apply(bert, method) for name, (method, _, _) in METHODS.items()}


@pytest.fixture(scope="module")
def trained(parts, text):
    def logits(deltas, backbones, ids, mask):
        return {
            n: nnx.merge(parts[n][0], deltas[n], backbones[n])(ids, mask)
            for n in TRAINED
        }

    def loss(deltas, backbones, batch, key):
        found = logits(deltas, backbones, batch["ids"], batch["mask"])
        each = (
            optax.softmax_cross_entropy_with_integer_labels(x, batch["label"])
            for x in found.values()
        )
        return sum(each), {}

    ids, mask = map(np.asarray, text)
    clients = [
        {"ids": ids, "mask": mask, "label": np.array([0, 1, 0]) ^ k} for k in (0, 1, 1)
    ]
    deltas, backbones = ({n: parts[n][i] for n in TRAINED} for i in (1, 2))
    before = jax.tree.map(np.array, (deltas, backbones))
    algorithm = ffm.fedavg(ffm.Task(loss), optax.adam(1e-2), epochs=1, batch_size=2)
    population = ffm.Population.from_clients(clients)
    simulator = ffm.Simulator(
        algorithm,
        population,
        backbone=backbones,
        cohort_size=2,
        devices=1,
        block_size=1,
    )
    state, metrics = simulator.run(simulator.init(deltas), 2)
    assert np.isfinite(metrics["loss"]).all()
    return Trained(
        deltas=state.delta,
        backbones=simulator.backbone,
        before=before,
        outputs=jax.jit(logits)(state.delta, backbones, *text),
    )


@pytest.mark.parametrize("name", METHODS)
def test_counts_and_the_start(name, bert, text, parts, run):
    _, count, unchanged = METHODS[name]
    _, delta, backbone = parts[name]
    assert trees.size(delta) == count + HEAD
    assert trees.size(nnx.state(bert)) == trees.size(backbone) + trees.size(
        delta
    ) - added(delta, backbone, bert)
    away = np.abs(run(parts[name], *text) - bert(*text)).max()
    assert (away < 1e-6) if unchanged else (away > 1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_rounds_move_all_that_is_trained_and_nothing_else(
    name, bert, text, parts, trained, by_path
):
    _, delta, backbone = parts[name]
    given, frozen = (tree[name] for tree in trained.before)
    jax.tree.map(np.testing.assert_array_equal, frozen, trained.backbones[name])
    jax.tree.map(np.testing.assert_array_equal, (given, frozen), (delta, backbone))
    before, after = by_path(delta), by_path(trained.deltas[name])
    assert not [path for path in before if (before[path] == after[path]).all()]
    assert np.abs(trained.outputs[name] - bert(*text)).max() > 1e-3


def added(delta, backbone, model) -> int:
    """Numbers that a method put into the model."""
    names = {path[-1] for path, _ in nnx.to_flat_state(nnx.state(model))}
    flat = [item for tree in (delta, backbone) for item in nnx.to_flat_state(tree)]

    def in_prompt(path):
        return "prompt" in path

    return sum(v.size for path, v in flat if path[-1] not in names or in_prompt(path))


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (peft.lora(2, targets="blocks", modules_to_save=["out"]), 3 * 2 * 8 + 10),
        (peft.houlsby(2, targets="blocks", norms=False), 3 * (2 * 8 + 6)),
        (
            peft.houlsby(2, targets=["blocks.0"]),
            2 * 8 + 6,
        ),  # the norm lies outside of the block's layer
        (peft.parallel_adapter(2, targets=r"blocks\.\d"), 3 * (2 * 8 + 6)),
        (peft.ia3("blocks", None), 3 * 4),
        (peft.bitfit(), 3 * 4 + 4 + 2),
        (peft.on_layers(peft.full(), [0, 2]), 2 * 20),
        (peft.by_path(lambda path: path.startswith("norm.")), 8),
        (peft.full(), 3 * 20 + 8 + 10),
        (peft.dora(2, targets=["blocks.1"]), 2 * 8 + 4),
    ],
)
def test_any_nnx_model_can_be_adapted(method, count, net, run):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    parts = peft.apply(net, method)
    assert trees.size(parts[1]) == count
    assert np.abs(run(parts, x) - np.asarray(net(x))).max() < (
        1e-6 if method.name != "adapter" else 0.1
    )


@pytest.mark.parametrize("name", METHODS)
def test_shapes_alone_give_the_counts(name, bert):
    """What `wire` does for models too large to hold."""
    graphdef, state = nnx.split(bert)
    delta = jax.eval_shape(
        lambda state: peft.apply(nnx.merge(graphdef, state), METHODS[name][0])[1], state
    )
    assert trees.size(delta) == METHODS[name][1] + HEAD


HALF = {
    "dora": peft.dora(2, targets=["q_proj"]),
    "dropout": peft.lora(2, targets=["q_proj"], dropout=0.5),
    "houlsby": peft.houlsby(2),
    "parallel": peft.parallel_adapter(2),
    "ia3": peft.ia3(),
    "prompt": peft.prompt_tuning(2),
    "prefix-mlp": peft.prefix_tuning(2, hidden=3),
    "on-layers": peft.on_layers(peft.houlsby(2), [1]),
}


@pytest.mark.parametrize("name", HALF)
def test_a_bf16_backbone_keeps_its_dtype_beside_f32_parameters(name, llama):
    """A sum that came out in f32 would change the dtype that the layers' scan carries,
    which it refuses.
    """
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: type(llama)(llama.config, nnx.Rngs(0), jnp.bfloat16))
    )
    half = nnx.merge(
        graphdef, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    )
    adapted_def, delta, backbone = peft.apply(half, HALF[name])
    assert {leaf.dtype for leaf in jax.tree.leaves(delta) if leaf.ndim} <= {
        jnp.dtype("float32"),
        jnp.dtype("bfloat16"),
    }

    def hidden(d, b):
        return nnx.merge(adapted_def, d, b).model(jnp.zeros((1, 3), jnp.int32))

    assert jax.eval_shape(hidden, delta, backbone).dtype == jnp.bfloat16

    def forward(d, b, key):
        return nnx.merge(adapted_def, d, b)(jnp.zeros((1, 3), jnp.int32), key=key)

    assert (
        jax.eval_shape(forward, delta, backbone, jax.random.key(0)).dtype == jnp.float32
    )


def test_an_adapter_whose_second_half_is_zero_is_the_identity(bert, text, run):
    graphdef, delta, backbone = peft.apply(bert, peft.houlsby(4))
    changed = [
        (p, v.replace(0 * v[...]) if str(p[-1]).startswith("up") else v)
        for p, v in nnx.to_flat_state(delta)
    ]
    delta = nnx.from_flat_state(changed)
    np.testing.assert_array_equal(
        run((graphdef, delta, backbone), *text),
        run(peft.apply(bert, peft.head()), *text),
    )


def test_an_adapter_is_the_formula(net, shaken, by_path):
    graphdef, delta, backbone = peft.apply(
        net, peft.houlsby(3, targets=["blocks.1"], act="relu")
    )
    delta = shaken(delta, 1.0)
    block = nnx.merge(graphdef, delta, backbone).blocks[1]
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    w = {path.rsplit(".", 1)[-1]: leaf for path, leaf in by_path(delta).items()}
    h = x @ np.asarray(net.blocks[1].kernel[...]) + np.asarray(net.blocks[1].bias[...])
    expected = (
        h + np.maximum(h @ w["down"] + w["down_bias"], 0) @ w["up"] + w["up_bias"]
    )
    np.testing.assert_allclose(block(x), expected, rtol=1e-5, atol=1e-5)


def test_a_parallel_adapter_reads_what_the_network_reads(bert, shaken, text):
    graphdef, delta, backbone = peft.apply(bert, peft.parallel_adapter(3, scale=0.7))
    delta = shaken(delta, 0.5)
    adapted = nnx.merge(graphdef, delta, backbone).bert.encoder.layer
    layer = jax.tree.map(lambda x: x[1], nnx.state(adapted))
    adapted = nnx.merge(nnx.graphdef(adapted), layer)
    wrapper = adapted.output
    rng = np.random.default_rng(0)
    inner, read = (jnp.asarray(rng.normal(size=(2, 4, n)), jnp.float32) for n in (W, D))
    dense, norm = wrapper.base.dense, wrapper.base.LayerNorm
    np.testing.assert_allclose(
        wrapper(inner, read),
        norm(dense(inner) + read + 0.7 * wrapper.adapter(read)),
        atol=1e-6,
    )


def test_the_biases_of_a_linear_model_shift_its_outputs():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graphdef, delta, backbone = peft.apply(model, peft.bitfit())
    x, shift = jnp.ones((4, 3)), jnp.array([0.5, -2.0])
    moved = jax.tree.map(lambda leaf: leaf + shift, delta)
    np.testing.assert_allclose(
        nnx.merge(graphdef, moved, backbone)(x) - model(x),
        jnp.tile(shift, (4, 1)),
        atol=1e-6,
    )


def test_ia3_is_the_formula(net):
    method = peft.ia3(["blocks.0"], ["blocks.1"])
    graphdef, delta, backbone = peft.apply(net, method)
    scale = jnp.array([2.0, -1.0, 0.0, 3.0])
    blocks = nnx.merge(graphdef, jax.tree.map(lambda x: scale, delta), backbone).blocks
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    np.testing.assert_allclose(blocks[0](x), scale * net.blocks[0](x), atol=1e-6)
    np.testing.assert_allclose(blocks[1](x), net.blocks[1](scale * x), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: peft.bitfit(), "LlamaForCausalLM has no bias to train"),
        (
            lambda: peft.houlsby(2, targets=["query"]),
            r"\['query'\] match no LinearLayer.*There are: .*self_attn.q_proj",
        ),
        (lambda: peft.ia3(["k"]), "did you mean 'k_proj'|match no"),
        (
            lambda: peft.dora(9, targets=["q_proj"]),
            r"rank=9 exceeds the smaller side of .*q_proj \(8 x 8\)",
        ),
        (
            lambda: peft.by_path(lambda path: False),
            "matches no parameter; there are .*embed_tokens",
        ),
        (
            lambda: peft.on_layers(peft.full(), [3]),
            r"unknown layers \[3\]: model.layers has layers 0 to 2",
        ),
        (
            lambda: peft.on_layers(peft.full(), [0], at="encoder"),
            "found 0; there are: model.layers",
        ),
        (lambda: peft.prompt_tuning(1, init_ids=[31]), "vocabulary of 31"),
        (lambda: peft.prompt_tuning(1, at="encoder"), "there are: model"),
        (
            lambda: peft.prefix_tuning(1, at="encoder"),
            "there are: model.layers.self_attn",
        ),
        (lambda: peft.parallel_adapter(2, targets=["norm"]), "no linear layer inside"),
        (lambda: peft.prompt_tuning(0), "leaves nothing to train"),
    ],
)
def test_what_a_model_cannot_have_is_refused(make, message, llama):
    with pytest.raises(ValueError, match=message):
        peft.apply(llama, make())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: peft.houlsby(0), "bottleneck=0"),
        (lambda: peft.houlsby(2, act="tahn"), "'tahn'"),
        (lambda: peft.bitfit("query"), "'query'"),
        (lambda: peft.prompt_tuning(-1), "n_tokens=-1"),
        (lambda: peft.prompt_tuning(3, init_ids=[1]), "n_tokens=3 tokens, got 1"),
        (lambda: peft.prefix_tuning(2, hidden=0), "hidden=0"),
        (lambda: peft.p_tuning_v2(2, encoder="lstm"), "'lstm'"),
        (lambda: peft.vpt(2, "both"), "'both'"),
        (lambda: peft.lora(2, targets="a", dropout=1.0), "dropout=1.0"),
        (lambda: peft.on_layers(peft.full(), []), "at least one layer"),
        (lambda: peft.combine(), "at least one method"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()
