"""LoRA-SB's layer and its start, against numpy, torch and one full step of Adam; LoRA-XS' start."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fedjax_fm import peft, trees
from fedjax_fm.peft.lora_sb import (
    LoRASBLinear,
    first_gradients,
    first_updates,
    lora_sb,
    lora_xs,
)

SIZES, N = (6, 5, 3), 7  # of a network of two layers, rows of a batch
RATE = 0.03


class Net(nnx.Module):
    """Two layers under the names `up` and `down`."""

    def __init__(self, rngs):
        self.up = nnx.Linear(SIZES[0], SIZES[1], rngs=rngs)
        self.down = nnx.Linear(SIZES[1], SIZES[2], rngs=rngs)

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)))


@pytest.fixture(scope="module")
def net():
    return Net(nnx.Rngs(3))


def batch(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, SIZES[0])).astype(np.float32), rng.integers(
        0, SIZES[2], N
    )


def cross_entropy(model, seed=0):
    x, y = batch(seed)
    return optax.softmax_cross_entropy_with_integer_labels(
        model(jnp.asarray(x)), jnp.asarray(y)
    ).mean()


def numbers(tree):
    return {
        trees.path_of(path): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def kernels(model):
    return {
        name: np.asarray(getattr(model, name).kernel[...], np.float64)
        for name in ("up", "down")
    }


def adapted_kernels(parts):
    """What the layers multiply by, with their updates folded in."""
    return kernels(peft.merge(nnx.merge(*parts)))


def truncated(matrix, rank):
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return u[..., :rank] @ (s[..., :rank, None] * vt[..., :rank, :])


def torch_gradient_sums(net, seeds):
    """{name: [in, out]}, the sum over batches of each batch's mean loss' gradient, by torch."""
    torch = pytest.importorskip("torch")
    up, down = (torch.nn.Linear(i, o) for i, o in itertools.pairwise(SIZES))
    for ours, theirs in ((net.up, up), (net.down, down)):
        theirs.weight.data = torch.tensor(np.asarray(ours.kernel[...]).T.copy())
        theirs.bias.data = torch.tensor(np.asarray(ours.bias[...]).copy())
    for seed in seeds:
        x, y = map(torch.tensor, batch(seed))
        torch.nn.functional.cross_entropy(down(torch.tanh(up(x))), y).backward()
    return {"up": up.weight.grad.numpy().T, "down": down.weight.grad.numpy().T}


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_start_is_the_best_approximation_of_the_authors_update(net, rank, alpha):
    """-rate * sign(sum of gradients), its truncated SVD, R the singular values over the scaling."""
    ours = [
        first_gradients(
            net, lambda m, seed=s: cross_entropy(m, seed), targets="up|down"
        )
        for s in (0, 1)
    ]
    summed = jax.tree.map(jnp.add, *ours)
    theirs = torch_gradient_sums(net, (0, 1))
    updates = first_updates(summed, RATE)
    parts = peft.apply(net, lora_sb(rank, alpha, targets="up|down", updates=updates))
    found, before = adapted_kernels(parts), kernels(net)
    trained, frozen = numbers(parts[1]), numbers(parts[2])
    for name, gradient in theirs.items():
        np.testing.assert_allclose(summed[name], gradient, rtol=1e-4, atol=1e-6)
        step = -RATE * np.sign(gradient)
        np.testing.assert_allclose(
            found[name] - before[name], truncated(step, rank), atol=2e-6
        )
        singular = np.linalg.svd(step, compute_uv=False)[:rank]
        scaling = 1.0 if alpha is None else alpha / rank
        np.testing.assert_allclose(
            trained[f"{name}.lora_r"], np.diag(singular) / scaling, atol=2e-6
        )
        a, b = frozen[f"{name}.lora_a"], frozen[f"{name}.lora_b"]
        np.testing.assert_allclose(a.T @ a, np.eye(rank), atol=1e-5)
        np.testing.assert_allclose(b @ b.T, np.eye(rank), atol=1e-5)


def test_at_full_rank_the_start_is_the_first_step_of_adam(net):
    gradients = first_gradients(net, cross_entropy, targets=["down"])
    parts = peft.apply(
        net, lora_sb(3, targets=["down"], updates=first_updates(gradients, RATE))
    )
    adam = optax.adam(RATE, eps=0.0)
    kernel = net.down.kernel[...]
    step, _ = adam.update(gradients["down"], adam.init(kernel))
    np.testing.assert_allclose(adapted_kernels(parts)["down"], kernel + step, atol=2e-6)


def test_the_first_gradient_of_r_is_the_full_gradient_between_the_directions(net):
    """With orthonormal A and B, A g_R B is the projection of the kernel's gradient: no
    scaling is needed.
    """
    updates = first_updates(first_gradients(net, cross_entropy, targets=["up"]), RATE)
    graphdef, delta, backbone = peft.apply(
        net, lora_sb(2, targets=["up"], updates=updates)
    )
    of_r = jax.grad(lambda delta: cross_entropy(nnx.merge(graphdef, delta, backbone)))(
        delta
    )
    merged = peft.merge(nnx.merge(graphdef, delta, backbone))
    full = np.asarray(first_gradients(merged, cross_entropy, targets=["up"])["up"])
    a, b = (numbers(backbone)[f"up.lora_{kind}"] for kind in "ab")
    np.testing.assert_allclose(numbers(of_r)["up.lora_r"], a.T @ full @ b.T, atol=1e-6)


def test_the_start_at_zero_is_the_base_model_and_takes_updates_of_any_size(net):
    gradients = first_gradients(net, cross_entropy, targets="up|down")
    parts = peft.apply(
        net, lora_sb(2, 6.0, targets="up|down", updates=gradients, start="zero")
    )
    x = jnp.asarray(batch(0)[0])
    np.testing.assert_array_equal(nnx.merge(*parts)(x), net(x))
    frozen = numbers(parts[2])
    for name, matrix in gradients.items():
        a, b = frozen[f"{name}.lora_a"], frozen[f"{name}.lora_b"]
        projected = a @ (a.T @ np.asarray(matrix, np.float64) @ b.T) @ b
        np.testing.assert_allclose(projected, truncated(matrix, 2), atol=1e-5)

    def loss(delta):
        return cross_entropy(nnx.merge(parts[0], delta, parts[2]))

    assert (
        np.abs(numbers(jax.grad(loss)(parts[1]))["up.lora_r"]).max() > 1e-4
    )  # it can start at zero


def test_stacked_layers_start_each_from_their_own_update(bert, text, by_path):
    ids, mask = text

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(
            model(ids, mask), jnp.array([0, 1, 0])
        ).mean()

    updates = first_updates(first_gradients(bert, loss, targets="query|value"), RATE)
    _, delta, backbone = peft.apply(
        bert, lora_sb(2, 5.0, targets="query|value", updates=updates)
    )
    assert (
        trees.size(delta) == 2 * 2 * 2**2 + 8 * 2 + 2
    )  # layers x matrices x r^2, head
    trained, frozen = by_path(delta), by_path(backbone)
    for path, step in updates.items():
        a, r, b = (
            frozen[f"{path}.lora_a"],
            trained[f"{path}.lora_r"],
            frozen[f"{path}.lora_b"],
        )
        np.testing.assert_allclose(2.5 * a @ r @ b, truncated(step, 2), atol=2e-6)


def test_first_gradients_are_finite_differences(net):
    found = first_gradients(net, cross_entropy, targets=["up"])["up"]

    def moved(by):
        model = nnx.clone(net)
        model.up.kernel[...] = model.up.kernel[...].at[3, 4].add(by)
        return float(cross_entropy(model))

    assert found[3, 4] == pytest.approx((moved(1e-2) - moved(-1e-2)) / 2e-2, rel=2e-2)


def test_lora_xs_starts_from_the_kernels_principal_part(net):
    """A = U S, B = V^T, R of deviation 1e-5."""
    parts = peft.apply(net, lora_xs(2, 6.0, targets="up|down"), jax.random.key(5))
    other = peft.apply(net, lora_xs(2, 6.0, targets="up|down"), jax.random.key(6))
    drawn, again = numbers(parts[1]), numbers(other[1])
    for name, kernel in kernels(net).items():
        a, b = (numbers(parts[2])[f"{name}.lora_{kind}"] for kind in "ab")
        np.testing.assert_allclose(a @ b, truncated(kernel, 2), atol=2e-6)
        np.testing.assert_allclose(
            a.T @ a,
            np.diag(np.linalg.svd(kernel, compute_uv=False)[:2] ** 2),
            atol=1e-5,
        )
        assert 0 < np.abs(drawn[f"{name}.lora_r"]).max() < 5e-5
        assert not np.array_equal(drawn[f"{name}.lora_r"], again[f"{name}.lora_r"])
    assert not np.array_equal(drawn["up.lora_r"], drawn["down.lora_r"])


def test_lora_xs_draws_r_of_the_papers_deviation():
    wide = nnx.Dict(layer=nnx.Linear(64, 64, rngs=nnx.Rngs(0)))
    drawn = numbers(peft.apply(wide, lora_xs(64, targets=["layer"]))[1])["layer.lora_r"]
    assert np.std(drawn) == pytest.approx(1e-5, rel=0.1)  # of 4096 numbers


def test_the_layer_is_x_w_plus_x_a_r_b():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    base = nnx.Linear(5, 4, rngs=nnx.Rngs(0))
    layer = LoRASBLinear(base, draw(5, 2), draw(2, 2), draw(2, 4), scaling=1.5)
    x = draw(3, 5)
    expected = base(x) + 1.5 * x @ (
        layer.lora_a[...] @ layer.lora_r[...] @ layer.lora_b[...]
    )
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5)
    holder: Any = peft.merge(nnx.Dict(layer=layer))
    merged = holder.layer
    assert type(merged) is nnx.Linear
    np.testing.assert_allclose(merged(x), expected, rtol=1e-5)


def given(**how):
    """The trees of `lora_sb` on `up` with ones as updates, unless told otherwise."""
    whole = {"rank": 2, "targets": ["up"], "updates": {"up": jnp.ones((6, 5))}, **how}
    return lambda net: peft.apply(net, lora_sb(**whole))


REFUSED = {
    "rank 0": (given(rank=0), "rank=0"),
    "rank True": (given(rank=True), "rank=True"),
    "a rank too large": (given(rank=6), "rank=6 exceeds"),
    "alpha 0": (given(alpha=0.0), "alpha=0.0"),
    "alpha NaN": (given(alpha=np.nan), "alpha=nan"),
    "a start that there is not": (given(start="raw"), "start='raw'"),
    "no updates": (given(updates=None), r"give updates=first_updates\(.*lora_xs"),
    "updates of other layers": (
        given(updates={"down": jnp.ones((5, 3))}),
        "updates hold nothing for 'up'",
    ),
    "updates as torch has them": (
        given(updates={"up": jnp.ones((5, 6))}),
        r"\(6, 5\).*\(5, 6\)",
    ),
    "updates with NaN": (
        given(updates={"up": jnp.full((6, 5), jnp.nan)}),
        "'up'.*not finite",
    ),
    "updates of zero": (given(updates={"up": jnp.zeros((6, 5))}), "'up'.*zero"),
    "XS rank 0": (lambda net: lora_xs(0, targets=["up"]), "rank=0"),
    "XS rank too large": (
        lambda net: peft.apply(net, lora_xs(6, targets=["up"])),
        "rank=6 exceeds",
    ),
    "a rate of zero": (lambda net: first_updates({}, 0.0), "learning_rate=0.0"),
    "a rate of NaN": (lambda net: first_updates({}, np.nan), "learning_rate=nan"),
    "nothing to start from": (lambda net: first_updates({}, 0.1), "gradients"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_arguments_are_refused(net, case):
    make, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        make(net)
