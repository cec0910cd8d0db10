"""`bench accelerator` on the CPU, tiny."""

import json

import pytest

from fedjax_fm.experiments.bench import accelerator


def test_lines_come_one_by_one_and_tell_of_failures(monkeypatch, tmp_path):
    def broken():
        raise RuntimeError("no such kernel\nmore")

    rows = [
        accelerator.Check(name="good", seconds=0, run=lambda: {"same": True}),
        accelerator.Check(name="broken", seconds=0, run=broken),
        accelerator.Check(name="long", seconds=1e9, run=broken),
    ]
    monkeypatch.setattr(accelerator, "checks", lambda smoke: rows)
    out = tmp_path / "card.jsonl"
    assert accelerator.run(1, out, as_json=True, smoke=True) == 1
    machine, good, failed, left = map(json.loads, out.read_text().splitlines())
    assert machine["platform"] == "cpu"
    assert good == {"check": "good", "same": True}
    assert failed == {"check": "broken", "failed": "RuntimeError: no such kernel"}
    assert "of the 1000000000 s" in left["left out"]


def test_the_cpu_agrees_with_itself():
    assert all(accelerator.same_kernels()["same bits"].values())
    found = accelerator.same_rounds()
    assert found["largest difference"] == 0
    assert found["same"]


def test_flop_of_a_token():
    ((setup, _, _),) = accelerator.setups(smoke=True)
    # 106 million weights in the layers, 28 in the tied head
    found = accelerator.flop_of_token(setup)
    assert found == pytest.approx(4 * 134.5e6, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert accelerator.peak_of(kind) == peak
