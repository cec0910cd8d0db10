"""Encoders without pruned heads and units compute what the masked ones do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import algorithms, models, peft, sparsity

LAYERS, D, HEADS, WIDE = 3, 12, 3, 10
SIZES = {"vocab_size": 20, "max_position_embeddings": 8}
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 20, (4, 6))
REAL = (np.arange(6) < np.array([[6], [3], [5], [1]])).astype(np.int32)


def bert(layers=LAYERS):
    config = models.BertConfig(
        hidden_size=D,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=WIDE,
        **SIZES,
    )
    return models.BertForSequenceClassification(config, 2, "mean", nnx.Rngs(0))


def roberta():
    config = models.RobertaConfig(
        hidden_size=D,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=WIDE,
        pad_token_id=0,
        vocab_size=20,
        max_position_embeddings=9,
    )
    return models.RobertaModel(config, nnx.Rngs(0))


def distilbert():
    config = models.DistilBertConfig(
        dim=D, n_layers=LAYERS, n_heads=HEADS, hidden_dim=WIDE, **SIZES
    )
    return models.DistilBertModel(config, nnx.Rngs(0))


FAMILIES = {"bert": bert, "roberta": roberta, "distilbert": distilbert}


def with_biases(model):
    """The model with biases that are not zero and strong weights, so that both are seen."""
    graphdef, state = nnx.split(model)

    def one(path, x):
        is_bias = "bias" in str(path[-1]) or "bias" in str(path[-2])
        return x + jnp.asarray(RNG.normal(size=x.shape), x.dtype) if is_bias else 4 * x

    return nnx.merge(graphdef, jax.tree.map_with_path(one, state))


def masks_of(model):
    """Masks of heads and units in both directions, a layer that dies, and single holes."""
    blocks = models.unit_blocks(model)
    layers = sparsity.Layers("|".join(blocks))
    weights = layers.weights(nnx.state(model, nnx.Param))
    assert len(weights) == len(blocks) == 6
    masks = {}
    for name, x in weights.items():
        (block,) = [b for pattern, b in blocks.items() if re.search(pattern, name)]
        counts = sparsity.block_shape(name, x.shape, block)
        kept = jnp.asarray(RNG.random(counts) < 0.7).at[1].set(False)
        holes = jnp.asarray(RNG.random(x.shape) < 0.9)
        masks[name] = sparsity.expand_blocks(kept, x.shape) & holes
    return masks


def masked_model(model, masks):
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, sparsity.masked(state, masks))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shrunk_model_equals_the_masked_one(family):
    model = with_biases(FAMILIES[family]())
    masks = masks_of(model)
    before = jax.tree.map(np.asarray, nnx.state(model))
    small = models.shrunk(model, masks)
    expected = masked_model(model, masks)(IDS, REAL)
    np.testing.assert_allclose(small(IDS, REAL), expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(model(IDS, REAL), expected, atol=1e-2)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def stack_of(small):
    (parts,) = [m.parts for _, m in nnx.iter_modules(small) if hasattr(m, "parts")]
    return parts


def test_the_arrays_really_shrink():
    """One head of three and four units of ten, in each layer others: the products are
    those shares of the whole."""
    model = bert()
    value, out = "attention.self.value", "attention.output.dense"
    stack = "bert.encoder.layer"
    kept = np.eye(3, dtype=bool)  # layer i keeps head i
    columns = np.repeat(kept, D // HEADS, 1)
    units = np.stack([np.roll(np.arange(WIDE) < 4, i) for i in range(LAYERS)])
    masks = {
        f"{stack}.{value}.kernel": np.broadcast_to(columns[:, None], (3, D, D)),
        f"{stack}.{out}.kernel": np.broadcast_to(columns[:, :, None], (3, D, D)),
        f"{stack}.output.dense.kernel": np.broadcast_to(units[..., None], (3, WIDE, D)),
    }
    small = models.shrunk(model, masks)
    for part in stack_of(small):
        assert part.attention.self.heads == 1
        for name in ("query", "key", "value"):
            assert getattr(part.attention.self, name).kernel.shape == (1, D, 4)
            assert getattr(part.attention.self, name).bias.shape == (1, 4)
        assert part.attention.output.dense.kernel.shape == (1, 4, D)
        assert part.intermediate.dense.kernel.shape == (1, D, 4)
        assert part.output.dense.kernel.shape == (1, 4, D)

    def flops(one):
        graphdef, state = nnx.split(one.bert.encoder)

        def run(state, hidden):
            return nnx.merge(graphdef, state)(hidden, None)

        hidden = jnp.ones((2, 3, D))
        jaxpr = jax.make_jaxpr(run)(state, hidden)
        return products(jaxpr.jaxpr)

    of_layer = 2 * 3 * 2 * (4 * D * D + 2 * D * WIDE)  # and T T d twice for attention
    attention = 2 * 2 * 2 * 3 * 3 * D
    assert flops(model) == LAYERS * (of_layer + attention)
    shares = 2 * 3 * 2 * (4 * D * 4 + 2 * D * 4) + attention // 3
    assert flops(small) == LAYERS * shares


def products(jaxpr, times=1):
    """Floating-point operations of all matrix products, loops unrolled."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = times * eqn.params.get("length", 1) if eqn.primitive.name == "scan" else times  # fmt: skip
        if eqn.primitive.name == "dot_general":
            (over, _), _ = eqn.params["dimension_numbers"]
            n = np.prod([eqn.invars[0].aval.shape[i] for i in over])
            total += times * 2 * int(n) * int(np.prod(eqn.outvars[0].aval.shape))
        for value in eqn.params.values():
            held = getattr(value, "jaxpr", value)
            if hasattr(held, "eqns"):
                total += products(held, inner)
    return total


