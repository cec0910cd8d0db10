"""Settings as TOML, and settings that make no sense."""

import dataclasses
import tomllib

import pytest

from fedjax_fm.finetune.settings import Settings, as_toml, read_toml
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.settings import replace


def test_every_setting_comes_back_from_toml(tmp_path):
    settings = Settings(
        model="a/b",
        data='with "quotes" and \\ and ü\x7f',
        template="Q: {prompt}\n{response}",
        learning_rate=(1e-5, 3e-4),
        seeds=(0, 1, 2),
        epsilon=8.0,
        alpha=0.5,
        merge=("gguf",),
        baselines=False,
        epochs=2,
    )
    path = tmp_path / "mine.toml"
    path.write_text(as_toml(settings), encoding="utf-8")
    assert replace(Settings(), **read_toml(path)) == settings


def test_no_clipping_comes_back_from_toml(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(as_toml(Settings(clip_norm=None)), encoding="utf-8")
    assert tomllib.loads(path.read_text())["clip_norm"] == "none"
    assert replace(Settings(), **read_toml(path)) == Settings(clip_norm=None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('schedule = "linear"', "one of constant, cosine"),
        ("seeds = 3", "list, each whole number"),
        ("learning_rate = 1e-3", "list, each number"),
        ('rounds = "3"', "whole number"),
        ("local_steps = 2.0", "whole number"),
        ('merge = "gguf"', "list"),
        ('baselines = "no"', "bool"),
    ],
)
def test_a_file_with_a_value_of_another_type(line, said, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        read_toml(path)


def test_every_field_is_described():
    described = Settings.__doc__
    for field in dataclasses.fields(Settings):
        assert f"  {field.name}: " in described, field.name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rounds": 0}, "rounds >= 1"),
        ({"holdout_clients": 1.0}, "a share"),
        ({"holdout_examples": -0.1}, "a share"),
        ({"epsilon": 0.0}, "epsilon > 0"),
        ({"epsilon": float("nan")}, "epsilon > 0"),
        ({"clip_norm": float("inf")}, "clip_norm > 0"),
        ({"learning_rate": ()}, "learning rates > 0"),
        ({"learning_rate": (float("nan"),)}, "learning rates > 0"),
        ({"local_steps": 1, "epochs": 1}, "not both"),
        ({"max_length": 4}, "max_length >= 8"),
        ({"canaries": -1}, "canaries >= 0"),
        ({"canary_repeats": 0}, "canary_repeats >= 1"),
        ({"canary_repeats": 2}, "give canaries, too"),
        ({"model": "x", "data": "hf_" + "a" * 34}, "secret token"),
    ],
)
def test_settings_that_make_no_sense(changes, said):
    with pytest.raises(UsageError, match=said):
        replace(Settings(), **changes)


def test_a_file_with_a_typo_names_the_nearest(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("ruonds = 3\n", encoding="utf-8")
    with pytest.raises(UsageError, match="did you mean 'rounds'"):
        read_toml(path)
    path.write_text("rounds = \n", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot read"):
        read_toml(path)
