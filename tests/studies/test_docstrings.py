"""What the study of docstrings says; its arms are those of `generate`."""

import numpy as np

from fedjax_fm import datasets
from fedjax_fm.experiments import docstrings, generate
from fedjax_fm.experiments.shared.conversations import deal_groups, without_inputs


def test_a_function_is_asked_for_its_docstring(monkeypatch):
    asked = []

    def load(packages):
        asked.append(list(packages))
        row = {
            "package": "toy",
            "source": "def f(x):\n    return x" + "#" * 900,
            "docstring": "Returns x.",
        }
        return {name: np.array([value]) for name, value in row.items()}

    monkeypatch.setattr(datasets, "load_docstrings", load)
    source = docstrings.functions(docstrings.Config())
    docstrings.functions(docstrings.Config(pinned=False))
    assert all("==" in package for package in asked[0])
    assert [package.partition("==")[0] for package in asked[0]] == asked[1]
    lengths = [
        len(source.say(0, shorter)[0]["input"]) for shorter in range(source.shortenings)
    ]
    assert lengths == list(docstrings.SOURCE_CHARACTERS)
    assert source.say(0, 0)[1] == {"role": "assistant", "content": "Returns x."}
    plain = without_inputs(source.say)(0, 2)[0]
    assert plain["content"].startswith(docstrings.INSTRUCTION)
    assert "def f" in plain["content"]


def test_there_are_packages_enough_for_both_splits():
    config = docstrings.Config()
    names = np.array([package.partition("==")[0] for package in docstrings.PACKAGES])
    tuning, final = (
        [set(part) for part in deal_groups(names, config, 0, split)]
        for split in ("tuning", "final")
    )
    assert not (tuning[0] | tuning[1]) & (final[0] | final[1])
    assert len(final[0]) >= config.clients
    assert len(final[1]) >= config.held_out_clients
    assert tuning[0]
    assert tuning[1]


def test_it_is_the_study_of_generate_on_other_texts():
    assert docstrings.STUDY.arms == generate.STUDY.arms
    assert docstrings.STUDY.controls == generate.STUDY.controls
    small = docstrings.Config().smoke()
    assert isinstance(small, docstrings.Config)
    docstrings.STUDY.check_budgets(small)
