"""Factories of the library, called by a text of the command line.

    top_k:0.1|quantize:4                      a chain, and arguments after a colon
    error_feedback(top_k(0.1) | quantize(4))  the same words as in Python
    dirichlet:num_partitions=20,alpha=0.5     arguments by name

Nothing is evaluated: names are looked up in a table, arguments are literals, bare words
(which are texts) or other calls.
"""

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.settings import nearest

Factories = Mapping[str, Callable[..., Any]]


def build(
    text: str,
    factories: Factories,
    what: str,
    *,
    given: Mapping[str, Any] | None = None,
    chain: Callable[..., Any] | None = None,
) -> Any:
    """Calls the factory that a text names, with the arguments that it gives.

    Args:
      text: see the module.
      factories: {name: function}.
      what: the kind of thing, "channel" for example, for messages.
      given: arguments by name, for every factory that has a parameter of that name and
        is not given it by the text.
      chain: joins what stands between bars; None: bars are refused.

    Returns:
      What the factory returns.

    Raises:
      UsageError: an unknown name, with the nearest one; an argument that the factory
        does not take or refuses; a text that is no such call.

    Example:
      >>> build("power:2,exponent=3", {"power": lambda base, exponent: base**exponent}, "f")
      8
      >>> add = {"add": lambda *numbers: sum(numbers), "one": lambda: 1}
      >>> build("add(one, add(one, 2))", add, "sum")
      4
      >>> build("pwr:2", {"power": pow}, "f")
      Traceback (most recent call last):
      fedjax_fm.runs.errors.UsageError: unknown f 'pwr'; did you mean 'power'? There are: power
    """
    builder = _Builder(text, factories, what, given=dict(given or {}), chain=chain)
    return builder.value(_tree(text, what))


def names_in(text: str) -> list[str]:
    """The names in a text, bare words among them, in the order of writing.

    Args:
      text: as for `build`.

    Raises:
      UsageError: the text is no such call.

    Example:
      >>> names_in("error_feedback(top_k(0.1) | quantize(4))")
      ['error_feedback', 'top_k', 'quantize']
    """
    nodes = ast.walk(_tree(text, "expression"))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    return [node.id for node in sorted(names, key=_place)]


def _place(node: ast.expr) -> int:
    return node.col_offset


class _Builder:
    """Builds what one text says."""

    def __init__(
        self,
        text: str,
        factories: Factories,
        what: str,
        *,
        given: dict[str, Any],
        chain: Callable[..., Any] | None,
    ):
        self.text, self.factories, self.what = text, factories, what
        self.given, self.chain = given, chain

    def value(self, node: ast.expr) -> Any:
        """What a call or a chain of calls makes."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            if self.chain is None:
                raise UsageError(
                    f"{self.text!r}: one {self.what} is expected, no chain"
                )
            links = [self.value(link) for link in _links(node)]
            return self.chain(*links)
        if isinstance(node, ast.Name):
            return self.call(node.id, [], {})
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            positional = [self.argument(one) for one in node.args]
            named = {str(one.arg): self.argument(one.value) for one in node.keywords}
            return self.call(node.func.id, positional, named)
        raise self.refused(node)

    def argument(self, node: ast.expr) -> Any:
        """The value of an argument: a literal, a call, or a word as text."""
        if isinstance(node, ast.Name) and node.id not in self.factories:
            words = {"inf": math.inf, "true": True, "false": False, "none": None}
            return words.get(node.id, node.id)
        if isinstance(node, (ast.Name, ast.Call, ast.BinOp)):
            return self.value(node)
        if isinstance(node, (ast.Tuple, ast.List)):
            values = [self.argument(one) for one in node.elts]
            return tuple(values) if isinstance(node, ast.Tuple) else values
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise self.refused(node) from None

    def call(self, name: str, positional: list[Any], named: dict[str, Any]) -> Any:
        """Calls one factory; its errors name the text."""
        if name not in self.factories:
            raise UsageError(nearest(name, self.factories, self.what))
        factory = self.factories[name]
        signature = inspect.signature(factory)
        try:
            taken = signature.bind_partial(*positional, **named).arguments
        except TypeError as error:
            raise UsageError(f"{self.text!r}: {name}{signature}: {error}") from error
        more = {
            key: value
            for key, value in self.given.items()
            if key in signature.parameters and key not in taken
        }
        try:
            return factory(*positional, **named, **more)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self.text!r}: {name}: {error}") from error

    def refused(self, node: ast.expr) -> UsageError:
        return UsageError(
            f"{self.text!r}: expected the name of a {self.what} and its arguments, "
            f"such as {next(iter(self.factories))}(...), got {ast.unparse(node)!r}"
        )


def _links(node: ast.expr) -> list[ast.expr]:
    """What stands between bars, from left to right."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_links(node.left), *_links(node.right)]
    return [node]


def _tree(text: str, what: str) -> ast.expr:
    """The text as a syntax tree of calls; colons become parentheses."""
    links = text.split("|") if "(" not in text else [text]
    spelled = " | ".join(map(_as_call, links))
    try:
        tree = ast.parse(spelled.strip(), mode="eval").body
    except SyntaxError as error:
        raise UsageError(
            f"{text!r} cannot be read as a {what}: write name, name:value,key=value or "
            f"name(value, key=value) ({error.msg})"
        ) from error
    return ast.Call(tree, [], []) if isinstance(tree, ast.Name) else tree


def _as_call(link: str) -> str:
    """`name:a,b=c` as `name(a,b=c)`."""
    name, colon, arguments = link.partition(":")
    return f"{name}({arguments})" if colon and "(" not in name else link
