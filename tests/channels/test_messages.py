"""Messages that are more than floats: flags, `Rows`, mixed trees; channels by leaf and
by anchor; any shape and value.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm.channels import (
    anchored,
    anchored_bits,
    bernoulli_mask,
    cast,
    chain,
    eden,
    error_feedback,
    identity,
    int_blocks,
    natural,
    nf4,
    nnadq,
    per_leaf,
    quantize,
    random_k,
    sign,
    ternary,
    threshold,
    top_k,
)
from fedjax_fm.types import Channel, Rows

KEY = jax.random.key(0)
CHANNELS = {
    "identity": identity(),
    "top_k": top_k(0.3),
    "random_k": random_k(0.3),
    "threshold": threshold(0.5),
    "quantize": quantize(4, bucket_size=16),
    "ternary": ternary(16),
    "sign": sign(16),
    "natural": natural(),
    "eden": eden(2),
    "int_blocks": int_blocks(4, 16),
    "nf4": nf4(16),
    "cast": cast("float8_e4m3fn", 16),
    "nnadq": nnadq(),
    "chain": chain(threshold(0.5), quantize(4)),
}
FIXED_LENGTH = ("top_k", "random_k", "nnadq")  # these do not carry Rows


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def whole_way(channel: Channel, tree: Any) -> tuple[Any, int]:
    payload, _ = channel.encode(channel.init(tree), tree, KEY)
    return channel.decode(payload), channel.bits(payload)


@functools.cache
def compiled(name: str) -> Callable[[Any], tuple[Any, Any]]:
    return jax.jit(functools.partial(whole_way, CHANNELS[name]))


# ---- flags


@pytest.mark.parametrize("name", CHANNELS)
def test_flags_beside_floats_arrive_at_one_bit_each(name: str) -> None:
    flags = jnp.arange(21).reshape(3, 7) % 3 == 0
    tree = {"a": normal(5, 5), "mask": flags, "z": jnp.bool_(True)}
    sent, bits = compiled(name)(tree)
    alone, bits_alone = compiled(name)({"a": tree["a"]})
    np.testing.assert_array_equal(sent["mask"], flags)
    assert sent["mask"].dtype == sent["z"].dtype == jnp.bool_
    assert bool(sent["z"])
    np.testing.assert_array_equal(sent["a"], alone["a"])
    assert int(bits) - int(bits_alone) == 24 + 8


def test_a_mask_takes_one_bit_a_flag() -> None:
    tree = {
        "a": jnp.arange(13) % 2 == 0,
        "b": [jnp.ones((2, 3), bool), jnp.bool_(False)],
    }
    sent, bits = whole_way(bernoulli_mask(), tree)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(sent), strict=True):
        assert x.shape == y.shape
        np.testing.assert_array_equal(x, y)
    assert bits == 8 * 3  # 20 flags
    with pytest.raises(
        TypeError, match=r"bernoulli_mask carries bool leaves only, but a is float32"
    ):
        whole_way(bernoulli_mask(), {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"the leaf a of shape \(0,\) is empty"):
        whole_way(bernoulli_mask(), {"a": jnp.ones(0, bool)})
    with pytest.raises(ValueError, match=r"no leaves"):
        whole_way(bernoulli_mask(), {})


def test_feedback_lets_flags_and_integers_pass() -> None:
    channel = error_feedback(per_leaf((r"^a$", top_k(0.5)), otherwise=identity()))
    tree = {"a": normal(6), "mask": jnp.arange(5) > 2, "n": jnp.arange(3)}
    state = channel.init(tree)
    for _ in range(2):
        payload, state = channel.encode(state, tree, KEY)
        sent = channel.decode(payload)
        np.testing.assert_array_equal(sent["mask"], tree["mask"])
        np.testing.assert_array_equal(sent["n"], tree["n"])


# ---- Rows


def rows(count: int, seed: int = 0) -> Rows:
    values = normal(6, 5, seed=seed)
    return Rows(jnp.where(jnp.arange(6)[:, None] < count, values, 0), jnp.int32(count))


@pytest.mark.parametrize(
    "name", [name for name in CHANNELS if name not in FIXED_LENGTH]
)
@pytest.mark.parametrize("count", [0, 2])
def test_rows_are_coded_and_billed_as_if_they_were_all(name: str, count: int) -> None:
    """The same message, cut to its rows, makes the same bits and the same values
    (random channels: near ones).
    """
    tree = {"B": rows(count), "A": normal(4), "C": rows(3, seed=1)}
    sent, bits = compiled(name)(tree)
    assert bits.dtype == jnp.uint32
    short = {"A": tree["A"], "B": tree["B"].values[:count], "C": tree["C"].values[:3]}
    if not count:
        assert not np.any(sent["B"].values)
        return
    alone, bits_alone = compiled(name)(short)
    # The seeds and positions of a sparse code depend on the room, not only on what fills it.
    if name not in ("threshold", "chain", "eden"):
        assert int(bits) == int(bits_alone)
    for leaf, height in (("B", count), ("C", 3)):
        assert int(sent[leaf].count) == height
        assert not np.any(sent[leaf].values[height:])
        if name not in ("chain", "eden", "quantize", "ternary", "natural"):
            np.testing.assert_allclose(
                sent[leaf].values[:height], alone[leaf], rtol=1e-6
            )
    if name not in ("chain", "eden"):
        np.testing.assert_allclose(sent["A"], alone["A"], rtol=1e-6)


@pytest.mark.parametrize("name", FIXED_LENGTH)
def test_channels_that_need_a_length_refuse_rows(name: str) -> None:
    with pytest.raises(
        TypeError,
        match=r"needs to know how many entries a message has, but B is `Rows`",
    ):
        whole_way(CHANNELS[name], {"B": rows(2)})


def test_rows_without_a_channel_are_billed_by_count() -> None:
    def bits(tree):
        return identity().bits(tree)

    assert int(bits({"B": rows(2), "A": normal(4)})) == 32 * (2 * 5 + 4)
    assert int(jax.jit(lambda count: bits(Rows(normal(6, 5), count)))(4)) == 32 * 20
    many = jax.jit(jax.vmap(lambda count: bits({"B": Rows(normal(6, 5), count)})))(
        jnp.arange(7)
    )
    assert many.tolist() == [160 * k for k in range(7)]


def test_feedback_of_rows_keeps_what_does_not_travel() -> None:
    channel = error_feedback(cast("float8_e5m2"))
    first, second = rows(6), rows(2, seed=3)
    state = channel.init(first)
    _, state = channel.encode(state, first, KEY)
    before = state[0]
    assert np.any(before[2:])
    payload, state = channel.encode(state, second, KEY)
    sent = channel.decode(payload)
    np.testing.assert_array_equal(state[0][2:], before[2:])
    np.testing.assert_allclose(
        sent.values[:2] + state[0][:2], second.values[:2] + before[:2], atol=1e-6
    )
    assert not np.any(sent.values[2:])


# ---- per_leaf


def test_rules_choose_by_path_and_by_leaf_in_order() -> None:
    channel = per_leaf(
        (r"lora_A$", top_k(0.5)),
        (lambda path, leaf: leaf.ndim == 1 and path != "x", identity()),
        otherwise=sign(),
    )
    tree = {"q": {"lora_A": normal(4, 4), "b": normal(4)}, "x": normal(8)}
    payload, _ = channel.encode(channel.init(tree), tree, KEY)
    sent = channel.decode(payload)
    assert np.count_nonzero(sent["q"]["lora_A"]) == 8
    np.testing.assert_array_equal(sent["q"]["b"], tree["q"]["b"])
    assert len(np.unique(np.abs(sent["x"]))) == 1
    assert channel.bits(payload) == (8 * 32 + 16) + 4 * 32 + (8 + 32)


def test_leaves_are_messages_of_their_own_or_together() -> None:
    tree = {"large": 10 * normal(8), "small": normal(8)}
    apart, _ = whole_way(per_leaf(otherwise=top_k(0.25)), tree)
    joined, _ = whole_way(per_leaf(otherwise=top_k(0.25), together=True), tree)
    assert np.count_nonzero(apart["large"]) == np.count_nonzero(apart["small"]) == 2
    assert np.count_nonzero(joined["large"]) == 4
    np.testing.assert_array_equal(
        joined["large"], whole_way(top_k(0.25), tree)[0]["large"]
    )


def test_per_leaf_sums_fixed_and_counted_bits_and_keeps_a_state_a_leaf() -> None:
    tree = {"a": normal(64), "b": normal(3)}
    channel = per_leaf(("a", error_feedback(threshold(1.0))), otherwise=identity())
    payload, state = channel.encode(channel.init(tree), tree, KEY)
    k = int(np.sum(np.abs(tree["a"]) >= 1))
    assert int(channel.bits(payload)) == 3 * 32 + 32 + 32 * k + min(
        64, 8 * -(-6 * k // 8)
    )
    np.testing.assert_array_equal(
        state[0][0][0], jnp.where(jnp.abs(tree["a"]) >= 1, 0, tree["a"])
    )


def test_errors_of_rules() -> None:
    with pytest.raises(ValueError, match=r"no rule takes the leaf 'q\.w'"):
        per_leaf(("bias", sign())).init({"q": {"w": normal(3)}})
    with pytest.raises(
        TypeError, match=r"expected a regular expression or a function as rule, got 3"
    ):
        per_leaf((3, sign()))
    with pytest.raises(TypeError, match=r"rule 'a': expected a channel"):
        per_leaf(("a", sign))


# ---- anchors


def test_an_anchor_is_sent_again_until_it_is_renewed() -> None:
    parts = int_blocks(8, 16), sign()
    channel = anchored(*parts, every=3)
    tree = {"w": normal(40)}
    state, anchors, ages = channel.init(tree), [], []
    encode = jax.jit(channel.encode)
    for r in range(7):
        tree = {"w": tree["w"] + 0.01 * normal(40, seed=r)}
        payload, state = encode(state, tree, jax.random.fold_in(KEY, r))
        old = parts[0].decode(payload.anchor)["w"]
        anchors.append(np.asarray(old))
        ages.append(int(payload.age.value))
        sent = channel.decode(payload)["w"]
        np.testing.assert_allclose(
            sent, old + parts[1].decode(payload.correction)["w"], rtol=1e-6
        )
        assert np.linalg.norm(sent - tree["w"]) < np.linalg.norm(old - tree["w"]) + 1e-6
    assert ages == [0, 1, 2, 0, 1, 2, 0]
    for i, j in ((0, 1), (1, 2), (3, 4), (4, 5)):
        np.testing.assert_array_equal(anchors[i], anchors[j])
    assert np.any(anchors[2] != anchors[3])
    assert np.any(anchors[5] != anchors[6])
    assert anchored_bits(parts, payload) == (40 * 8 + 3 * 32, 40 + 32)
    assert channel.bits(payload) == sum(anchored_bits(parts, payload))


def test_anchors_that_lose_nothing_lose_nothing() -> None:
    channel = anchored(identity(), identity(), every=4)
    state = channel.init(normal(30))
    for r in range(6):
        x = normal(30, seed=r)
        payload, state = channel.encode(state, x, KEY)
        np.testing.assert_allclose(channel.decode(payload), x, atol=5e-7)


def test_an_unbiased_correction_makes_an_unbiased_downlink() -> None:
    channel = anchored(sign(), random_k(0.5), every=2)
    _, state = channel.encode(channel.init(normal(20)), normal(20), KEY)
    x = normal(20, seed=5)
    keys = jax.random.split(KEY, 4000)
    sent = np.float64(
        jax.jit(jax.vmap(lambda key: channel.decode(channel.encode(state, x, key)[0])))(
            keys
        )
    )
    z = (sent.mean(axis=0) - x) / (sent.std(axis=0) / np.sqrt(4000))
    assert np.abs(z).max() < 4.5


def test_anchors_refuse_rows() -> None:
    channel = anchored(identity(), identity(), every=2)
    with pytest.raises(TypeError, match="anchored cannot carry `Rows`"):
        channel.encode(channel.init(rows(2)), rows(2), KEY)


# ---- any shape, dtype and value

SHAPES = st.lists(
    st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=4
)
DTYPES = st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16])


@pytest.mark.parametrize("name", CHANNELS)
@settings(max_examples=4, deadline=None)
@given(shapes=SHAPES, dtype=DTYPES)
def test_any_tree_comes_back_in_shape(
    name: str, shapes: list[tuple[int, ...]], dtype: Any
) -> None:
    tree = {
        str(i): [jax.ShapeDtypeStruct(shape, dtype)] for i, shape in enumerate(shapes)
    }
    received, _ = jax.eval_shape(lambda tree: whole_way(CHANNELS[name], tree), tree)
    assert received == tree


VALUE = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 1e-45, -1e-40, 2.0**-126, 1e-30, 1.0, -1.0, 1e30, -1e37, 2.0**126]
    ),
    st.floats(-10, 10, width=32),
)
BAD = st.sampled_from([float("nan"), float("inf"), float("-inf")])
N = 40


@pytest.mark.parametrize("name", CHANNELS)
@settings(max_examples=40, deadline=None)
@given(values=st.lists(VALUE, min_size=N, max_size=N))
def test_finite_values_stay_finite_and_near(name: str, values: list[float]) -> None:
    x = np.array(values, np.float32)
    if name == "eden":  # sums of 128 numbers
        x = x.clip(-1e36, 1e36)
    sent = np.asarray(compiled(name)({"w": x})[0]["w"], np.float64)
    assert np.isfinite(sent).all()
    largest = np.abs(x).max()
    bound = {"random_k": 40 / 12, "eden": 7.0, "nnadq": 2.0}.get(
        name, 1.0 + 1 / 3 * (name == "cast")
    )
    room = 2.0 if name == "natural" else bound
    assert np.all(np.abs(sent) <= room * largest * (1 + 1e-5) + 2e-38)


@pytest.mark.parametrize("name", CHANNELS)
@settings(max_examples=20, deadline=None)
@given(place=st.integers(0, N - 1), bad=BAD, other=BAD)
def test_bad_values_are_seen_wherever_they_are(
    name: str, place: int, bad: float, other: float
) -> None:
    x = np.array(normal(N))
    x[place], x[(place + 7) % N] = bad, other
    sent = np.asarray(compiled(name)({"w": x})[0]["w"])
    assert not np.isfinite(sent).all() or (
        name == "random_k" and np.isinf(bad) and np.isinf(other)
    )
