"""The site is whole, as far as can be seen without building it: `make docs` does that."""

import importlib.util
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
REFERENCE = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("reference/*.md"))
)
DIRECTIVES = re.findall(r"^::: (\S+)$", REFERENCE, re.M)
PACKAGES = (
    "fedjax_fm",
    "fedjax_fm.algorithms",
    "fedjax_fm.algorithms.lora_rules",
    "fedjax_fm.algorithms.server_optimizers",
    "fedjax_fm.bridges",
    "fedjax_fm.callbacks",
    "fedjax_fm.channels",
    "fedjax_fm.datasets",
    "fedjax_fm.datasets.named",
    "fedjax_fm.datasets.packaged",
    "fedjax_fm.engine",
    "fedjax_fm.evaluation",
    "fedjax_fm.evaluation.judges",
    "fedjax_fm.evaluation.leaks",
    "fedjax_fm.kernels",
    "fedjax_fm.models",
    "fedjax_fm.peft",
    "fedjax_fm.population",
    "fedjax_fm.population.samplers",
    "fedjax_fm.preferences",
    "fedjax_fm.privacy",
    "fedjax_fm.robust",
    "fedjax_fm.robust.attacks",
    "fedjax_fm.runs",
    "fedjax_fm.secure",
    "fedjax_fm.sparsity",
    "fedjax_fm.study",
    "fedjax_fm.systems",
    "fedjax_fm.tasks",
    "fedjax_fm.testing",
)
# The site's parser reads sources where they lie, which is not where they are installed.
INSTALLED, SOURCE = "fedjax_fm.kernels.", "kernels."


def pages_of(nav):
    """Every page of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in pages_of(entry)]


def directive_of(value):
    """What shows this function or class on a page."""
    return f"{value.__module__}.{value.__qualname__}".replace(INSTALLED, SOURCE)


def shown_by(directive):
    """The object that a directive shows."""
    if directive.startswith(SOURCE):
        directive = directive.replace(SOURCE, INSTALLED, 1)
    module, _, name = directive.rpartition(".")
    return getattr(importlib.import_module(module), name)


def exported(package):
    """{name: function or class} that the package exports."""
    module = importlib.import_module(package)
    values = {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in values.items()
        if inspect.isfunction(value) or inspect.isclass(value)
    }


def test_the_navigation_has_every_page_once():
    assert sorted(pages_of(SETTINGS["nav"])) == PAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_is_on_a_reference_page(package):
    names = exported(package)
    assert names
    missing = [
        name for name, value in names.items() if directive_of(value) not in DIRECTIVES
    ]
    assert not missing, f"add to docs/reference: {missing} of {package}"


def test_every_directive_shows_something_once():
    assert len(DIRECTIVES) == len(set(DIRECTIVES))
    wrong = [name for name in DIRECTIVES if directive_of(shown_by(name)) != name]
    assert not wrong, f"written elsewhere than the pages say: {wrong}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text("utf-8"))
    links = [link for link in links if not link.startswith("https://")]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 75


def test_strict():
    assert SETTINGS["strict"] is True
    assert SETTINGS["theme"]["font"] is False


def test_docstrings_keep_their_sections():
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location(
        "site_docstrings", ROOT / "tools" / "site_docstrings.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (
        "Sums x[a][b].\n\n    x[a][b]\n\nArgs:\n  a, b: of\n    both.\n  c: not [a][b]."
        "\n\nReturns:\n  One: two `a: b`.\n\nExample:\n  >>> 1\n  1\n\nReferences:\n  A paper."
    )
    assert module.readable(text) == (
        "Sums x[a]\\[b].\n\n    x[a][b]\n\nArgs:\n  a: of\n    both.\n  b: see `a`."
        "\n  c: not [a]\\[b].\n\nReturns:\n  One&#58; two `a: b`.\n\nExamples:\n  >>> 1\n  1\n\n**References:**\n\nA paper."
    )


def test_planted():
    assert pages_of(["a.md", {"Two": ["b.md", {"Three": "c.md"}]}]) == [
        "a.md",
        "b.md",
        "c.md",
    ]


def test_the_wheel_has_every_package():
    """But the peers' sides of benchmarks, which run in environments of their own."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(tomllib.loads(text)["tool"]["setuptools"]["packages"])
    roots = {
        "fedjax_fm": "fedjax_fm",
        "kernels": "fedjax_fm.kernels",
        "experiments": "fedjax_fm.experiments",
    }
    there = set()
    for root, name in roots.items():
        for file in (ROOT / root).rglob("__init__.py"):
            parts = file.parent.relative_to(ROOT / root).parts
            there.add(".".join((name, *parts)))
    assert there - {"fedjax_fm.experiments.bench.peers"} == listed
