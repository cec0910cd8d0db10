"""LoRA's exact invariants (Hu et al. 2021) and what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft


def ids_and_mask():
    ids = jnp.asarray(np.random.default_rng(0).integers(5, 900, (4, 10)))
    lengths = jnp.array([[10], [6], [3], [9]])
    return ids, (jnp.arange(10)[None] < lengths).astype(jnp.int32)


@pytest.fixture(scope="module")
def classifier(tiny_bert):
    return ffm.models.from_pretrained(tiny_bert, num_labels=2, pooling="mean")


def leaves_by_path(tree):
    return {
        tuple(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(tree)
    }


def test_output_is_unchanged_at_first_and_the_model_given_too(classifier):
    before = leaves_by_path(nnx.state(classifier))
    graphdef, delta, backbone = peft.apply(
        classifier, peft.lora(4, 8, targets="query|value")
    )
    np.testing.assert_array_equal(
        nnx.merge(graphdef, delta, backbone)(*ids_and_mask()),
        classifier(*ids_and_mask()),
    )
    after = leaves_by_path(nnx.state(classifier))
    assert before.keys() == after.keys()


def test_counts_and_shapes_follow_from_the_matrices(classifier):
    _, delta, backbone = peft.apply(classifier, peft.lora(4, targets=r"query|value"))
    sizes = {path: leaf.shape for path, leaf in leaves_by_path(delta).items()}
    assert sizes[
        ("bert", "encoder", "layer", "attention", "self", "query", "lora_a")
    ] == (2, 16, 4)
    assert sizes[
        ("bert", "encoder", "layer", "attention", "self", "value", "lora_b")
    ] == (2, 4, 16)
    assert (
        ffm.trees.size(delta) == 2 * 2 * 4 * (16 + 16) + 16 * 2 + 2
    )  # layers x matrices x r (in + out), head
    assert (
        ffm.trees.size(delta) + ffm.trees.size(backbone)
        == ffm.trees.size(nnx.state(classifier)) + 2 * 2 * 4 * 32
    )
    assert not any("classifier" in path for path in leaves_by_path(backbone))


def test_first_gradient_is_zero_for_a_and_not_for_b(classifier):
    graphdef, delta, backbone = peft.apply(classifier, peft.lora(4, targets=["query"]))

    def loss(delta):
        logits = nnx.merge(graphdef, delta, backbone)(*ids_and_mask())
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.array([0, 1, 0, 1])
        ).sum()

    gradient = leaves_by_path(jax.grad(loss)(delta))
    for path, value in gradient.items():
        assert (np.abs(value).max() == 0) == (path[-1] == "lora_a"), path


def test_adapted_equals_merged(classifier):
    rank, alpha = 3, 12
    graphdef, delta, backbone = peft.apply(
        classifier, peft.lora(rank, alpha, targets=["query", "output.dense"])
    )
    delta = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), delta
    )
    adapted = nnx.merge(graphdef, delta, backbone)(*ids_and_mask())
    merged = nnx.clone(classifier)
    trained = leaves_by_path(delta)
    state = leaves_by_path(nnx.state(merged))
    for path in {path[:-1] for path in trained if path[-1] == "lora_a"}:
        update = alpha / rank * trained[(*path, "lora_a")] @ trained[(*path, "lora_b")]
        state[(*path, "kernel")] = state[(*path, "kernel")] + update
    for name in ("kernel", "bias"):
        state[("classifier", name)] = trained[("classifier", name)]
    for path, variable in nnx.to_flat_state(nnx.state(merged)):
        variable[...] = jnp.asarray(state[tuple(map(str, path))])
    assert np.abs(adapted - classifier(*ids_and_mask())).max() > 1e-2
    np.testing.assert_allclose(adapted, merged(*ids_and_mask()), atol=1e-5)


def test_averaged_factors_miss_the_mean_product_by_the_covariance():
    """Hu et al. 2021: mean(B_i A_i) - mean(B) mean(A) = mean((B_i - mean B)(A_i - mean A)):
    why rules differ.
    """
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 6, 2)), rng.normal(size=(5, 2, 4))
    gap = np.mean(a @ b, 0) - a.mean(0) @ b.mean(0)
    np.testing.assert_allclose(
        gap, np.mean((a - a.mean(0)) @ (b - b.mean(0)), 0), atol=1e-12
    )


def test_frozen_parameters_are_bit_identical_after_rounds(classifier):
    graphdef, delta, backbone = peft.apply(
        classifier, peft.lora(4, targets="query|value")
    )

    def loss(delta, backbone, batch, key):
        logits = nnx.merge(graphdef, delta, backbone)(batch["ids"], batch["mask"])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["label"]
        ), {}

    ids, mask = map(np.asarray, ids_and_mask())
    clients = [
        {"ids": ids, "mask": mask, "label": np.array([0, 1, 0, 1]) ^ k}
        for k in (0, 1, 0)
    ]
    frozen = jax.tree.map(np.array, backbone)
    algorithm = ffm.fedavg(ffm.Task(loss), optax.adam(1e-2), epochs=1, batch_size=2)
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(clients),
        backbone=backbone,
        cohort_size=2,
        devices=2,
    )
    state, _ = simulator.run(simulator.init(delta), 3)
    jax.tree.map(np.testing.assert_array_equal, frozen, simulator.backbone)
    jax.tree.map(np.testing.assert_array_equal, frozen, backbone)
    moved = [
        np.abs(a - b).max()
        for a, b in zip(*map(jax.tree.leaves, (delta, state.delta)), strict=True)
    ]
    assert min(moved) > 0


def test_rslora_scales_by_the_root(classifier):
    graphdef, _, _ = peft.apply(
        classifier, peft.lora(4, 8, targets=["query"], use_rslora=True)
    )
    plain, _, _ = peft.apply(classifier, peft.lora(4, 8, targets=["query"]))
    assert "scaling" in str(graphdef)
    assert "4.0" in str(graphdef)  # 8 / sqrt(4)
    assert str(plain) != str(graphdef)


def test_head_only_trains_the_head(classifier):
    _, delta, _ = peft.apply(classifier, peft.head())
    assert set(leaves_by_path(delta)) == {
        ("classifier", "kernel"),
        ("classifier", "bias"),
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: peft.lora(4, targets="q_proj"),
            r"'q_proj' match no Linear.*There are: .*attention.self.query",
        ),
        (lambda: peft.lora(4, targets=["quer"]), r"did you mean 'query'"),
        (
            lambda: peft.lora(17, targets=["query"]),
            r"rank=17 exceeds the smaller side of .*query \(16 x 16\)",
        ),
        (lambda: peft.head(["lm_head"]), r"no module ends in one of \['lm_head'\]"),
    ],
)
def test_impossible_methods_are_refused(classifier, make, message):
    with pytest.raises(ValueError, match=message):
        peft.apply(classifier, make())


def test_rank_must_be_positive():
    with pytest.raises(ValueError, match="rank=0"):
        peft.lora(0, targets="query")


def test_any_nnx_model_can_be_adapted():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.List(
                [nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)]
            )
            self.score = nnx.Linear(3, 1, rngs=rngs)

        def __call__(self, x):
            for block in self.blocks:
                x = jnp.tanh(block(x))
            return self.score(x)

    model = Net(nnx.Rngs(0))
    graphdef, delta, backbone = peft.apply(model, peft.lora(2, targets=r"blocks"))
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(nnx.merge(graphdef, delta, backbone)(x), model(x))
    assert ffm.trees.size(delta) == 2 * 2 * (3 + 3) + 4
