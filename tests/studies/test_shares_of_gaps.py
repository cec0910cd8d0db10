"""What the small commands print of a study's results, by hand."""

import numpy as np
import pytest

from fedjax_fm.experiments.prompts import shrinking
from fedjax_fm.experiments.slora import share
from fedjax_fm.experiments.start import gap
from fedjax_fm.study.results import Results


def results(score, **arms):
    """Of seeds 0, 1, 2, with nothing but one score."""
    shown = {
        "name": score,
        "label": "",
        "unit": "",
        "scale": 1.0,
        "highest": True,
        "digits": 1,
    }
    runs = {
        arm: {"label": arm, "runs": [{"scores": {score: value}} for value in values]}
        for arm, values in arms.items()
    }
    return Results({"scores": [shown], "arms": runs})


def test_the_share_of_the_gap():
    found = share.shares(
        results(
            "accuracy",
            slora=[0.6, 0.7, 0.9],
            lora=[0.5, 0.7, 0.5],
            full=[0.7, 0.8, 0.4],
        )
    )
    np.testing.assert_allclose(found[:2], [0.5, 0.0])
    assert np.isnan(found[2])  # full tuning is worse than LoRA: there is no gap


@pytest.mark.parametrize("last", [0.4, 0.9])
def test_what_is_printed_of_shares(monkeypatch, capsys, last):
    made = results("accuracy", slora=[0.6] * 3, lora=[0.5] * 3, full=[0.7, 0.7, last])
    monkeypatch.setattr(share, "read", lambda folder: made)
    monkeypatch.setattr(share.RunFolder, "open", lambda path: path)
    share.main(["folder"])
    said = capsys.readouterr().out
    assert said.startswith("by seed: 0.50, 0.50, ")
    assert ("no mean" in said) == (last < 0.5)


def test_the_gap_at_two_sizes(monkeypatch, capsys):
    made = results(
        "loss",
        prompt_half=[3.0, 3.2, 3.4],
        lora_half=[2.0, 2.0, 2.0],
        prompt_whole=[2.5, 2.6, 2.7],
        lora_whole=[2.0, 2.0, 2.0],
    )
    monkeypatch.setattr(shrinking, "read", lambda folder: made)
    monkeypatch.setattr(shrinking.RunFolder, "open", lambda path: path)
    np.testing.assert_allclose(shrinking.gaps(made, "half"), [1.0, 1.2, 1.4])
    shrinking.main(["folder"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("half: 1.2")
    assert said[2].startswith("smaller by: 0.6")


def test_the_gap_of_two_starts(monkeypatch, capsys):
    made = results(
        "accuracy",
        pretrained_iid=[0.90, 0.92, 0.91],
        pretrained_skewed=[0.89, 0.90, 0.90],
        random_iid=[0.60, 0.62, 0.61],
        random_skewed=[0.50, 0.52, 0.53],
    )
    monkeypatch.setattr(gap, "read", lambda folder: made)
    monkeypatch.setattr(gap.RunFolder, "open", lambda path: path)
    np.testing.assert_allclose(gap.gaps(made, "random"), [0.10, 0.10, 0.08])
    gap.main(["folder"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("pretrained: 1.3")
    assert said[1].startswith("random: 9.3")
    assert said[2].startswith("smaller by: 8.0 points [")
