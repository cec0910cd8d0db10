"""FedLEASE's layer, against loops in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import peft
from fedjax_fm.peft.lora_experts import LoRAExpertsLinear, expert_shares

N_IN, N_OUT, RANK, M = 6, 5, 2, 3


def layer_of(experts=M, alpha=3.0):
    model = nnx.Dict(layer=nnx.Linear(N_IN, N_OUT, rngs=nnx.Rngs(0)))
    method = peft.lora_experts(RANK, alpha, experts=experts, targets=["layer"])
    layer = nnx.merge(*peft.apply(model, method)).layer
    assert isinstance(layer, LoRAExpertsLinear)
    return model.layer, layer


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shares_by_hand(logits):
    """One row: softmax, the M largest, their own once more at the first expert."""
    n_experts = (len(logits) + 1) // 2
    p = np.exp(logits - logits.max())
    p /= p.sum()
    kept = np.zeros_like(p)
    for place in sorted(range(len(p)), key=lambda i: -p[i])[:n_experts]:
        kept[place] = p[place]
    kept /= kept.sum()
    shares = kept[:n_experts].copy()
    shares[0] += kept[n_experts:].sum()
    return shares


def test_shares_are_those_of_a_loop():
    logits = draw(0, 50, 2 * M - 1)
    found = np.asarray(expert_shares(logits))
    np.testing.assert_allclose(
        found, [shares_by_hand(row) for row in logits], rtol=1e-5
    )
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    used = (found > 0).sum(axis=1)
    assert set(used.tolist()) == {1, 2, 3}  # as many experts as the input wants


def test_the_layer_is_a_loop_over_rows_and_experts():
    base, layer = layer_of()
    a, b, router = (
        draw(1, M, N_IN, RANK),
        draw(2, M, RANK, N_OUT),
        draw(3, N_IN, 2 * M - 1),
    )
    layer.expert_a[...], layer.expert_b[...], layer.router[...] = a, b, router
    x = draw(4, 4, 3, N_IN)
    expected = np.array(base(x))
    for row in np.ndindex(4, 3):
        for share, a_j, b_j in zip(shares_by_hand(x[row] @ router), a, b, strict=True):
            expected[row] += 1.5 * share * (x[row] @ a_j @ b_j)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("experts", [1, M], ids=["one", "equal ones"])
def test_one_expert_or_equal_ones_are_lora_for_any_router(experts):
    base, layer = layer_of(experts)
    a, b = draw(1, N_IN, RANK), draw(2, RANK, N_OUT)
    layer.expert_a[...] = jnp.stack([a] * experts)
    layer.expert_b[...] = jnp.stack([b] * experts)
    layer.router[...] = draw(3, N_IN, 2 * experts - 1)
    x = draw(4, 7, N_IN)
    np.testing.assert_allclose(
        layer(x), base(x) + 1.5 * x @ a @ b, rtol=1e-4, atol=1e-5
    )


def test_it_starts_from_the_base_also_in_a_stack(bert, text, run):
    base, layer = layer_of()
    x = draw(4, 7, N_IN)
    np.testing.assert_array_equal(layer(x), base(x))
    adapted = peft.apply(bert, peft.lora_experts(2, experts=2, targets=["query"]))
    np.testing.assert_allclose(run(adapted, *text), bert(*text), atol=1e-6)
