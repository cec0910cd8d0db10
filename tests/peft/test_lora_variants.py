"""DoRA, FFA, a shared A, dropout, and LoRA's invariances."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import peft
from fedjax_fm.models.randomness import dropout, in_layer, randomness
from fedjax_fm.peft.lora import LoRALinear


def layer_of(parts):
    return nnx.merge(*parts).blocks[0]


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)


def test_dora_is_the_formula_and_holds_the_norm_constant(net, shaken, x):
    graphdef, delta, backbone = peft.apply(net, peft.dora(2, 6, targets=["blocks.0"]))
    delta = shaken(delta, 0.5)
    layer = layer_of((graphdef, delta, backbone))
    kernel, bias = net.blocks[0].kernel[...], net.blocks[0].bias[...]

    def moved(a, b):
        return kernel + 3 * a @ b

    norm = np.linalg.norm(moved(layer.lora_a[...], layer.lora_b[...]), axis=0)
    expected = (
        x @ (layer.magnitude[...] * moved(layer.lora_a[...], layer.lora_b[...]) / norm)
        + bias
    )
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    ours = jax.grad(
        lambda delta: jnp.sum(layer_of((graphdef, delta, backbone))(x) ** 2)
    )(delta)

    def plain(a, b, m):
        return jnp.sum((x @ (m * moved(a, b) / norm) + bias) ** 2)

    grads = jax.grad(plain, (0, 1, 2))(
        layer.lora_a[...], layer.lora_b[...], layer.magnitude[...]
    )
    found = {str(path[-1]): leaf[...] for path, leaf in nnx.to_flat_state(ours)}
    for name, gradient in zip(("lora_a", "lora_b", "magnitude"), grads, strict=True):
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-4)


def dora_of_peft(base, values, rate, left):
    """PEFT's layer with these weights and values, whose dropout leaves x * left."""
    torch, hugging_face = pytest.importorskip("torch"), pytest.importorskip("peft")

    class Dropped(torch.nn.Module):
        def forward(self, x):
            return x * torch.tensor(left)

    linear = torch.nn.Linear(*base.kernel.shape, bias=base.bias is not None)
    config = hugging_face.LoraConfig(
        r=2, lora_alpha=6, target_modules=["a"], use_dora=True, lora_dropout=rate
    )
    layer = hugging_face.inject_adapter_in_model(
        config, torch.nn.ModuleDict({"a": linear})
    )["a"].train()
    layer.lora_dropout["default"] = Dropped()
    parameters = {
        "lora_a": layer.lora_A["default"].weight,
        "lora_b": layer.lora_B["default"].weight,
        "magnitude": layer.lora_magnitude_vector["default"].weight,
    }
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(np.array(base.kernel[...]).T))
        if base.bias is not None:
            linear.bias.copy_(torch.tensor(np.array(base.bias[...])))
        for name, parameter in parameters.items():
            parameter.copy_(torch.tensor(values[name].T))
    return layer, parameters


