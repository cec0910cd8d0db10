"""Texts that call factories, and texts that must be refused."""

import pytest

from fedjax_fm import channels
from fedjax_fm.finetune.expressions import build, names_in
from fedjax_fm.finetune.methods import CHANNELS, channel_of
from fedjax_fm.runs.errors import UsageError


def pair(first, second=2, *, third=3):
    return first, second, third


def same(value):
    return ("same", value)


FACTORIES = {"pair": pair, "same": same}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pair:1", (1, 2, 3)),
        ("pair:1,third=5", (1, 2, 5)),
        ("pair(1, third=-0.5)", (1, 2, -0.5)),
        ("pair:query,second=1e-3", ("query", 1e-3, 3)),
        ("pair([1, 2], 'a b')", ([1, 2], "a b", 3)),
        ("pair(same(4))", (("same", 4), 2, 3)),
        ("same(pair(1))", ("same", (1, 2, 3))),
        ("pair(true, none)", (True, None, 3)),
    ],
)
def test_a_text_is_the_call_that_it_spells(text, expected):
    assert build(text, FACTORIES, "thing") == expected


def test_what_is_given_fills_parameters_that_the_text_leaves_out():
    given = {"first": 7, "second": 8, "unknown": 9}
    assert build("pair", FACTORIES, "thing", given=given) == (7, 8, 3)
    assert build("pair:1", FACTORIES, "thing", given=given) == (1, 8, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pear:1", "did you mean 'pair'"),
        ("pair(peer(1))", "did you mean 'pair'"),
        ("pair:1,fourth=2", "fourth"),
        ("pair:", "pair"),
        ("pair(1", "cannot be read"),
        ("1 + 2", "expected the name"),
        ("pair(__import__('os'))", "unknown thing '__import__'"),
        ("pair.count(1)", "expected the name"),
        ("pair(lambda: 1)", "expected the name"),
        ("same:1|same:2", "no chain"),
    ],
)
def test_what_is_no_such_call_is_refused(text, said):
    with pytest.raises(UsageError, match=said):
        build(text, FACTORIES, "thing")


def test_bars_make_a_chain():
    found = build(
        "same:1|same:2|same:3", FACTORIES, "thing", chain=lambda *links: list(links)
    )
    assert found == [("same", 1), ("same", 2), ("same", 3)]
    assert names_in("same:1|pair:2") == ["same", "pair"]


def test_every_channel_that_can_be_named_is_one():
    needed = {
        "anchored": "anchored(cast, quantize(4), every=10)",
        "cast": "cast:bfloat16",
        "chain": "chain(top_k(0.1), quantize(4))",
        "error_feedback": "error_feedback(top_k(0.1))",
        "int_blocks": "int_blocks:8",
        "layer_bits": "layer_bits:4",
        "quantize": "quantize:4",
        "random_k": "random_k:0.1",
        "threshold": "threshold:0.1",
        "top_k": "top_k:0.1",
        "eden": "eden:2",
    }
    for name in CHANNELS:
        channel = channel_of(needed.get(name, name))
        assert isinstance(channel, channels.chain(channels.identity()).__class__), name
