"""`fedjax-fm bench kernels`: for real at the smoke size, and its table and errors with
measurements stubbed out.
"""

import json
import sys

import numpy as np
import pytest

from fedjax_fm.cli import main
from fedjax_fm.experiments.bench import kernels, kernels_cases, kernels_side


def bench(*words):
    """The command's exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "kernels", *map(str, words)])
    return stopped.value.code


def test_every_kernel_agrees_with_its_peers_and_is_timed(capsys):
    """All but the one of 1e7, which is the first one again."""
    chosen = [name for name in kernels.NAMES if name != "topk-1e7"]
    assert bench("--smoke", "--json", "--repeats", 2, "--only", *chosen) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["name"], row["peer"]) for row in rows] == [
        ("topk-1e6", "lax.top_k"),
        ("topk-256x1e5", "lax.top_k"),
        ("quantize-4e6", "the same with jax.random.uniform"),
        ("pack-4e6", "quantising"),
        ("unpack-4e6", "quantising"),
        ("uplink-1e6", "the selection alone"),
        ("uplink-1e6", "lax.top_k and jax.random"),
    ]
    for row in rows:
        assert set(row) == set(kernels.FIELDS)
        assert row["peer_error"] is None
        assert min(row["seconds"], row["peer_seconds"], row["floor_seconds"]) > 0
        assert row["ratio"] == row["peer_seconds"] / row["seconds"]


def test_every_name_has_a_case():
    assert set(kernels.NAMES) == set(kernels_cases.CASES)


def test_a_peer_that_computes_something_else_is_an_error(monkeypatch):
    case = kernels_cases.top_k((1000,), False)
    wrong = case.peers[0]._replace(call=lambda: (None, np.arange(10)))
    monkeypatch.setitem(
        kernels_cases.CASES,
        "topk-1e6",
        lambda part, torch: case._replace(peers=(wrong,)),
    )
    (row,) = kernels_side.answers(["topk-1e6"], 1, False, 1)
    assert row == {
        "name": "topk-1e6",
        "peer": "lax.top_k",
        "peer_error": "gives another result",
    }


def test_torch_has_a_row_or_the_reason_why_not(monkeypatch):
    rows = list(kernels_side.answers(["topk-1e6"], 1, True, 1000))
    assert [row["peer"] for row in rows] == ["lax.top_k", "torch.topk"]
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch raises ImportError
    rows = list(kernels_side.answers(["topk-1e6", "pack-4e6"], 1, True, 1000))
    assert [(row["name"], row["peer"], "peer_error" in row) for row in rows] == [
        ("topk-1e6", "lax.top_k", False),
        ("topk-1e6", "torch.topk", True),
        ("pack-4e6", "quantising", False),
    ]
    assert rows[1]["peer_error"].startswith("torch cannot be imported")


def test_table_and_exit_code(monkeypatch, capsys):
    good = {
        "name": "topk-1e6",
        "seconds": 1e-3,
        "peer": "lax.top_k",
        "peer_seconds": 8e-3,
        "ratio": 8.0,
    }
    bad = {
        "name": "topk-1e6",
        "peer": "torch.topk",
        "peer_error": "gives another result",
    }
    monkeypatch.setattr(
        kernels,
        "rows",
        lambda names, **options: [
            dict.fromkeys(kernels.FIELDS) | r for r in (good, bad)
        ],
    )
    assert bench() == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "8.00" in printed
    assert "another" in printed


def test_errors_name_the_value(monkeypatch, capsys):
    assert bench("--only", "topk-1e5") == 2
    assert "topk-1e6" in capsys.readouterr().err
    assert bench("--repeats", 0) == 2
    assert "repeats=0" in capsys.readouterr().err
    monkeypatch.setattr(kernels.sys, "executable", "false")
    assert bench("--smoke") == 2
    assert "ended with code 1" in capsys.readouterr().err
