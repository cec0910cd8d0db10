"""Prompts and prefixes: identities, positions, caches, and what of attention a prefix takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models, peft, trees
from fedjax_fm.models import generate
from fedjax_fm.models.virtual_tokens import prepend, seen_by_all, with_prefix
from fedjax_fm.peft.prefix import Prefix
from fedjax_fm.peft.prompt import Prompt

IDS = np.array([[3, 9, 4, 7, 1, 2], [5, 8, 8, 2, 6, 3]])
REAL = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
FIRST = [11, 12, 13]


def forward(model, *args, **kwargs):
    graphdef, state = nnx.split(model)
    return np.asarray(
        jax.jit(lambda state, args: nnx.merge(graphdef, state)(*args, **kwargs))(
            state, args
        )
    )


def with_text_before(ids, mask):
    """The prompt as text before rows padded on the left: its own positions, seen by all."""
    return [
        np.concatenate([FIRST, row[real > 0]])
        for row, real in zip(ids, mask, strict=True)
    ]


def test_a_prompt_of_real_tokens_equals_them_as_text(llama):
    adapted = nnx.merge(*peft.apply(llama, peft.prompt_tuning(3, init_ids=FIRST)))
    found = forward(adapted, IDS, REAL)
    assert found.shape == (2, 6, 31)
    for row, text, real in zip(found, with_text_before(IDS, REAL), REAL, strict=True):
        np.testing.assert_allclose(
            row[real > 0], forward(llama, text[None])[0, 3:], atol=1e-5
        )


def test_the_same_before_an_encoder(bert):
    adapted = nnx.merge(*peft.apply(bert.bert, peft.prompt_tuning(3, init_ids=FIRST)))
    mask = REAL[:, ::-1]  # encoders are padded on the right
    found = forward(adapted, IDS, mask)
    for row, text, real in zip(found, with_text_before(IDS, mask), mask, strict=True):
        np.testing.assert_allclose(
            row[real > 0], forward(bert.bert, text[None])[0, 3:], atol=1e-5
        )


def test_packed_rows_see_the_prompt_but_not_each_other(llama):
    adapted = nnx.merge(*peft.apply(llama, peft.prompt_tuning(3, init_ids=FIRST)))
    found = forward(adapted, IDS[:1], np.array([[1, 1, 2, 2, 2, 0]]))[0]
    for part in (slice(0, 2), slice(2, 5)):
        np.testing.assert_allclose(
            found[part], forward(adapted, IDS[:1, part])[0], atol=1e-5
        )


@pytest.mark.parametrize("empty", ["prompt", "prefix"])
def test_no_virtual_tokens_no_change(llama, empty):
    model = nnx.clone(llama)
    if empty == "prompt":
        model.model.prompt = Prompt(jnp.zeros((0, 8)))
    else:
        model.model.layers.self_attn.prefix = Prefix(*jnp.zeros((2, 3, 0, 1, 4)))
    np.testing.assert_array_equal(forward(model, IDS, REAL), forward(llama, IDS, REAL))


def test_no_tokens_leave_the_head(bert):
    for make in (peft.prompt_tuning, peft.prefix_tuning):
        graphdef, delta, backbone = peft.apply(bert, make(0))
        assert trees.size(delta) == 8 * 2 + 2
        np.testing.assert_array_equal(
            forward(nnx.merge(graphdef, delta, backbone), IDS), forward(bert, IDS)
        )


def test_only_the_prompt_has_a_gradient_and_no_loss_sees_its_positions(llama):
    graphdef, delta, backbone = peft.apply(llama, peft.prompt_tuning(3, init_ids=FIRST))
    assert [path for path, _ in nnx.to_flat_state(delta)] == [
        ("model", "prompt", "embedding")
    ]
    jacobian = jax.jit(
        jax.jacrev(lambda d: nnx.merge(graphdef, d, backbone)(IDS).sum((0, 2)))
    )(delta)
    gradient = np.asarray(jax.tree.leaves(jacobian)[0])
    assert gradient.shape == (6, 3, 8)  # as many outputs as text
    assert (np.abs(gradient).max(-1) > 0).all()


@pytest.mark.parametrize(
    "method",
    [peft.prompt_tuning(3), peft.prefix_tuning(3), peft.prefix_tuning(3, hidden=4)],
)
def test_generation_with_a_cache_equals_reading_all_again(llama, method):
    adapted = nnx.merge(
        *peft.apply(
            llama,
            peft.combine(method, peft.on_layers(peft.full(), [1], modules_to_save=())),
        )
    )
    cache = adapted.empty_cache(2, 10)
    found = generate(
        adapted.next_logits,
        jnp.asarray(IDS),
        jnp.asarray(REAL),
        cache,
        max_new_tokens=4,
    ).tokens
    ids, real = np.c_[IDS, found], np.c_[REAL, np.ones_like(found)]
    np.testing.assert_array_equal(
        found, forward(adapted, ids, real)[:, 5:-1].argmax(-1)
    )


def test_the_context_counts_virtual_tokens(llama, bert):
    adapted = nnx.merge(*peft.apply(llama, peft.prefix_tuning(4)))
    with pytest.raises(ValueError, match="25 tokens exceed the model's context of 24"):
        adapted(np.zeros((1, 21), int))
    with pytest.raises(ValueError, match="max_length <= 20"):
        adapted.empty_cache(1, 21)
    with pytest.raises(ValueError, match="25 tokens exceed the model's 24"):
        nnx.merge(*peft.apply(bert, peft.prompt_tuning(4)))(np.zeros((1, 21), int))


def attention(query, keys, values, mask=None):
    return jax.nn.dot_product_attention(query, keys, values, mask=mask)


@pytest.fixture
def projected():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    prefix = Prefix(draw(3, 2, 4), draw(3, 2, 4))
    mask = jnp.asarray(rng.integers(0, 2, (2, 1, 5, 5)), bool) | jnp.eye(5, dtype=bool)
    return draw(2, 5, 2, 4), draw(2, 5, 2, 4), draw(2, 5, 2, 4), mask, prefix


def prefix_mass(query, keys, mask, prefix):
    """lambda [B, T, heads]: the prefix's share of the softmax, by its definition."""

    def scores(k):
        return np.exp(np.einsum("bthd,bshd->bhts", query, k) / 2)

    new = scores(np.broadcast_to(prefix.keys[...], (2, 3, 2, 4))).sum(-1)
    old = (scores(keys) * np.asarray(mask)).sum(-1)
    return np.moveaxis(new / (new + old), 1, 2)


