"""Sentence templates of Home Assistant: read, all their sentences, and random ones.

    text          as it stands; white space is collapsed
    (a|b)         one of them; also at the top level of a rule or a list's value
    (a;b)         both, in any order
    [a]           a or nothing
    <rule>        a template of the language's rules
    {list}        a value of a list; {list:slot} names what it fills

A backslash takes the meaning from the sign behind it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_fm.datasets.draws import Draws
from fedjax_fm.datasets.table import DataFileError

_CLOSING = {"(": ")", "[": "]", "<": ">", "{": "}"}
_MOST_DEPTH = 40  # of rules within rules: one that calls itself has no sentence


class Text(NamedTuple):
    """Characters as they are.

    Attributes:
      text: the characters.
    """

    text: str


class Chain(NamedTuple):
    """Parts one after the other.

    Attributes:
      parts: templates.
    """

    parts: tuple[Any, ...]


class Choice(NamedTuple):
    """One of several parts.

    Attributes:
      parts: templates.
    """

    parts: tuple[Any, ...]


class AnyOrder(NamedTuple):
    """All parts in any order, with a blank between them.

    Attributes:
      parts: templates.
    """

    parts: tuple[Any, ...]


class Rule(NamedTuple):
    """A template of its own.

    Attributes:
      name: in the rules.
    """

    name: str


class Slot(NamedTuple):
    """A value of a list.

    Attributes:
      name: of the list.
    """

    name: str


Node = Text | Chain | Choice | AnyOrder | Rule | Slot


class Grammar(NamedTuple):
    """What a language's templates refer to.

    Attributes:
      rules: {name: template}.
      lists: {name: the templates of its values}.
    """

    rules: Mapping[str, Node]
    lists: Mapping[str, Sequence[Node]]


def parse(template: str) -> Node:
    """Reads a template.

    Args:
      template: its text.

    Returns:
      The parts of which it consists.

    Raises:
      DataFileError: a bracket without its other half, or "|" and ";" side by side.

    Example:
      >>> sorted(sentences(parse("turn (on|off) [the] {name}"), Grammar({}, {})))
      ['turn off the {name}', 'turn off {name}', 'turn on the {name}', 'turn on {name}']
    """
    node, end = _group(template, 0, "")
    assert end == len(template)
    return node


def _group(template: str, start: int, closing: str) -> tuple[Node, int]:
    """(what stands before the closing sign, its position)."""
    branches: list[list[Node]] = [[]]
    separators, at = set(), start
    while at < len(template) and template[at] != closing:
        sign = template[at]
        if sign in _CLOSING:
            node, at = _bracket(template, at)
            branches[-1].append(node)
        elif sign in "|;":
            separators.add(sign)
            branches.append([])
        elif sign in ")]>}":
            raise DataFileError(
                f"template {template!r}: {sign!r} at {at} opens nowhere"
            )
        else:
            at += sign == "\\"
            branches[-1].append(Text(template[at : at + 1]))
        at += 1
    if closing and at >= len(template):
        raise DataFileError(f"template {template!r}: expected {closing!r} at its end")
    if len(separators) > 1:
        raise DataFileError(f"template {template!r}: '|' and ';' in one group")
    parts = tuple(_joined(branch) for branch in branches)
    if len(parts) == 1:
        return parts[0], at
    return (AnyOrder(parts) if ";" in separators else Choice(parts)), at


def _bracket(template: str, at: int) -> tuple[Node, int]:
    """(what a bracket means, position of its closing sign)."""
    sign = template[at]
    closing = _CLOSING[sign]
    if sign in "([":
        inner, end = _group(template, at + 1, closing)
        return (Choice((inner, Text(""))) if sign == "[" else inner), end
    end = template.find(closing, at)
    if end < 0:
        raise DataFileError(f"template {template!r}: expected {closing!r} at its end")
    name = template[at + 1 : end].strip()
    return (Rule(name) if sign == "<" else Slot(name.partition(":")[0])), end


def _joined(parts: list[Node]) -> Node:
    """A sequence in which neighbouring characters are one text."""
    merged: list[Node] = []
    for is_text, group in itertools.groupby(parts, key=_is_text):
        texts = list(group)
        if is_text:
            merged.append(Text("".join(part.text for part in texts)))  # pyright: ignore[reportAttributeAccessIssue]
        else:
            merged.extend(texts)
    return merged[0] if len(merged) == 1 else Chain(tuple(merged))


def _is_text(node: Node) -> bool:
    return isinstance(node, Text)


def sentences(node: Node, grammar: Grammar) -> Iterator[str]:
    """All sentences of a template, which may be millions, one after the other.

    Args:
      node: of `parse`.
      grammar: rules and lists; a slot without a list is written as "{name}".

    Yields:
      Sentences with single blanks; one may come twice.

    Raises:
      DataFileError: an unknown rule, or one that calls itself.
    """
    for text in _all(node, grammar, 0):
        yield _collapsed(text)


def _all(node: Node, grammar: Grammar, depth: int) -> Iterator[str]:
    if isinstance(node, Text):
        yield node.text
    elif isinstance(node, Choice):
        for part in node.parts:
            yield from _all(part, grammar, depth)
    elif isinstance(node, Chain):
        found = [list(_all(part, grammar, depth)) for part in node.parts]
        yield from map("".join, itertools.product(*found))
    elif isinstance(node, AnyOrder):
        found = [list(_all(part, grammar, depth)) for part in node.parts]
        for order in itertools.permutations(found):
            yield from (_collapsed(" ".join(x)) for x in itertools.product(*order))
    else:
        for inner in _inside(node, grammar, depth):
            yield from _all(inner, grammar, depth + 1)


def draw(node: Node, grammar: Grammar, draws: Draws) -> str:
    """A random sentence: at each choice, every part is equally likely.

    Args:
      node: of `parse`.
      grammar: rules and lists; a slot without a list is written as "{name}".
      draws: where the choices come from.

    Returns:
      A sentence with single blanks.

    Raises:
      DataFileError: an unknown rule, or one that calls itself.

    Example:
      >>> draw(parse("(one|two) [or three]"), Grammar({}, {}), Draws("a"))
      'one or three'
    """
    return _collapsed(_drawn(node, grammar, draws, 0))


def _drawn(node: Node, grammar: Grammar, draws: Draws, depth: int) -> str:
    if isinstance(node, Text):
        return node.text
    if isinstance(node, Choice):
        return _drawn(draws.one(node.parts), grammar, draws, depth)
    if isinstance(node, Chain):
        return "".join(_drawn(part, grammar, draws, depth) for part in node.parts)
    if isinstance(node, AnyOrder):
        order = draws.shuffled(node.parts)
        texts = [_drawn(part, grammar, draws, depth) for part in order]
        return _collapsed(" ".join(texts))
    inside = _inside(node, grammar, depth)
    return _drawn(draws.one(inside), grammar, draws, depth + 1)


def _inside(node: Rule | Slot, grammar: Grammar, depth: int) -> Sequence[Node]:
    """The templates that may stand for a rule or a slot."""
    if depth > _MOST_DEPTH:
        raise DataFileError(f"rule or list {node.name!r} calls itself")
    if isinstance(node, Slot):
        return grammar.lists.get(node.name) or (Text(f"{{{node.name}}}"),)
    if node.name not in grammar.rules:
        known = sorted(grammar.rules)
        raise DataFileError(f"unknown rule <{node.name}>, expected one of {known}")
    return (grammar.rules[node.name],)


def _collapsed(text: str) -> str:
    return " ".join(text.split())