def test_filled_heads_get_back_their_weights():
    model = with_biases(bert())
    stack = "bert.encoder.layer"
    path = f"{stack}.attention.self.value.kernel"
    mask = np.ones((3, D, D), bool)
    mask[:, :, :4] = False  # a head that goes
    mask[:, 1::2, 4:8] = False  # holes in one that stays
    filled = models.shrunk(model, {path: mask}, filled=True)
    whole = mask.copy()
    whole[:, :, 4:8] = True
    expected = masked_model(model, {path: jnp.asarray(whole)})(IDS, REAL)
    np.testing.assert_allclose(filled(IDS, REAL), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_heads_and_units_that_movement_pruned_are_taken_out():
    """From the scores of a federated run to a smaller classifier."""
    model = bert(layers=1)
    adapted = peft.apply(model, peft.full())

    def loss(delta, backbone, batch, key):
        logits = adapted.model(delta, backbone)(batch["x"])
        return jnp.sum((logits - batch["y"][:, None]) ** 2, axis=-1), {}

    method = algorithms.movement_pruning(
        ffm.Task(loss),
        optax.sgd(0.01),
        final_sparsity=0.6,
        last=1,
        blocks=models.unit_blocks(model),
        stacked=r"encoder\.layer",
        local_steps=1,
        batch_size=4,
    )
    client = {"x": IDS, "y": np.arange(4, dtype=np.float32)}
    population = ffm.Population.from_clients([client, client])
    how = {"backbone": adapted.backbone, "cohort_size": 2, "devices": 1}
    simulator = ffm.Simulator(method, population, **how)
    state, metrics = simulator.run(simulator.init(adapted.delta), 2)
    assert metrics["density"][0] == 1
    pruned, _ = simulator.model(state)
    layers = sparsity.Layers("|".join(models.unit_blocks(model)))
    masks = sparsity.nonzero_masks(layers.weights(pruned))
    small = models.shrunk(adapted.model(pruned), masks)
    expected = adapted.model(pruned)(IDS, REAL)
    np.testing.assert_allclose(small(IDS, REAL), expected, rtol=1e-5, atol=1e-6)
    for part in stack_of(small):
        assert part.attention.self.heads == 1
        assert part.intermediate.dense.kernel.shape[-1] <= 4


def test_a_shrunk_model_is_trained_like_any_other():
    model = bert()
    units = np.broadcast_to(np.arange(WIDE) < 2, (3, D, WIDE))
    path = "bert.encoder.layer.intermediate.dense.kernel"
    adapted = peft.apply(models.shrunk(model, {path: units}), peft.full())

    def loss(delta):
        return jnp.sum(adapted.model(delta)(IDS, REAL) ** 2)

    gradient = jax.grad(loss)(adapted.delta)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"bert.pooler.dense.kernel": np.ones((D, D), bool)}, "'bert.pooler.dense.kernel' belongs to no kernel"),
        ({"bert.encoder.layer.output.dense.kernel": np.ones((3, D, WIDE), bool)}, r"bool\[3, 12, 10\], expected bool\[layers, 10, 12\]"),
        ({"bert.encoder.layer.output.dense.kernel": np.ones((3, WIDE, D))}, r"float64\[3, 10, 12\]"),
    ],
)  # fmt: skip
def test_masks_that_fit_nothing_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        models.shrunk(bert(), masks)


def test_models_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="Linear has no layers of heads and units"):
        models.shrunk(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), {})
    lora = peft.apply(bert(), peft.lora(2, targets=["query"])).model()
    with pytest.raises(TypeError, match="query is a LoRALinear; merge adapters"):
        models.shrunk(lora, {})
    with pytest.raises(TypeError, match="filled=1"):
        models.shrunk(bert(), {}, filled=1)