@pytest.mark.parametrize("bias", [True, False])
def test_dora_with_dropout_is_pefts(bias, monkeypatch):
    """On the same mask, outputs and gradients; PEFT lets the base, too, read what
    dropout leaves.
    """
    torch = pytest.importorskip("torch")
    rng, rate = np.random.default_rng(0), 0.4

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    x, left = (
        draw(6, 5),
        (rng.random((6, 5)) < 1 - rate).astype(np.float32) / np.float32(1 - rate),
    )
    base = nnx.Linear(
        5, 4, use_bias=bias, bias_init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(0)
    )
    values = {"lora_a": draw(5, 2), "lora_b": draw(2, 4), "magnitude": 1 + draw(4) ** 2}
    graphdef, delta, backbone = peft.apply(
        nnx.Dict(a=base), peft.dora(2, 6, targets="a", dropout=rate)
    )
    filled = [
        (path, leaf.replace(jnp.asarray(values[path[-1]])))
        for path, leaf in nnx.to_flat_state(delta)
    ]
    delta = nnx.from_flat_state(filled)
    monkeypatch.setattr(
        sys.modules[LoRALinear.__module__], "dropout", lambda x, rate, place: x * left
    )

    def forward(delta, x):
        return nnx.merge(graphdef, delta, backbone)["a"](x)

    def loss(delta, x):
        return jnp.sum(jnp.sin(forward(delta, x)))

    gradients, of_input = jax.grad(loss, (0, 1))(delta, jnp.asarray(x))
    layer, parameters = dora_of_peft(base, values, rate, left)
    read = torch.tensor(x, requires_grad=True)
    out = layer(read)
    torch.sin(out).sum().backward()
    np.testing.assert_allclose(
        forward(delta, jnp.asarray(x)), out.detach().numpy(), atol=1e-5
    )
    np.testing.assert_allclose(of_input, read.grad.numpy(), atol=1e-4)
    for path, gradient in nnx.to_flat_state(gradients):
        np.testing.assert_allclose(
            gradient[...].T,
            parameters[path[-1]].grad.numpy(),
            atol=1e-4,
            err_msg=path[-1],
        )


def test_factors_start_as_pefts():
    """Moments and bounds of A over a large matrix; B is zero."""
    torch, hugging_face = pytest.importorskip("torch"), pytest.importorskip("peft")
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(400, 300)})
    torch.manual_seed(0)
    layer = hugging_face.inject_adapter_in_model(
        hugging_face.LoraConfig(r=64, target_modules=["a"]), net
    )["a"]
    theirs = layer.lora_A["default"].weight.detach().numpy()
    model = nnx.Dict(a=nnx.Linear(400, 300, rngs=nnx.Rngs(0)))
    ours = np.asarray(
        nnx.merge(*peft.apply(model, peft.lora(64, targets="a"))).a.lora_a[...]
    )
    for value in (np.std, lambda x: np.abs(x).max(), lambda x: np.mean(x**4)):
        np.testing.assert_allclose(value(ours), value(theirs), rtol=0.03)
    assert not layer.lora_B["default"].weight.any()


def test_lora_does_not_change_when_the_factors_are_turned_against_each_other(
    net, shaken, x
):
    graphdef, delta, backbone = peft.apply(net, peft.lora(2, targets=["blocks.0"]))
    delta = shaken(delta, 0.5)
    turn = jnp.array([[2.0, 1.0], [0.5, -1.0]])
    inverse = jnp.linalg.inv(turn)
    turned = [
        (p, v.replace(v[...] @ turn if p[-1] == "lora_a" else inverse @ v[...]))
        for p, v in nnx.to_flat_state(delta)
    ]
    a, b = (
        layer_of((graphdef, d, backbone)) for d in (delta, nnx.from_flat_state(turned))
    )
    np.testing.assert_allclose(a(x), b(x), atol=1e-5)
    assert np.linalg.matrix_rank(np.asarray(a.product()), tol=1e-5) <= 2


def test_with_a_frozen_the_mean_of_products_is_the_product_of_means(net, shaken):
    graphdef, delta, backbone = peft.apply(
        net, peft.lora(2, targets=["blocks.0"], freeze_a=True)
    )
    assert [path[-1] for path, _ in nnx.to_flat_state(delta)] == ["lora_b"]
    clients = [shaken(delta, 1.0, seed=k) for k in range(3)]

    def product(delta):
        return np.asarray(layer_of((graphdef, delta, backbone)).product())

    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *clients)
    np.testing.assert_allclose(
        np.mean([product(c) for c in clients], axis=0), product(mean), atol=1e-6
    )