def test_a_prefix_mixes_convexly_per_head(projected):
    query, keys, values, mask, prefix = projected
    mass = prefix_mass(query, keys, mask, prefix)[..., None]
    alone = [jnp.broadcast_to(x, (2, 3, 2, 4)) for x in prefix()]
    expected = (1 - mass) * attention(query, keys, values, mask) + mass * attention(
        query, *alone
    )
    new_keys, new_values, new_mask = with_prefix(prefix, keys, values, mask)
    np.testing.assert_allclose(
        attention(query, new_keys, new_values, new_mask), expected, atol=1e-5
    )


def test_the_gradient_of_the_values_is_the_mass(projected):
    """Moving all of a prefix's values by v moves every output by lambda v, so the
    gradients of the values sum to lambda.
    """
    query, keys, values, mask, prefix = projected

    def output(new_values):
        k, v, m = with_prefix(Prefix(prefix.keys[...], new_values), keys, values, mask)
        return attention(query, k, v, m)

    step = jnp.broadcast_to(jnp.arange(1.0, 5.0), (3, 2, 4))
    _, moved = jax.jvp(output, (prefix.values[...],), (step,))
    expected = prefix_mass(query, keys, mask, prefix)[..., None] * np.arange(1.0, 5.0)
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_collapsed_and_reparameterised_prefixes_agree(bert, text, shaken):
    graphdef, delta, backbone = peft.apply(
        bert, peft.prefix_tuning(3, hidden=5, width=6)
    )
    model = nnx.merge(graphdef, shaken(delta, 0.3), backbone)
    flat = peft.collapse(model)
    assert flat.bert.encoder.layer.attention.self.prefix.keys.shape == (2, 3, 2, 4)
    np.testing.assert_allclose(forward(flat, *text), forward(model, *text), atol=1e-5)
    prefix = model.bert.encoder.layer.attention.self.prefix
    inner = np.tanh(prefix.tokens[...] @ prefix.kernel_1[...] + prefix.bias_1[...])
    second = inner @ prefix.kernel_2[...][1] + prefix.bias_2[...][1]
    keys, values = second.reshape(3, 2, 2, 4).transpose(1, 0, 2, 3)
    np.testing.assert_allclose(
        flat.bert.encoder.layer.attention.self.prefix.keys[1], keys, atol=1e-6
    )
    np.testing.assert_allclose(
        flat.bert.encoder.layer.attention.self.prefix.values[1], values, atol=1e-6
    )


