"""Each leaf of a message through the channel that a rule gives it."""

import contextlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fedjax_fm import checks, trees
from fedjax_fm.channels.arguments import checked_channel
from fedjax_fm.channels.laws import side_by_side
from fedjax_fm.channels.payload import Payload
from fedjax_fm.channels.vectors import is_rows, opened
from fedjax_fm.types import Channel, Tree

# A regular expression for the dotted path, or `(path, leaf) -> bool`.
Rule = str | Callable[[str, jax.ShapeDtypeStruct], bool]


class Part(NamedTuple):
    """One of the messages into which a message falls."""

    channel: Channel
    leaves: list  # of the message, in tree order
    names: str  # dotted paths of the leaves


class _Routes(NamedTuple):
    """Which channel takes which leaf."""

    rules: tuple[tuple[Rule, Channel], ...]
    otherwise: Channel | None
    together: bool

    @property
    def channels(self) -> list[Channel]:
        """Of all rules in order; `otherwise` comes last."""
        last = [] if self.otherwise is None else [self.otherwise]
        return [channel for _, channel in self.rules] + last

    def choice(self, path: str, leaf) -> int:
        """The number of the leaf's channel."""
        for index, (rule, _) in enumerate(self.rules):
            if _takes(rule, path, leaf):
                return index
        if self.otherwise is None:
            raise ValueError(
                f"per_leaf: no rule takes the leaf {path!r}, and there is no "
                "`otherwise`"
            )
        return len(self.rules)

    def groups(self, tree: Tree) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(channel, numbers of its leaves) of every part into which this tree falls."""
        chosen = []
        for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=is_rows):
            shape = leaf.values if is_rows(leaf) else leaf
            chosen.append(self.choice(trees.path_of(path), shape))
        if not self.together:
            return tuple((channel, (number,)) for number, channel in enumerate(chosen))
        found = []
        for channel in sorted(set(chosen)):
            numbers = tuple(i for i, c in enumerate(chosen) if c == channel)
            found.append((channel, numbers))
        return tuple(found)

    def parts(self, tree: Tree) -> list[Part]:
        """The messages into which this one falls."""
        paths = jax.tree.leaves_with_path(tree, is_leaf=is_rows)
        names = [trees.path_of(path) or "the leaf" for path, _ in paths]
        channels, found = self.channels, []
        for channel, numbers in self.groups(tree):
            leaves = [paths[i][1] for i in numbers]
            listed = ", ".join(names[i] for i in numbers)
            found.append(Part(channels[channel], leaves, listed))
        return found


def _takes(rule: Rule, path: str, leaf) -> bool:
    """Whether a rule holds for a leaf."""
    if isinstance(rule, str):
        return re.search(rule, path) is not None
    return bool(rule(path, leaf))


@contextlib.contextmanager
def _naming(part: Part):
    """Adds the leaves' names to an error of a channel, which sees a bare list."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):  # JAX's own
            raise
        raise type(error)(f"per_leaf, message of {part.names}: {error}") from error


def _check_rules(rules: tuple, otherwise: Channel | None) -> None:
    """Refuses what are no (rule, channel) pairs."""
    if not rules and otherwise is None:
        raise ValueError("per_leaf needs at least one rule or `otherwise`, got none")
    pairs: Any = rules
    for pair in pairs:
        is_pair = isinstance(pair, tuple) and not isinstance(pair, Channel)
        if not is_pair or len(pair) != 2:
            raise TypeError(
                f"per_leaf: expected pairs (rule, channel), got {pair!r}; a "
                "channel alone is `otherwise=`"
            )
        rule, channel = tuple(pair)
        if not isinstance(rule, str) and not callable(rule):
            raise TypeError(
                f"expected a regular expression or a function as rule, got {rule!r}"
            )
        checked_channel(f"per_leaf, rule {rule!r}", channel)
    if otherwise is not None:
        checked_channel("per_leaf, otherwise", otherwise)


def per_leaf(
    *rules: tuple[Rule, Channel],
    otherwise: Channel | None = None,
    together: bool = False,
) -> Channel:
    """Sends each leaf of a message through the channel of the first rule that holds.

    Every leaf is a message of its own, with its own k, scale and residual, unless
    `together`, which sends all leaves of a rule as one. Bits: the sum over the parts.
    Unbiased, or contractive, if all channels are, with the worst of their constants.

    Args:
      *rules: (rule, channel) pairs. A string is `re.search`ed in the leaf's dotted
        path; a function gets (path, leaf), where leaf has a shape and a dtype.
      otherwise: for leaves that no rule takes; None makes such a leaf an error.
      together: whether the leaves of a rule are one message.

    Returns:
      A channel whose state is a tuple, one entry a part.

    Raises:
      TypeError: a rule that is no (rule, channel) pair, an `otherwise` that is no
        channel.
      ValueError: neither rules nor `otherwise`; at the first message, a leaf that no
        rule takes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> def is_vector(path, leaf):
      ...     return leaf.ndim < 2
      >>> channel = channels.per_leaf(
      ...     (r"lora_A", channels.cast()),
      ...     (is_vector, channels.identity()),
      ...     otherwise=channels.int_blocks(bits=8),
      ... )
      >>> matrix = jnp.ones((2, 2))
      >>> tree = {"bias": jnp.ones(2), "lora_A": matrix, "w": matrix}
      >>> payload, _ = channel.encode(channel.init(tree), tree, jax.random.key(0))
      >>> channel.bits(payload)  # 2 * 32, 4 * 16, 4 * 8 and a scale
      192
    """
    _check_rules(rules, otherwise)
    together = checks.flag("together", together)
    routes = _Routes(rules, otherwise, together)
    channels = routes.channels

    def init(shapes):
        states = []
        for part in routes.parts(shapes):
            with _naming(part):
                states.append(part.channel.init(part.leaves))
        return tuple(states)

    def encode(state, tree, key):
        parts = routes.parts(tree)
        keys = jax.random.split(key, max(1, len(parts)))[: len(parts)]
        payloads, states = [], []
        for part, old, part_key in zip(parts, state, keys, strict=True):
            with _naming(part):
                payload, new = part.channel.encode(old, part.leaves, part_key)
            payloads.append(payload)
            states.append(new)
        structure = jax.tree.structure(tree, is_leaf=is_rows)
        form = ("per_leaf", together, (structure, routes.groups(tree)))
        return Payload((), tuple(payloads), form), tuple(states)

    def decode(payload):
        structure, groups = opened(payload, "per_leaf", together)
        leaves = {}
        for (channel, numbers), part in zip(groups, payload.side, strict=True):
            decoded = channels[channel].decode(part)
            leaves.update(zip(numbers, decoded, strict=True))
        in_order = [leaves[number] for number in sorted(leaves)]
        return jax.tree.unflatten(structure, in_order)

    def bits(payload):
        _, groups = opened(payload, "per_leaf", together)
        pairs = zip(groups, payload.side, strict=True)
        return sum(channels[channel].bits(part) for (channel, _), part in pairs)

    law = side_by_side([channel.law for channel in channels])
    return Channel(init=init, encode=encode, decode=decode, bits=bits, law=law)
