"""What every channel keeps: one row a channel, one test a property. A new channel is a row."""

import functools
import pickle
from collections.abc import Callable
from math import ceil, log2
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.channels import (
    anchored,
    block_dropout,
    cast,
    chain,
    drive,
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
from fedjax_fm.types import Channel, Rows, Unbilled


def whole_bytes(bits: float) -> int:
    return 8 * ceil(bits / 8)


def positions(n: int, k: int) -> int:
    """Bits of k places among n: as numbers or as a bitmap."""
    return whole_bytes(min(k * max(1, ceil(log2(n))), n))


def codes(n: int, bits: int, block: int | None = 512) -> int:
    """Bits of n codes, and a scale a block."""
    return whole_bytes(n * bits) + 32 * ceil(n / min(block or n, n))


def rotated(n: int, bits: int, block: int = 4096) -> int:
    """Bits of EDEN: the last block is padded to a power of two from 128; scales and a seed."""
    left = n % block
    tail = max(128, 2 ** ceil(log2(left))) if left else 0
    return whole_bytes((n - left + tail) * bits) + 32 * ceil(n / block) + 32


def tenth(n: int) -> int:
    return ceil(n / 10)


class Row(NamedTuple):
    make: Callable[[], Channel]
    bits: (
        Callable[[int], int] | None
    )  # of a message of n floats in f32; None where the data decide
    random: bool = False
    odd: bool = True  # C(-x) = -C(x) under one key
    scales: bool = True  # C(c x) = c C(x) for c a power of two
    near: float = 1.0  # bound of the relative error; 1 is that of a message of zeros
    by_leaf: bool = False  # the bits of several leaves are not those of one
    # the program of another row with other numbers: not compiled for properties that
    # need more
    twin: bool = False

    @property
    def scaled_by(self) -> list[float]:
        return [
            f
            for f in (2.0**-30, -1.0, -(2.0**20))
            if (self.odd or f > 0) and (self.scales or abs(f) == 1)
        ]


ROWS = {
    "identity": Row(make=identity, bits=lambda n: 32 * n),
    "top_k(.1), by index": Row(
        make=lambda: top_k(0.1), bits=lambda n: 32 * tenth(n) + positions(n, tenth(n))
    ),
    "top_k(.5), by bitmap": Row(
        make=lambda: top_k(0.5),
        bits=lambda n: 32 * ceil(n / 2) + 8 * ceil(n / 8),
        twin=True,
    ),
    "top_k(1)": Row(
        make=lambda: top_k(1.0), bits=lambda n: 32 * n + 8 * ceil(n / 8), twin=True
    ),
    "random_k(.5)": Row(
        make=lambda: random_k(0.5),
        bits=lambda n: 32 * ceil(n / 2) + 32,
        random=True,
        near=1.3,
    ),
    "random_k(.1), unscaled": Row(
        make=lambda: random_k(0.1, False),
        bits=lambda n: 32 * tenth(n) + 32,
        random=True,
        twin=True,
    ),
    "threshold(.7)": Row(
        make=lambda: threshold(0.7), bits=None, scales=False, twin=True
    ),
    "threshold(2, rms)": Row(make=lambda: threshold(2, "rms"), bits=None),
    "threshold(.5, max)": Row(make=lambda: threshold(0.5, "max"), bits=None, twin=True),
    "quantize(4, max)": Row(
        make=lambda: quantize(4, "max"),
        bits=lambda n: codes(n, 4),
        random=True,
        twin=True,
    ),
    "quantize(4, l2, None)": Row(
        make=lambda: quantize(4, "l2", None),
        bits=lambda n: codes(n, 4, None),
        random=True,
        near=1.5,
        twin=True,
    ),
    "quantize(2, max, 100)": Row(
        make=lambda: quantize(2, "max", 100),
        bits=lambda n: codes(n, 2, 100),
        random=True,
        near=1.5,
    ),
    "quantize(8)": Row(
        make=lambda: quantize(8), bits=lambda n: codes(n, 8), random=True, twin=True
    ),
    "ternary()": Row(
        make=ternary,
        bits=lambda n: 8 * ceil(n / 5) + 32 * ceil(n / 256),
        random=True,
        near=1.7,
    ),
    "ternary(None, l2)": Row(
        make=lambda: ternary(None, "l2"),
        bits=lambda n: 8 * ceil(n / 5) + 32,
        random=True,
        near=5,
        twin=True,
    ),
    "sign()": Row(make=sign, bits=lambda n: codes(n, 1, None)),
    "sign(64)": Row(make=lambda: sign(64), bits=lambda n: codes(n, 1, 64), twin=True),
    "natural": Row(make=natural, bits=lambda n: 8 * n + whole_bytes(n), random=True),
    "eden(2)": Row(make=lambda: eden(2), bits=lambda n: rotated(n, 2), random=True),
    "eden(3, mse, 128, 2)": Row(
        make=lambda: eden(3, "mse", 128, 2),
        bits=lambda n: rotated(n, 3, 128),
        random=True,
        twin=True,
    ),
    "drive": Row(make=drive, bits=lambda n: rotated(n, 1), random=True, twin=True),
    "int_blocks(4)": Row(make=lambda: int_blocks(4), bits=lambda n: codes(n, 4, 256)),
    "int_blocks(8, None)": Row(
        make=lambda: int_blocks(8, None), bits=lambda n: codes(n, 8, None), twin=True
    ),
    "nf4": Row(make=nf4, bits=lambda n: codes(n, 4, 64), odd=False),
    "cast(bf16)": Row(make=cast, bits=lambda n: 16 * n),
    "cast(e5m2)": Row(
        make=lambda: cast("float8_e5m2"), bits=lambda n: 8 * n, scales=False, twin=True
    ),
    "cast(e4m3, 32)": Row(
        make=lambda: cast("float8_e4m3fn", 32), bits=lambda n: 8 * n + 8 * ceil(n / 32)
    ),
    "nnadq": Row(make=nnadq, bits=None, scales=False),
    "block_dropout": Row(
        make=lambda: block_dropout(0.0), bits=None, scales=False, twin=True
    ),
    "per_leaf": Row(
        make=lambda: per_leaf(
            ("head", sign()),
            (lambda path, leaf: not leaf.ndim, identity()),
            otherwise=quantize(4),
        ),
        bits=lambda n: codes(n, 4),
        random=True,
        by_leaf=True,
    ),
    "per_leaf, together": Row(
        make=lambda: per_leaf(
            (r"^blocks\b", chain(threshold(1, "rms"), quantize(4))),
            otherwise=identity(),
            together=True,
        ),
        bits=lambda n: 32 * n,
        random=True,
        by_leaf=True,
        twin=True,
    ),
    "chain(top_k, quantize)": Row(
        make=lambda: chain(top_k(0.1), quantize(4)),
        bits=lambda n: codes(tenth(n), 4) + positions(n, tenth(n)),
        random=True,
        twin=True,
    ),
    "chain(chain(random_k, cast), quantize)": Row(
        make=lambda: chain(chain(random_k(0.5), cast()), quantize(8)),
        bits=lambda n: codes(ceil(n / 2), 8) + 32,
        random=True,
        near=1.3,
    ),
    "error_feedback(top_k)": Row(
        make=lambda: error_feedback(top_k(0.1)),
        bits=lambda n: 32 * tenth(n) + positions(n, tenth(n)),
        twin=True,
    ),
    "error_feedback(chain)": Row(
        make=lambda: error_feedback(chain(top_k(0.1), quantize(4))),
        bits=lambda n: codes(tenth(n), 4) + positions(n, tenth(n)),
        random=True,
    ),
    "anchored": Row(
        make=lambda: anchored(int_blocks(8), eden(2), every=2),
        bits=lambda n: codes(n, 8, 256) + rotated(n, 2),
        random=True,
    ),
}
PROGRAMS = [
    name for name, row in ROWS.items() if not row.twin
]  # for properties that compile it anew
KEY = jax.random.key(0)
N_SENDERS = 3


@functools.cache
def channel_of(name: str) -> Channel:
    return ROWS[name].make()


@functools.cache
def compiled(name: str) -> Callable[[Any, Any, jax.Array], tuple[Any, Any, Any]]:
    """state, message, key -> payload, next state, what the server decodes."""
    return jax.jit(whole_way(channel_of(name)))


def whole_way(
    channel: Channel,
) -> Callable[[Any, Any, jax.Array], tuple[Any, Any, Any]]:
    def send(state, tree, key):
        payload, state = channel.encode(state, tree, key)
        return payload, state, channel.decode(payload)

    return send


def message(seed: int = 0) -> dict:
    """445 entries, no multiple of 8: five buckets of 100, a scalar, three entries of bf16."""
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "blocks": [{"w": leaf(21, 21), "b": leaf()}],
        "head": leaf(3).astype(jnp.bfloat16),
    }