class Reader(nnx.Module):
    """A user's model that takes both: one attention over embedded tokens."""

    def __init__(self, rngs):
        self.table = nnx.Embed(11, 4, rngs=rngs)
        self.mix = nnx.Linear(4, 4, rngs=rngs)
        self.prompt, self.prefix, self.kv_shape = nnx.data(None), nnx.data(None), (2, 2)

    @property
    def vocabulary(self):
        return self.table

    def __call__(self, ids, mask):
        x, n_prompt = prepend(self.prompt, self.table(ids))

        def heads(y):
            return y.reshape(*y.shape[:-1], 2, 2)

        seen = seen_by_all(mask.astype(bool), n_prompt)[:, None, None, :]
        keys, values, seen = with_prefix(
            self.prefix, heads(self.mix(x)), heads(x), seen
        )
        return attention(heads(x), keys, values, seen).reshape(x.shape)[:, n_prompt:]


def test_a_users_own_model_takes_both():
    model = Reader(nnx.Rngs(0))
    ids, mask = jnp.asarray(IDS), jnp.asarray(REAL)
    both = peft.combine(peft.prompt_tuning(2, init_ids=[7, 9]), peft.prefix_tuning(3))
    graphdef, delta, backbone = peft.apply(model, both)
    assert trees.size(delta) == 2 * 4 + 2 * 3 * 2 * 2
    assert nnx.merge(graphdef, delta, backbone)(ids, mask).shape == (2, 6, 4)
    text = jnp.concatenate([jnp.array([[7, 9]] * 2), ids], axis=1)
    prompted = nnx.merge(*peft.apply(model, peft.prompt_tuning(2, init_ids=[7, 9])))
    expected = model(text, seen_by_all(mask, 2))[:, 2:]
    np.testing.assert_allclose(prompted(ids, mask), expected, atol=1e-6)


def _torch_prefix(projection):
    """Keys, values and parameters of PEFT's prefix encoder at its start."""
    torch, hugging_face = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    config = hugging_face.PrefixTuningConfig(
        num_virtual_tokens=40,
        token_dim=64,
        num_layers=2,
        num_attention_heads=4,
        encoder_hidden_size=50,
        prefix_projection=projection,
        num_transformer_submodules=1,
    )
    encoder = hugging_face.PrefixEncoder(config)
    return {
        name: parameter.detach().numpy()
        for name, parameter in encoder.named_parameters()
    }


def _spread(*arrays):
    """Standard deviation, kurtosis and largest entry."""
    flat = np.concatenate([np.asarray(array).ravel() for array in arrays])
    return np.std(flat), np.mean(flat**4) / np.var(flat) ** 2, np.abs(flat).max()


@pytest.fixture(scope="module")
def wide():
    config = models.LlamaConfig(
        vocab_size=11,
        hidden_size=64,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    return models.LlamaForCausalLM(config, nnx.Rngs(0))


def test_a_prefix_starts_as_in_peft_if_it_is_to(wide, by_path):
    direct = by_path(peft.apply(wide, peft.prefix_tuning(40, init="torch"))[1])
    theirs = _torch_prefix(projection=False)
    np.testing.assert_allclose(
        _spread(*direct.values())[:2], _spread(*theirs.values())[:2], rtol=0.1
    )
    network = by_path(
        peft.apply(wide, peft.prefix_tuning(40, hidden=50, init="torch"))[1]
    )
    theirs = _torch_prefix(projection=True)
    pairs = {
        "tokens": "embedding.weight",
        "kernel_1": "transform.0.weight",
        "bias_1": "transform.0.bias",
        "kernel_2": "transform.2.weight",
        "bias_2": "transform.2.bias",
    }
    for ours, name in pairs.items():
        found = [array for path, array in network.items() if path.endswith(f".{ours}")]
        few = found[0].size < 1000
        np.testing.assert_allclose(
            _spread(*found)[:2],
            _spread(theirs[name])[:2],
            rtol=0.35 if few else 0.1,
            err_msg=ours,
        )
        if ours != "tokens":  # uniform: the bound is met
            np.testing.assert_allclose(
                _spread(*found)[2], _spread(theirs[name])[2], rtol=0.1, err_msg=ours
            )


def test_a_prefix_starts_small_where_nothing_is_said(wide, by_path):
    direct = by_path(peft.apply(wide, peft.prefix_tuning(40))[1])
    np.testing.assert_allclose(_spread(*direct.values())[:2], (0.02, 3), rtol=0.1)
    network = by_path(peft.apply(wide, peft.prefix_tuning(40, hidden=50))[1])
    spreads = {
        path.rpartition(".")[2]: np.std(array) for path, array in network.items()
    }
    expected = {
        "tokens": 1.0,
        "kernel_1": 64**-0.5,
        "bias_1": 0,
        "kernel_2": 50**-0.5,
        "bias_2": 0,
    }
    for name, std in expected.items():
        np.testing.assert_allclose(spreads[name], std, rtol=0.1, err_msg=name)
