"""The notebooks run as they stand, and what they claim holds."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "notebooks"


def cells(name: str) -> list[dict]:
    return json.loads((FOLDER / name).read_text())["cells"]


def test_new_algorithm(monkeypatch):
    matplotlib.use("Agg")
    names: dict = {}
    for cell in cells("new_algorithm.ipynb"):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "new_algorithm.ipynb", "exec"), names)
    distances = names["distances"]
    assert (distances["FedAvg"][-1] > 0.1).all()
    assert (distances["SCAFFOLD"][-1] < 1e-4).all()
    assert float(np.linalg.norm(names["state"].delta["w"] - names["optimum"])) < 1e-4


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name
)
def test_notebooks_are_stored_executed_and_without_errors(path):
    code = [cell for cell in cells(path.name) if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert not [
        out for cell in code for out in cell["outputs"] if out["output_type"] == "error"
    ]
    assert any(
        "image/png" in out.get("data", {}) for cell in code for out in cell["outputs"]
    )
