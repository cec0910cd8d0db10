"""Benchmarks whose authors score by Matthews correlation or F1, in a run."""

import json

import numpy as np
import pytest
from small_checkpoints import BERT, checkpoint

import fedjax_fm as ffm
from fedjax_fm.cli import main
from fedjax_fm.finetune import data as of_data
from fedjax_fm.finetune import files
from fedjax_fm.finetune.outputs import restored
from fedjax_fm.finetune.settings import Settings, read_toml
from fedjax_fm.runs.settings import replace


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("agreements")
    checkpoint(place / "bert", BERT)
    return place


def read_small(name, stand_in):
    """A few hundred made-up rows in the place of thousands."""
    found = ffm.datasets.load(name, source="stand-in", limit=400)
    names = set(found.train.columns)
    return files.Source(
        table=found.train,
        name=name,
        kind="benchmark, stand-in",
        sha256=str(found.provenance["sha256"]),
        client="client",
        roles=next(r for r in files._NORMAL if set(r.values()) <= names),
        metrics=found.benchmark.metric,
    )


def finetune(folder, name, monkeypatch, *words):
    monkeypatch.setattr(files, "_benchmark", read_small)
    of_data.prepare.cache_clear()
    place = folder / name.replace("/", "-")
    main(
        [
            *("finetune", "--model", str(folder / "bert"), "--data", name),
            *("--stand-in", "--rounds", "1", "--cohort", "2", "--rank", "2"),
            *("--local-steps", "2", "--learning-rate", "0.05", "--max-length", "16"),
            *("--out", str(place), *words),
        ]
    )
    return place


def predicted(run, data, groups):
    """(predicted, true) of each group by a plain call of the saved model."""
    place = run / "model" / "delta.npz"
    delta = restored(data.adapted.delta, dict(np.load(place)), place)
    model = data.adapted.model(delta, data.adapted.backbone)
    found = []
    for rows in groups:
        inputs = {name: array for name, array in rows.items() if name != "label"}
        logits = np.asarray(model(**inputs))
        found.append((logits.argmax(axis=-1), rows["label"]))
    return found


def test_cola_is_decided_by_matthews_correlation(folder, monkeypatch):
    metrics = pytest.importorskip("sklearn.metrics")
    run = finetune(folder, "glue/cola", monkeypatch, "--local-clients", "2")
    found = json.loads((run / "results.json").read_text())
    assert found["scores"][0]["name"] == "MCC"
    assert [one["name"] for one in found["scores"][-1:]] == ["accuracy"]
    assert set(found["arms"]) == {"federated", "centralised", "local", "zero_shot"}
    (one,) = found["arms"]["federated"]["runs"]
    settings = replace(Settings(), **read_toml(run / "finetune.toml"))
    data = of_data.load(settings, 0, "final")
    each = predicted(run, data, data.unseen)
    of_clients = [metrics.matthews_corrcoef(b, a) for a, b in each]
    np.testing.assert_allclose(one["clients"], of_clients, atol=1e-9)
    a, b = (np.concatenate(side) for side in zip(*each, strict=True))
    assert one["scores"]["MCC"] == pytest.approx(metrics.matthews_corrcoef(b, a))
    assert one["scores"]["accuracy"] == pytest.approx((a == b).mean(), abs=1e-6)
    n = max(1, len(of_clients) // 10)
    assert one["scores"]["worst"] == pytest.approx(np.sort(of_clients)[:n].mean())
    own = predicted(run, data, [rows for rows in data.own if len(rows["label"])])
    a, b = (np.concatenate(side) for side in zip(*own, strict=True))
    assert one["scores"]["own"] == pytest.approx(metrics.matthews_corrcoef(b, a))
    assert "Matthews correlation, unseen clients" in (run / "report.html").read_text()


def test_f1_stands_beside_accuracy(folder, monkeypatch):
    metrics = pytest.importorskip("sklearn.metrics")
    words = ("--no-baselines", "--method", "fedavg")
    run = finetune(folder, "glue/mrpc", monkeypatch, *words)
    found = json.loads((run / "results.json").read_text())
    assert [one["name"] for one in found["scores"]] == [
        "accuracy", "worst", "own", "own_worst", "F1",
    ]  # fmt: skip
    (one,) = found["arms"]["federated"]["runs"]
    settings = replace(Settings(), **read_toml(run / "finetune.toml"))
    data = of_data.load(settings, 0, "final")
    each = predicted(run, data, data.unseen)
    a, b = (np.concatenate(side) for side in zip(*each, strict=True))
    assert one["scores"]["F1"] == pytest.approx(metrics.f1_score(b, a, zero_division=0))
    assert one["scores"]["accuracy"] == pytest.approx((a == b).mean(), abs=1e-6)


def test_own_models_are_scored_so_too(folder, monkeypatch):
    words = ("--no-baselines", "--method", "local_only", "--holdout-clients", "0")
    words = (*words, "--holdout-examples", "0.3", "--min-examples", "4")
    run = finetune(folder, "glue/fedpetuning/cola", monkeypatch, *words)
    found = json.loads((run / "results.json").read_text())
    (one,) = found["arms"]["federated"]["runs"]
    assert found["scores"][0]["name"] == "MCC"
    assert len(one["clients"]) > 2
    assert all(-1 <= value <= 1 for value in one["clients"])
