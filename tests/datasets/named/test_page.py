"""The table of the guide is the one that the command makes."""

import importlib.util
from pathlib import Path

import pytest

from fedjax_fm.datasets.named import markdown_table
from fedjax_fm.datasets.named.stand_ins import labels

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location(
        "benchmarks_page", ROOT / "tools" / "benchmarks_page.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(tool):
    text = tool.PAGE.read_text(encoding="utf-8")
    message = "run tools/benchmarks_page.py"
    assert tool.with_table(text, markdown_table()) == text, message


def test_the_figures_of_the_page(tool):
    text = tool.PAGE.read_text(encoding="utf-8")
    assert (
        f"is {labels.bayes_rate(2):.2f}, of three classes {labels.bayes_rate(3):.2f}"
        in text
    )


def test_planted(tool):
    text = tool.PAGE.read_text(encoding="utf-8")
    assert tool.with_table(text, "| other |") != text
    with pytest.raises(ValueError, match="expected"):
        tool.with_table("no marks", "| other |")