def test_a_shared_a_is_the_same_in_every_layer_also_per_client(bert, shaken, text):
    graphdef, delta, backbone = peft.apply(
        bert, peft.lora(2, targets=["query"], share_a=True)
    )
    delta = shaken(delta, 0.3)
    flat = {str(path[-1]): leaf for path, leaf in nnx.to_flat_state(delta)}
    assert (flat["lora_a"].shape, flat["lora_b"].shape) == ((8, 2), (2, 2, 8))
    plain_def, plain, plain_backbone = peft.apply(bert, peft.lora(2, targets=["query"]))
    repeated = [
        (
            p,
            v.replace(
                jnp.tile(flat["lora_a"][...], (2, 1, 1))
                if p[-1] == "lora_a"
                else flat[p[-1]][...]
            ),
        )
        for p, v in nnx.to_flat_state(plain)
    ]
    ours = jax.jit(lambda delta: nnx.merge(graphdef, delta, backbone)(*text))
    theirs = nnx.merge(plain_def, nnx.from_flat_state(repeated), plain_backbone)(*text)
    np.testing.assert_allclose(ours(delta), theirs, atol=1e-6)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), delta, shaken(delta, 0.3))
    lanes = jax.jit(
        jax.vmap(lambda delta: nnx.merge(graphdef, delta, backbone)(*text))
    )(both)
    np.testing.assert_allclose(lanes[0], theirs, atol=1e-5)
    with pytest.raises(ValueError, match="is not stacked"):
        peft.apply(
            nnx.Dict(a=nnx.Linear(3, 3, rngs=nnx.Rngs(0))),
            peft.lora(1, targets="a", share_a=True),
        )


def test_dropout_needs_a_key_and_follows_it(bert, shaken, text):
    graphdef, delta, backbone = peft.apply(
        bert, peft.lora(2, targets=["query", "value"], dropout=0.5)
    )
    delta = shaken(delta, 1.0)
    plain, *_ = peft.apply(bert, peft.lora(2, targets=["query", "value"]))
    forward = jax.jit(lambda key: nnx.merge(graphdef, delta, backbone)(*text, key=key))
    without = np.asarray(nnx.merge(graphdef, delta, backbone)(*text))
    np.testing.assert_array_equal(without, nnx.merge(plain, delta, backbone)(*text))
    first, second, again = (np.asarray(forward(jax.random.key(i))) for i in (1, 2, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-4 < np.abs(first - without).max()


def test_dropout_keeps_the_mean_and_differs_between_layers_and_places():
    x = jnp.ones((200, 200))
    assert dropout(x, 0.25, 0) is x
    with randomness(jax.random.key(0)):
        draws = [dropout(x, 0.25, place) for place in (0, 1)]
        with in_layer(3):
            draws.append(dropout(x, 0.25, 0))
        np.testing.assert_array_equal(draws[0], dropout(x, 0.25, 0))
    assert dropout(x, 0.25, 0) is x
    for draw in draws:
        assert (
            abs(float(draw.mean()) - 1) < 4 * np.sqrt(0.25 / 0.75) / 200
        )  # four standard errors
        np.testing.assert_allclose(np.unique(draw), [0, 4 / 3], rtol=1e-6)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        agree = float((draws[a] == draws[b]).mean())
        assert abs(agree - (0.75**2 + 0.25**2)) < 0.02


def test_layers_of_a_stack_draw_differently():
    """Two layers with equal weights: with equal masks the second would repeat the first."""
    from fedjax_fm.models.stacked import run_stacked, stack

    class Block(nnx.Module):
        def __call__(self, hidden):
            return hidden + dropout(jnp.ones_like(hidden), 0.5, 0) * self.one[...]

        def __init__(self, rngs):
            self.one = nnx.Param(jnp.ones(()))

    blocks = stack(Block, 2, nnx.Rngs(0))
    with randomness(jax.random.key(0)):
        total = np.asarray(run_stacked(blocks, jnp.zeros(1000)))
    # Each layer adds 0 or 2: sums of 2 come from layers that disagree.
    assert abs((total == 2).mean() - 0.5) < 0.08
