"""Damage to files: bytes that change, are lost or are added, and values that are others."""

import json
from typing import Any, NamedTuple

from hypothesis import strategies as st

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    1e308,
    "",
    "\x00",
    "../../escaped",
    "<script>alert(1)</script>",
    [],
    {},
    [[]],
    "NaN",
)


class Damage(NamedTuple):
    """What happens to a file.

    Attributes:
      kind: "flip", "cut", "add", "value" or "without".
      place: 0 to 1, where.
      what: a byte, bytes or a value, by kind.
    """

    kind: str
    place: float
    what: Any


def damages() -> st.SearchStrategy[Damage]:
    """One of the kinds, somewhere."""
    place = st.floats(0, 1, exclude_max=True)
    of_bytes = (
        ("flip", st.integers(1, 255)),
        ("cut", st.none()),
        ("add", st.binary(min_size=1, max_size=9)),
        ("value", st.sampled_from(ODD)),
        ("without", st.none()),
    )
    kinds = [st.builds(Damage, st.just(kind), place, what) for kind, what in of_bytes]
    return st.one_of(kinds)


def damaged(raw: bytes, damage: Damage) -> bytes:
    """The file's bytes after it.

    Args:
      raw: before.
      damage: what happens; to a value only where the file is JSON, else to a byte.
    """
    if damage.kind in ("value", "without"):
        try:
            return _other_value(json.loads(raw), damage)
        except ValueError:
            damage = damage._replace(kind="flip", what=255)
    at = int(damage.place * max(len(raw), 1))
    if damage.kind == "cut" or not raw:
        return raw[:at]
    if damage.kind == "add":
        return raw[:at] + damage.what + raw[at:]
    changed = bytes([raw[at] ^ damage.what])
    return raw[:at] + changed + raw[at + 1 :]


def _other_value(tree: Any, damage: Damage) -> bytes:
    """JSON in which one value is another, or its key is gone."""
    owners = [(owner, key) for owner, key in _entries(tree)]
    if not owners:
        return json.dumps(damage.what).encode()
    owner, key = owners[int(damage.place * len(owners))]
    if damage.kind == "without":
        del owner[key]
    else:
        owner[key] = damage.what
    return json.dumps(tree).encode()


def _entries(tree: Any) -> Any:
    """(container, key) of everything inside."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    if not isinstance(tree, dict | list):
        return
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _entries(tree[key])
