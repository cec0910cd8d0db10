"""What no argument of a channel may be, and what is said of a channel or a leaf that is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bad_values import Row, cases, is_refused, unlisted

from fedjax_fm import channels
from fedjax_fm.channels import (
    anchored,
    bernoulli_mask,
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
from fedjax_fm.types import Channel

KEY = jax.random.key(0)


def anchored_every(every: int) -> Channel:
    return anchored(identity(), identity(), every)


def per_leaf_together(together: bool) -> Channel:
    return per_leaf(otherwise=identity(), together=together)


ROWS = [
    Row(top_k, {"fraction": 0.5}, {"fraction": "real"}),
    Row(random_k, {"fraction": 0.5}, {"fraction": "real", "scaled": "flag"}),
    Row(threshold, {"least": 0.5}, {"least": "real", "relative_to": "choice"}),
    Row(
        quantize,
        {"bits": 4},
        {"bits": "whole", "norm": "choice", "bucket_size": "whole?"},
    ),
    Row(ternary, {}, {"block_size": "whole?", "norm": "choice"}),
    Row(sign, {}, {"block_size": "whole?"}),
    Row(
        eden,
        {"bits": 2},
        {"bits": "whole", "scale": "choice", "block_size": "whole", "turns": "whole"},
    ),
    Row(drive, {}, {"scale": "choice", "block_size": "whole", "turns": "whole"}),
    Row(int_blocks, {}, {"bits": "whole", "block_size": "whole?"}),
    Row(nf4, {}, {"block_size": "whole?"}),
    Row(cast, {}, {"dtype": "choice", "block_size": "whole?"}),
    Row(nnadq, {}, {"weight": "real"}),
    Row(block_dropout, {}, {"dropped": "real", "weight": "real", "score": "choice"}),
    Row(anchored_every, {"every": 2}, {"every": "whole"}),
    Row(per_leaf_together, {"together": True}, {"together": "flag"}),
]


@pytest.mark.parametrize(("row", "parameter", "value"), cases(ROWS))
def test_no_hyper_parameter_is_a_value_of_another_kind(row, parameter, value):
    is_refused(row, parameter, value)


def test_every_hyper_parameter_is_in_the_table():
    factories = [getattr(channels, name) for name in channels.__all__ if name.islower()]
    ours = [
        make
        for make in factories
        if make.__name__ not in ("payload_bits", "anchored_bits", "code_lengths")
        and make.__module__ != "fedjax_fm.channels.layer_bits"  # test_layer_bits.py
    ]
    missing = {entry.split(":")[0] for entry in unlisted(ours, ROWS)}
    assert missing == {
        "anchored(every",
        "per_leaf(together",
    }  # in the table under names of their own


@pytest.mark.parametrize(
    "fraction", [np.float32(0.07), np.float64(0.07), jnp.float32(0.07), 0.07]
)
def test_a_share_is_the_decimal_that_was_written_in_every_type(fraction):
    for make in (top_k, random_k):
        payload, _ = make(fraction).encode((), jnp.arange(1.0, 101.0), KEY)
        assert payload.values.shape == (7,)


def test_a_number_that_is_known_only_while_tracing_is_refused():
    for make, value in ((top_k, 0.5), (threshold, 0.5), (nnadq, 0.1), (quantize, 4)):
        with pytest.raises(TypeError, match="known before the round is traced"):
            jax.jit(
                lambda traced, make=make: make(traced).encode((), jnp.ones(4), KEY)
            )(value)


NO_CHANNELS = {
    "error_feedback": (
        lambda value: error_feedback(value),
        "error_feedback: expected a channel",
    ),
    "chain": (lambda value: chain(value), "chain: expected a channel"),
    "chain, second": (
        lambda value: chain(top_k(0.5), value),
        "chain: expected a channel",
    ),
    "per_leaf, rule": (
        lambda value: per_leaf(("w", value)),
        "per_leaf, rule 'w': expected a channel",
    ),
    "per_leaf, otherwise": (
        lambda value: per_leaf(otherwise=value),
        "per_leaf, otherwise: expected a channel",
    ),
    "anchored, anchor": (
        lambda value: anchored(value, identity(), 2),
        "anchored, anchor: expected a channel",
    ),
    "anchored, correction": (
        lambda value: anchored(identity(), value, 2),
        "anchored, correction: expected a channel",
    ),
}


@pytest.mark.parametrize("where", NO_CHANNELS)
@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("top_k", "got 'top_k' of type str"),
        (0.5, "got 0.5 of type float"),
        (top_k, r"the function top_k \(call it"),
    ],
)
def test_what_is_no_channel_is_named(where, value, got):
    make, expected = NO_CHANNELS[where]
    with pytest.raises(TypeError, match=f"{expected}.*{got}"):
        make(value)


def test_rules_that_are_no_pairs():
    for rule in (quantize(4), "w", ("w", quantize(4), 3)):
        with pytest.raises(
            TypeError,
            match=r"per_leaf: expected pairs \(rule, channel\), got .*`otherwise=`",
        ):
            per_leaf(rule)  # type: ignore[arg-type]


# ---- channels in a row


FIRST = {
    "quantize": lambda: quantize(4),
    "ternary": ternary,
    "sign": sign,
    "natural": natural,
    "eden": lambda: eden(2),
    "int_blocks": int_blocks,
    "nf4": nf4,
    "nnadq": nnadq,
    "per_leaf": lambda: per_leaf(otherwise=top_k(0.5)),
    "anchored": lambda: anchored(top_k(0.5), top_k(0.5), 2),
}


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize(
    "wrap", [lambda c: c, error_feedback, lambda c: chain(top_k(0.5), c)]
)
def test_the_channel_that_must_come_last_is_named(name, wrap):
    with pytest.raises(ValueError, match=f"here {name}, must come last"):
        chain(wrap(FIRST[name]()), cast()).init(jnp.ones(40))


IN_A_ROW = {
    "pairs": (lambda: chain(chain(top_k(0.5), top_k(0.5)), quantize(4)), 0.25),
    "to the right": (lambda: chain(top_k(0.5), chain(top_k(0.5), quantize(4))), 0.25),
    "three": (
        lambda: chain(chain(top_k(0.5), chain(top_k(0.5), top_k(0.5))), quantize(8)),
        0.125,
    ),
    "by threshold": (
        lambda: chain(chain(threshold(1e-9), threshold(1e-9)), cast("float16")),
        1.0,
    ),
    "with feedback": (
        lambda: chain(error_feedback(chain(top_k(0.5), top_k(0.5))), quantize(8)),
        0.25,
    ),
}


@pytest.mark.parametrize("name", IN_A_ROW)
def test_chains_of_chains_send_what_the_selections_keep(name):
    make, share = IN_A_ROW[name]
    x = np.random.default_rng(0).normal(size=64).astype(np.float32)
    channel = make()
    sent = np.asarray(
        jax.jit(lambda x: channel.decode(channel.encode(channel.init(x), x, KEY)[0]))(x)
    )
    k = round(share * 64)
    kept = np.isin(np.arange(64), np.argsort(-np.abs(x))[:k])
    assert not sent[~kept].any()
    np.testing.assert_allclose(sent[kept], x[kept], atol=np.abs(x).max() / 7)


def test_identity_before_a_channel_changes_nothing_and_carries_flags():
    tree = {"w": jnp.arange(9.0), "mask": jnp.arange(11) % 3 == 0}
    for channel in (
        chain(identity(), quantize(4)),
        chain(identity(), identity(), quantize(4)),
    ):
        payload, _ = channel.encode(channel.init(tree), tree, KEY)
        alone, _ = quantize(4).encode((), tree, KEY)
        assert channel.bits(payload) == quantize(4).bits(alone)
        np.testing.assert_array_equal(channel.decode(payload)["mask"], tree["mask"])
        np.testing.assert_array_equal(
            channel.decode(payload)["w"], quantize(4).decode(alone)["w"]
        )


# ---- leaves that are no floats

ALL = FIRST | {
    "top_k": lambda: top_k(0.5),
    "random_k": lambda: random_k(0.5),
    "threshold": lambda: threshold(0.5),
    "cast": cast,
    "drive": drive,
    "chain": lambda: chain(top_k(0.5), quantize(4)),
    "error_feedback": lambda: error_feedback(quantize(4)),
    "identity": identity,
    "per_leaf by kind": lambda: per_leaf(
        (r"ids|mask", identity()), otherwise=quantize(4)
    ),
}
EXACT = ("identity", "per_leaf by kind")


@pytest.mark.parametrize("name", ALL)
def test_flags_arrive_as_they_are_and_integers_too_or_are_named(name):
    channel = ALL[name]()
    mask, ids = jnp.arange(21).reshape(3, 7) % 3 == 0, jnp.arange(5, dtype=jnp.int32)
    if name != "per_leaf":  # there the flags are a message of their own, see below
        tree = {"w": jnp.ones(9), "mask": mask}
        payload, _ = channel.encode(channel.init(tree), tree, KEY)
        np.testing.assert_array_equal(channel.decode(payload)["mask"], mask)
        without, _ = channel.encode(
            channel.init({"w": jnp.ones(9)}), {"w": jnp.ones(9)}, KEY
        )
        parts = 2 if name == "anchored" else 1  # both messages carry the flags
        assert int(channel.bits(payload)) == int(channel.bits(without)) + parts * 24
    tree = {"w": jnp.ones(9), "ids": ids}
    if name in EXACT:
        payload, _ = channel.encode(channel.init(tree), tree, KEY)
        np.testing.assert_array_equal(channel.decode(payload)["ids"], ids)
        return
    with pytest.raises(TypeError, match=r"ids.*int32; send it through `identity`"):
        channel.encode(channel.init(tree), tree, KEY)


@pytest.mark.parametrize("name", [*ALL, "bernoulli_mask"])
def test_a_leaf_that_is_no_array_is_named(name):
    channel = bernoulli_mask() if name == "bernoulli_mask" else ALL[name]()
    kind = bool if name == "bernoulli_mask" else np.float32
    shapes = {
        "a": jax.ShapeDtypeStruct((3,), kind),
        "rate": jax.ShapeDtypeStruct((), kind),
    }
    with pytest.raises(
        TypeError, match=r"carries arrays, but .* is 1\.5 of type float"
    ):
        channel.encode(channel.init(shapes), {"a": jnp.ones(3, kind), "rate": 1.5}, KEY)


def test_per_leaf_names_the_leaf_that_its_channel_refuses():
    channel = per_leaf((r"ids|mask", quantize(4)), otherwise=top_k(0.5))
    with pytest.raises(
        TypeError,
        match=r"per_leaf, message of head\.ids: quantize carries floating leaves only",
    ):
        channel.encode(
            channel.init({"w": jnp.ones(3)}),
            {"head": {"ids": jnp.arange(3)}, "w": jnp.ones(3)},
            KEY,
        )
    flags = {"mask": jnp.ones(3, bool)}
    state = channel.init(flags)
    with pytest.raises(
        ValueError,
        match=r"per_leaf, message of mask: quantize: the message has bool leaves only",
    ):
        channel.encode(state, flags, KEY)


def test_per_leaf_refuses_the_state_of_another_message():
    channel = per_leaf(otherwise=quantize(4))
    with pytest.raises(ValueError, match="zip"):
        channel.encode((), {"w": jnp.ones(3)}, KEY)
