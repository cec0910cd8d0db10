"""Every "±" is the half of Student's 95 % interval over runs, and one function writes it."""

import ast
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fedjax_fm.evaluation import plus_minus

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("fedjax_fm", "kernels", "experiments", "docs", "tests")
WRITER = "fedjax_fm/evaluation/intervals.py"
MAY_HAVE_THE_SIGN = {
    WRITER: "the function itself",
    "fedjax_fm/study/markdown.py": "says what the sign means, prints none with a number",
    "fedjax_fm/study/page.py": "likewise",
    "fedjax_fm/runs/terminal.py": "what a console without the sign shows",
    "tests/runs/test_terminal.py": "tests of that",
    "tests/study/test_study.py": "looks for it in a table",
    "tests/studies/test_gate_verdicts.py": "likewise",
    "tests/bench/test_flower_both_ways.py": "likewise",
    "tests/test_intervals_everywhere.py": "this file",
}
MAY_TAKE_DEVIATIONS = {
    WRITER: "the function itself",
    "experiments/shared/features.py": "brings features to one scale, tells nobody of a spread",
    "fedjax_fm/algorithms/personal/weighing.py": "FedALA stops when losses stand still",
    "fedjax_fm/evaluation/judges/win_rate.py": "brings lengths to one scale, as AlpacaEval does",
    "fedjax_fm/evaluation/personal.py": "the deviation between clients, by that name",
    "fedjax_fm/population/continuous_partitioner.py": "standardises a column, as flwr-datasets does",
}
DEVIATIONS = ("std", "nanstd", "stdev", "pstdev", "sem")


# The function


@pytest.mark.parametrize("n", [2, 3, 7])
def test_it_is_students_interval(n):
    values = np.random.default_rng(n).normal(0.7, 0.02, n)
    low, high = stats.t.interval(
        0.95, n - 1, loc=values.mean(), scale=stats.sem(values)
    )
    assert (
        plus_minus(values, scale=100, digits=3)
        == f"{50 * (low + high):.3f} ± {50 * (high - low):.3f}"
    )


def test_scale_and_digits():
    assert plus_minus([1.0, 2.0, 6.0]) == "3.0 ± 6.6"
    assert plus_minus([1, 2, 6], scale=10, digits=0) == "30 ± 66"
    assert plus_minus([True, False, True], scale=100) == "66.7 ± 143.4"
    assert plus_minus(np.float32([0.5, 0.5])) == "0.5 ± 0.0"


def test_one_run_has_no_spread():
    assert plus_minus([0.717], scale=100) == "71.7"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least one"),
        ([0.1, np.nan], r"not finite at \[1\]"),
        ([np.inf], r"not finite at \[0\]"),
        ([[0.1, 0.2], [0.3, 0.4]], "one row"),
        (0.5, "one row"),
    ],
)
def test_values_without_an_interval_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        plus_minus(values)


def test_settings_that_write_no_number_are_refused():
    with pytest.raises(TypeError, match="values as numbers"):
        plus_minus(["0.1", "0.2"])
    for wrong in ({"scale": 0}, {"scale": np.nan}, {"digits": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            plus_minus([0.1, 0.2], **wrong)
    with pytest.raises((TypeError, ValueError), match="digits"):
        plus_minus([0.1, 0.2], digits=1.5)


# Who else writes one


def docstrings(tree: ast.Module) -> set[int]:
    """The ids of the nodes that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        if (
            isinstance(
                node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            )
            and node.body
        ):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(id(first.value))
    return found


def signs(source: str) -> list[int]:
    """Lines whose strings hold the sign, or its ASCII form before a value."""
    tree = ast.parse(source)
    texts, found = docstrings(tree), []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in texts
        ):
            ascii_before_value = any(
                form in node.value for form in ("+- {", "+-{", "+- %", "+-%")
            )
            if "±" in node.value or ascii_before_value:
                found.append(node.lineno)
        if isinstance(node, ast.JoinedStr):
            for part, then in zip(node.values, node.values[1:], strict=False):
                text = part.value if isinstance(part, ast.Constant) else ""
                if str(text).rstrip().endswith("+-") and isinstance(
                    then, ast.FormattedValue
                ):
                    found.append(node.lineno)
    return found


def deviations(source: str) -> list[int]:
    """Lines that take a standard deviation, or any moment with `ddof`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = (
            node.func.attr
            if isinstance(node.func, ast.Attribute)
            else getattr(node.func, "id", "")
        )
        if name in DEVIATIONS or any(
            keyword.arg == "ddof" for keyword in node.keywords
        ):
            found.append(node.lineno)
    return found


def found_in(folders: tuple[str, ...], search) -> set[str]:
    """Files in which `search` finds a line."""
    files = [
        path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    assert len(files) > 100
    return {
        path.relative_to(ROOT).as_posix()
        for path in files
        if search(path.read_text(encoding="utf-8"))
    }


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('f"{a} ± {b}"', [1]),
        ('"{} ± {}".format(a, b)', [1]),
        ('x = " ± "', [1]),
        ('f"{a} +- {b}"', [1]),
        ('f"{a:.1f} +-{b}"', [1]),
        ('"{} +- {}".format(a, b)', [1]),
        ('"%f +- %f" % (a, b)', [1]),
        ('"""A table: 1 ± 2."""', []),
        ('def f():\n    """1 ± 2"""\n    return "1 ± 2"', [3]),
        ('f"expected mean +- amplitude, got {x}"', []),
        ("a + -b  # ±", []),
    ],
)
def test_the_search_for_signs_finds_what_it_should(source, lines):
    assert signs(source) == lines


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("x.std()", [1]),
        ("np.std(x, ddof=1)", [1]),
        ("statistics.stdev(x)", [1]),
        ("stdev(x)", [1]),
        ("np.sqrt(np.var(x, ddof=1))", [1]),
        ("x.var()", []),
        ("x.standard()", []),
    ],
)
def test_the_search_for_deviations_finds_what_it_should(source, lines):
    assert deviations(source) == lines


def test_no_other_code_writes_the_sign():
    assert found_in(FOLDERS, signs) == set(MAY_HAVE_THE_SIGN)


def test_no_other_code_takes_a_standard_deviation():
    assert found_in(("fedjax_fm", "kernels", "experiments"), deviations) == set(
        MAY_TAKE_DEVIATIONS
    )
