"""The study of domains, on a few artificial images: who has which, what is planted, and
that arms come to an end.
"""

import dataclasses
import functools

import numpy as np
import pytest
from small_digits import small_digits
from study_arms import run_arm

from fedjax_fm.experiments.domains import STUDY, Config, arms, forms
from fedjax_fm.study.run import Run

CONFIG = dataclasses.replace(
    Config(), most=40, targets=1, width=8, rounds=2, batch_size=16, seeds=(0, 1)
)
found = functools.partial(run_arm, STUDY, CONFIG, learning_rate=3e-3)


@pytest.fixture(autouse=True)
def _artificial(monkeypatch):
    monkeypatch.setattr(forms, "digits", small_digits)


def test_every_image_is_in_one_domain_and_one_part(monkeypatch):
    """With forms that change nothing, rows can be told apart."""
    monkeypatch.setattr(forms, "FORMS", dict.fromkeys("abcd", forms.plain))
    seen = []
    for split in ("tuning", "final"):
        dealt = STUDY.data(CONFIG, 0, split)
        for part in (*dealt.train, *dealt.test):
            seen += [row.tobytes() for row in part["x"]]
    images = {row.tobytes() for row in small_digits()["x"]}
    assert set(seen) <= images
    assert len(set(seen)) == len(seen)


def test_forms_are_what_they_are_called():
    random = np.random.default_rng(0)
    x = random.uniform(size=(3, 64)).astype(np.float32)
    np.testing.assert_allclose(forms.negative(x, random), 1 - x)
    blurred = forms.blurred(x, random).reshape(3, 8, 8)
    np.testing.assert_allclose(
        blurred[1, 3, 4], x.reshape(3, 8, 8)[1, 2:5, 3:6].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        blurred[1, 0, 0], x.reshape(3, 8, 8)[1, :2, :2].sum() / 9, rtol=1e-5
    )
    textured = forms.on_texture(x, random)
    assert (textured >= x).all()
    assert (textured > x).any()


def test_a_planted_source_is_the_first_one():
    dealt = STUDY.data(CONFIG, 0, "final")
    run = Run("fada", CONFIG, 0, "final", {}, lambda: dealt)
    clean = arms.case_of(run, 2, plant=False, shuffle=False)
    bad = arms.case_of(run, 2, plant=True, shuffle=False)
    np.testing.assert_array_equal(clean.target["x"], dealt.train[2]["x"])
    changed = [
        not np.array_equal(a["label"], b["label"])
        for a, b in zip(clean.sources, bad.sources, strict=True)
    ]
    assert changed == [True, False, False]
    for a, b in zip(clean.sources, bad.sources, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
        assert sorted(a["label"]) == sorted(b["label"])


@pytest.mark.parametrize("name", ["fedavg", "source_only", "untrained"])
def test_arms_without_adaptation(name):
    scores, run = found(name)
    assert 0 <= scores["worst"] <= scores["accuracy"] <= 1
    assert (sum(run.bytes.values()) > 0) == (name == "fedavg")


def test_fada_weighs_its_sources():
    scores, run = found("fada_bad", alignment=0.3)
    assert 0 < scores["weight"] < 1
    assert run.bytes["uplink_bytes"] > 0
