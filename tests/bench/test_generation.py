"""Generation inside clients beside transformers': both write the same tokens."""

import json

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from fedjax_fm.experiments.bench import floor, generation


def test_both_sides_write_the_same_and_are_timed(monkeypatch, capsys):
    rate = floor.Rate(flop_per_second=1e9, one_core=1e9, engine="XLA")
    monkeypatch.setattr(floor, "best_rate", lambda products: rate)
    monkeypatch.setattr(generation, "memory_rate", lambda: 1e9)
    generation.main(["--small", "--repeats", "1"])
    found = json.loads(capsys.readouterr().out)
    setup = generation.SMALL
    assert found["equal_answers"] == {"at_once": 1.0, "in_turn": 1.0}
    tokens = setup.rows * setup.new_tokens
    for name in generation.NAMES:
        seconds = found["seconds"][name]
        assert found["tokens_per_second"][name] == pytest.approx(tokens / seconds)
    # Weights of every token that is read, the last of an answer is not.
    d, wide, layers = 32, 64, 2
    weights = layers * (2 * d * d + 2 * d * d // 2 + 3 * d * wide)
    read = setup.prompt_tokens + setup.new_tokens - 1
    least = 2 * setup.rows * (read * weights + setup.new_tokens * d * 512)
    assert least < found["flop"] < 1.2 * least
    stored = 4 * (weights + d * 512 + d * (2 * layers + 1))
    assert found["bytes_read"] == setup.new_tokens * stored
    assert found["floor_seconds"] == pytest.approx(
        max(found["flop"], found["bytes_read"]) / 1e9
    )


def test_other_tokens_are_no_comparison():
    ours = np.zeros((2, 10, 3), np.int32)
    assert generation.equal_share(ours, ours) == 1
    theirs = ours.copy()
    theirs[0, :2, 2] = 1
    with pytest.raises(RuntimeError, match="90% of the answers are the same"):
        generation.equal_share(ours, theirs)
