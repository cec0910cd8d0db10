"""Small expressions of a and b: how they are asked for, read and compared.

The reader knows whole numbers, a, b, +, -, *, brackets and nothing else, and gives up on
what is long or deep: an answer of a model is never run as a program.
"""

from __future__ import annotations

import re

import numpy as np

from fedjax_fm.datasets.named.stand_ins.words import pick

LONGEST, DEEPEST = 200, 30  # characters of an answer; brackets and signs within it
POINTS = ((2, 3), (5, 1), (-4, 7), (0, 6), (11, -3))  # where answers are compared

_WORDS = {
    "+": "the sum of {} and {}",
    "-": "the difference of {} and {}",
    "*": "the product of {} and {}",
}


class NotAnExpression(ValueError):
    """What was written is no expression of a and b."""


def problem(rng: np.random.Generator, depth: int = 2) -> tuple[str, str]:
    """A computation in words and as an expression.

    Args:
      rng: draws it.
      depth: operations within operations, at most.

    Returns:
      (words, expression).

    Example:
      >>> words, expression = problem(np.random.default_rng(3))
      >>> print(words, "|", expression)
      the product of a and the product of a and b | (a * (a * b))
    """
    if depth == 0 or (depth == 1 and rng.random() < 0.5):
        leaf = pick(rng, ("a", "b", str(int(rng.integers(1, 10)))))
        return leaf, leaf
    sign = pick(rng, "+-*")
    left, right = problem(rng, depth - 1), problem(rng, depth - 1)
    words = _WORDS[sign].format(left[0], right[0])
    return words, f"({left[1]} {sign} {right[1]})"


def value(expression: str, a: int, b: int) -> int:
    """What an expression comes to.

    Args:
      expression: of whole numbers, a, b, +, -, * and brackets.
      a: what stands for a.
      b: what stands for b.

    Raises:
      NotAnExpression: anything else is in it, or it is too long or too deep.

    Example:
      >>> value("2 * (a - b)", a=5, b=1)
      8
    """
    if len(expression) > LONGEST:
        raise NotAnExpression(
            f"expected at most {LONGEST} characters, got {len(expression)}"
        )
    tokens = re.findall(r"[0-9]+|[ab()+*-]|\S", expression)
    reader = _Reader(tokens, {"a": a, "b": b})
    found = reader.sum(0)
    if reader.place < len(tokens):
        raise NotAnExpression(f"expected an end, got {tokens[reader.place]!r}")
    return found


def agrees(answer: str, gold: str) -> bool:
    """Whether an answer is an expression with the values of another one.

    Args:
      answer: what a model wrote; blanks around it do not count.
      gold: the expression that is right.

    Returns:
      False for what is no expression, too.

    Example:
      >>> agrees("b + a", "(a + b)"), agrees("a - b", "(a + b)"), agrees("import", "a")
      (True, False, False)
    """
    try:
        return all(value(answer, a, b) == value(gold, a, b) for a, b in POINTS)
    except NotAnExpression:
        return False


class _Reader:
    """Reads sums of products by descent; `place` is the next token."""

    def __init__(self, tokens: list[str], names: dict[str, int]) -> None:
        self.tokens = tokens
        self.names = names
        self.place = 0

    def next(self) -> str | None:
        """The next token, which is not taken; None at the end."""
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def take(self) -> str:
        """Takes the next token."""
        token = self.next()
        if token is None:
            raise NotAnExpression("expected more, got the end")
        self.place += 1
        return token

    def sum(self, depth: int) -> int:
        """Products with + and - between them."""
        total = self.product(depth)
        while self.next() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            total += sign * self.product(depth)
        return total

    def product(self, depth: int) -> int:
        """Atoms with * between them."""
        total = self.atom(depth)
        while self.next() == "*":
            self.take()
            total *= self.atom(depth)
        return total

    def atom(self, depth: int) -> int:
        """A number, a name, an atom with a minus, or a sum in brackets."""
        if depth > DEEPEST:
            raise NotAnExpression(f"expected at most {DEEPEST} levels")
        token = self.take()
        if token == "-":
            return -self.atom(depth + 1)
        if token == "(":
            total = self.sum(depth + 1)
            if (closing := self.take()) != ")":
                raise NotAnExpression(f"expected ')', got {closing!r}")
            return total
        if token in self.names:
            return self.names[token]
        if token.isascii() and token.isdigit():
            return int(token)
        raise NotAnExpression(f"expected a number, a or b, got {token!r}")
