"""Each leaf of a message through the channel that a rule gives it."""

import contextlib
import re
from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_fm import checks, trees
from fedjax_fm.channels.arguments import checked_channel
from fedjax_fm.channels.payload import Payload
from fedjax_fm.channels.vectors import is_rows, opened
from fedjax_fm.types import Channel, Tree

Rule = str | Callable[[str, jax.ShapeDtypeStruct], bool]


class Part(NamedTuple):
    """One of the messages into which a message falls."""

    channel: Channel
    leaves: list
    names: str  # dotted paths of the leaves


@contextlib.contextmanager
def _naming(part: Part):
    """What a channel says of a list of leaves is of no use without their names."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):  # JAX's own
            raise
        raise type(error)(f"per_leaf, message of {part.names}: {error}") from error


def per_leaf(
    *rules: tuple[Rule, Channel],
    otherwise: Channel | None = None,
    together: bool = False,
) -> Channel:
    """`per_leaf((r"lora_A", quantize(4)), (lambda path, leaf.

    Leaf.ndim < 2, identity()), otherwise=top_k(0.01))`.

    The first rule that holds for a leaf decides. Every leaf is a message of its own
    (its own k, scale and residual) unless `together`, which sends all leaves of a rule
    as one. Class: the worst of the channels'. Bits: their sum.

    Args:
      rules: (predicate, channel) pairs; a string is `re.search`ed in the leaf's dotted
        path, a function gets (path, leaf), where leaf has a shape and a dtype.
      otherwise: for leaves that no rule takes; None makes such a leaf an error.

    Raises:
      ValueError: at the first message, a leaf that no rule takes.
    """
    if not rules and otherwise is None:
        raise ValueError("per_leaf needs at least one rule or `otherwise`, got none")
    for pair in rules:
        if not isinstance(pair, tuple) or isinstance(pair, Channel) or len(pair) != 2:
            raise TypeError(
                f"per_leaf: expected pairs (rule, channel), got {pair!r}; a "
                "channel alone is `otherwise=`"
            )
        rule, channel = pair
        if not isinstance(rule, str) and not callable(rule):
            raise TypeError(
                f"expected a regular expression or a function as rule, got {rule!r}"
            )
        checked_channel(f"per_leaf, rule {rule!r}", channel)
    if otherwise is not None:
        checked_channel("per_leaf, otherwise", otherwise)
    together = checks.flag("together", together)
    channels = [channel for _, channel in rules] + (
        [otherwise] if otherwise is not None else []
    )

    def choice(path: str, leaf) -> int:
        for index, (rule, _) in enumerate(rules):
            if re.search(rule, path) if isinstance(rule, str) else rule(path, leaf):
                return index
        if otherwise is None:
            raise ValueError(
                f"per_leaf: no rule takes the leaf {path!r}, and there is no `otherwise`"
            )
        return len(rules)

    def plan(tree: Tree) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(channel, numbers of its leaves) for every message into which this one falls."""
        paths = jax.tree.flatten_with_path(tree, is_leaf=is_rows)[0]

        def shape(leaf):
            return leaf.values if is_rows(leaf) else leaf

        chosen = [choice(trees.path_of(path), shape(leaf)) for path, leaf in paths]
        if not together:
            return tuple((channel, (number,)) for number, channel in enumerate(chosen))
        groups = [
            (c, tuple(i for i, d in enumerate(chosen) if d == c))
            for c in range(len(channels))
        ]
        return tuple(group for group in groups if group[1])

    def parts_of(tree: Tree) -> list[Part]:
        paths = jax.tree.leaves_with_path(tree, is_leaf=is_rows)
        names = [trees.path_of(path) or "the leaf" for path, _ in paths]
        return [
            Part(
                channels[c],
                [paths[i][1] for i in numbers],
                ", ".join(names[i] for i in numbers),
            )
            for c, numbers in plan(tree)
        ]

    def init(shapes):
        states = []
        for part in parts_of(shapes):
            with _naming(part):
                states.append(part.channel.init(part.leaves))
        return tuple(states)

    def encode(state, tree, key):
        parts = parts_of(tree)
        keys = jax.random.split(key, max(1, len(parts)))
        done = []
        for part, part_state, part_key in zip(
            parts, state, keys[: len(parts)], strict=True
        ):
            with _naming(part):
                done.append(part.channel.encode(part_state, part.leaves, part_key))
        form = (
            "per_leaf",
            together,
            (jax.tree.structure(tree, is_leaf=is_rows), plan(tree)),
        )
        return Payload((), tuple(payload for payload, _ in done), form), tuple(
            s for _, s in done
        )

    def decode(payload):
        structure, groups = opened(payload, "per_leaf", together)
        leaves = {}
        for (channel, numbers), part in zip(groups, payload.side, strict=True):
            leaves.update(zip(numbers, channels[channel].decode(part), strict=True))
        return jax.tree.unflatten(structure, [leaves[i] for i in range(len(leaves))])

    def bits(payload):
        _, groups = opened(payload, "per_leaf", together)
        return sum(
            channels[c].bits(part)
            for (c, _), part in zip(groups, payload.side, strict=True)
        )

    return Channel(init=init, encode=encode, decode=decode, bits=bits)
