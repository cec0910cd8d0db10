"""What the report says of a run."""

from types import SimpleNamespace

from fedjax_fm.finetune import report

PLAN = dict.fromkeys(("source", "data_sha256", "model", "model_sha256"), "")
PLAN |= {"columns": "", "clients": "", "parameters": "", "dp": "delta 0.01"}
FACTS = {"plan": PLAN, "counts": {}}


def privacy(*spent):
    runs = [{"seed": seed, "epsilon": one} for seed, one in enumerate(spent)]
    found = SimpleNamespace(runs=lambda arm: runs, megabytes=lambda arm, names: 1.0)
    return report.lines(found, FACTS)["privacy"]


def test_privacy_of_several_seeds_is_that_of_one_model():
    assert privacy(2.0) == "epsilon 2 for every client, delta 0.01"
    assert privacy(2.0, 3.0).startswith("epsilon 3 for every client, delta 0.01")
    assert "all 2 together spend more" in privacy(2.0, 3.0)