def shapes_of(tree: Any) -> Any:
    return jax.eval_shape(lambda: tree)


@functools.cache
def first(name: str) -> tuple[Any, Any, Any]:
    """payload, next state, what the server decodes, of the first message."""
    return compiled(name)(channel_of(name).init(shapes_of(message())), message(), KEY)


def two_rounds(name: str, factor: float = 1.0) -> tuple[list, Any]:
    """What the server decodes of two messages in a row, and the sender's last state."""
    state, received = channel_of(name).init(shapes_of(message())), []
    for r in range(2):
        tree = jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), message(r))
        _, state, arrived = compiled(name)(state, tree, jax.random.fold_in(KEY, r))
        received.append(arrived)
    return received, state


def assert_same(a: Any, b: Any) -> None:
    """Two trees, equal to the last bit but for the sign of zero."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def assert_close(a: Any, b: Any) -> None:
    """Two trees: packed bytes and integers equal, floats but for the rounding of fused
    sums and products.
    """
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jnp.floating):
            np.testing.assert_allclose(
                np.float32(x), np.float32(y), rtol=1e-6, atol=2e-6
            )
        else:
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def billed(payload: Any) -> list[np.ndarray]:
    """The buffers that travel, `Rows` cut to their count."""
    parts = jax.tree.leaves(
        payload, is_leaf=lambda node: isinstance(node, Unbilled | Rows)
    )
    arrays = [
        x.values[: int(x.count)] if isinstance(x, Rows) else x
        for x in parts
        if not isinstance(x, Unbilled)
    ]
    return [np.asarray(x) for x in arrays]


@pytest.fixture(params=ROWS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


TREES = {
    "message": message(),
    "one array": jnp.ones((3, 4)),
    "scalars and a tuple": (
        {"a": jnp.ones(())},
        [jnp.ones((2, 1, 3)), jnp.ones(())],
        None,
    ),
    "bf16, f16 and f32": [
        jnp.ones(9, jnp.float16),
        jnp.ones(1),
        jnp.ones((5, 5), jnp.bfloat16),
    ],
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_decoded_has_structure_shapes_and_dtypes_of_the_message(
    name: str, tree: Any
) -> None:
    channel, shapes = channel_of(name), shapes_of(tree)
    state = channel.init(shapes)
    payload, next_state, received = jax.eval_shape(
        whole_way(channel), state, shapes, KEY
    )
    assert received == shapes
    assert shapes_of(next_state) == shapes_of(
        state
    )  # a state can be carried through lax.scan
    assert all(
        isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(payload)
    )


def test_what_arrives_is_near_what_was_sent(name: str) -> None:
    """Coarse, and true of every row: the distance of a zero message is 1; in two rounds
    feedback catches up.
    """
    received, _ = two_rounds(name)

    def flat(trees):
        return sum(
            np.concatenate([np.float64(x).ravel() for x in jax.tree.leaves(t)])
            for t in trees
        )

    sent, arrived = flat([message(0), message(1)]), flat(received)
    assert np.dot(sent, arrived) > 0
    assert np.linalg.norm(sent - arrived) < ROWS[name].near * np.linalg.norm(sent)


def test_zero_to_zero(name: str) -> None:
    zero = jax.tree.map(jnp.zeros_like, message())
    _, state, received = compiled(name)(
        channel_of(name).init(shapes_of(zero)), zero, KEY
    )
    assert_same(received, zero)
    for leaf in jax.tree.leaves(state):
        assert name == "anchored" or not np.any(np.asarray(leaf))  # its age is none


@pytest.mark.parametrize("name", PROGRAMS)
def test_jit_is_eager(name: str) -> None:
    channel, tree = ROWS[name].make(), message()
    payload, state = channel.encode(channel.init(shapes_of(tree)), tree, KEY)
    payload_jit, state_jit, received_jit = first(name)
    assert_close(payload, payload_jit)
    assert_close(channel.decode(payload), received_jit)
    assert_close(state, state_jit)


@pytest.mark.parametrize("name", PROGRAMS)
def test_vmap_is_the_loop(name: str) -> None:
    def stack(trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    keys = jax.random.split(KEY, N_SENDERS)
    together = jax.jit(jax.vmap(whole_way(channel_of(name))))
    states = [channel_of(name).init(shapes_of(message()))] * N_SENDERS
    batch_states = stack(states)
    for r in range(2):
        trees = [message(10 * r + i) for i in range(N_SENDERS)]
        *batch, batch_states = (
            (out := together(batch_states, stack(trees), keys))[0],
            out[2],
            out[1],
        )
        alone = [compiled(name)(states[i], trees[i], keys[i]) for i in range(N_SENDERS)]
        states = [state for _, state, _ in alone]
        assert_close(stack([payload for payload, _, _ in alone]), batch[0])
        assert_close(stack([received for _, _, received in alone]), batch[1])
        assert_close(stack(states), batch_states)


@pytest.mark.parametrize(
    ("name", "factor"), [(name, f) for name, row in ROWS.items() for f in row.scaled_by]
)
def test_powers_of_two_and_the_sign_pass_through(name: str, factor: float) -> None:
    """C(c x) = c C(x) under one key, over two rounds so that a state scales too."""
    received, _ = two_rounds(name)
    scaled, _ = two_rounds(name, factor)
    assert_same(
        scaled, jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), received)
    )


def test_what_is_not_odd_or_does_not_scale_is_said_so() -> None:
    """The flags of the table are no excuses: those rows do break the equation."""
    for name, row in ROWS.items():
        for factor in ([-1.0] if not row.odd else []) + (
            [2.0**-9] if not row.scales else []
        ):
            received, _ = two_rounds(name)
            scaled, _ = two_rounds(name, factor)
            wanted = jax.tree.map(
                lambda x, f=factor: x * jnp.asarray(f, x.dtype), received
            )
            same = [
                np.array_equal(x, y)
                for x, y in zip(*map(jax.tree.leaves, (scaled, wanted)), strict=True)
            ]
            assert not all(same), name


def test_bits_are_the_bytes_of_the_buffers_and_the_closed_form(name: str) -> None:
    payload, _, _ = first(name)
    bits, row = ROWS[name].make().bits(payload), ROWS[name]
    assert int(bits) == 8 * sum(buffer.nbytes for buffer in billed(payload))
    rows = [
        x
        for x in jax.tree.leaves(payload, is_leaf=lambda x: isinstance(x, Rows))
        if isinstance(x, Rows)
    ]
    if not rows:
        assert type(bits) is int
        if row.bits is not None and not row.by_leaf:
            assert bits == row.bits(445) - (
                3 * 16 if name == "identity" else 0
            )  # it sends bf16 as bf16
    else:
        assert bits.dtype == jnp.uint32
        assert int(jax.jit(ROWS[name].make().bits)(payload)) == int(bits)


@pytest.mark.parametrize("n", [1, 9, 513, 4096])
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.bits])
def test_bits_of_any_length(name: str, n: int) -> None:
    channel, shapes = channel_of(name), {"w": jax.ShapeDtypeStruct((n,), jnp.float32)}
    payload, _ = jax.eval_shape(channel.encode, channel.init(shapes), shapes, KEY)
    assert channel.bits(payload) == ROWS[name].bits(n)


def test_a_payload_decodes_alone(name: str) -> None:
    """The receiver knows the configuration and the shapes; it gets bytes, no state and no key."""
    receiver, shapes = ROWS[name].make(), shapes_of(message())
    payload, _, received = first(name)
    cut = jax.tree.map(
        lambda x: (
            Rows(np.where(_live(x), x.values, np.zeros_like(x.values)), x.count)
            if isinstance(x, Rows)
            else x
        ),
        payload,
        is_leaf=lambda node: isinstance(node, Rows),
    )
    wire = pickle.dumps([np.asarray(leaf) for leaf in jax.tree.leaves(cut)])

    form, _ = jax.eval_shape(receiver.encode, receiver.init(shapes), shapes, KEY)
    rebuilt = jax.tree.unflatten(
        jax.tree.structure(form), [jnp.asarray(x) for x in pickle.loads(wire)]
    )
    assert_close(jax.jit(receiver.decode)(rebuilt), received)


def _live(rows: Rows) -> np.ndarray:
    shape = (-1, *[1] * (rows.values.ndim - 1))
    return (np.arange(rows.values.shape[0]) < int(rows.count)).reshape(shape)


def test_the_key_matters_to_random_channels_only(name: str) -> None:
    state = channel_of(name).init(shapes_of(message()))
    one, again, other = (
        np.concatenate(
            [
                np.float32(x).ravel()
                for x in jax.tree.leaves(compiled(name)(state, message(), key)[0])
            ]
        )
        for key in (KEY, KEY, jax.random.key(1))
    )
    np.testing.assert_array_equal(one, again)
    assert np.array_equal(one, other) != ROWS[name].random


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_bad_value_passes_in_silence(name: str, bad: float) -> None:
    tree = message()
    tree["blocks"][0]["w"] = tree["blocks"][0]["w"].at[3, 4].set(bad)
    _, _, received = compiled(name)(channel_of(name).init(shapes_of(tree)), tree, KEY)
    finite = all(np.isfinite(np.float32(x)).all() for x in jax.tree.leaves(received))
    # random_k did not choose that entry: an infinity there is not part of what it says.
    assert not finite or (
        name.startswith(("random_k", "chain(chain(random_k")) and not np.isnan(bad)
    )


@pytest.mark.parametrize("name", ["identity", "top_k(1)"])
def test_lossless_channels_change_no_bit(name: str) -> None:
    for r, tree in enumerate(two_rounds(name)[0]):
        assert_same(tree, message(r))
