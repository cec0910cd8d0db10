"""The recipes on rows that are made up and a small random encoder: that they run, which
rows they read, and that what they write says so.
"""

import json

import numpy as np
import pytest
from small_checkpoints import checkpoint

from fedjax_fm import datasets
from fedjax_fm.experiments.recipes import rte

BERT = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 300,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("recipes") / "bert", BERT)


def run(folder, tmp_path, *arguments):
    out = tmp_path / "looks.jsonl"
    small = ["--model", str(folder), "--stand-in", "--limit", "30", "--rounds", "2"]
    rte.main([*small, "--every", "2", "--out", str(out), *arguments])
    lines = out.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("method", ["frlora", "fedavg"])
def test_frloras_curve(folder, tmp_path, method):
    head, *looks = run(folder, tmp_path, "--paper", "frlora", "--method", method)
    assert head["rows"] == "stand-in"
    assert [look["round"] for look in looks] == [0, 2]
    assert all(0 <= look["accuracy"] <= 1 for look in looks)
    # factors and the classifier of five clients in two rounds; the first look is free
    numbers = 2 * 2 * 16 * 16 + 16 * 2 + 2
    assert looks[0]["bytes_up"] == 0
    assert looks[1]["bytes_up"] == 2 * 5 * 4 * numbers


def test_frlora_starts_at_the_model_as_it_is(folder):
    """Its principal start changes no answer."""
    data = datasets.load("glue/frlora/rte", source="stand-in", limit=30)
    answers = []
    for method in ("frlora", "fedavg"):
        recipe = rte.prepared(data, str(folder), method, rounds=0)
        state = recipe.simulator.init(recipe.delta)
        delta, backbone = recipe.simulator.model(state)
        losses, _ = recipe.task.loss(delta, backbone, recipe.test, None)
        answers.append(np.asarray(losses))
    np.testing.assert_allclose(*answers, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_fedpetunings_row(folder, tmp_path, method):
    head, *looks = run(
        folder, tmp_path, "--paper", "fedpetuning", "--method", method, "--limit", "120"
    )
    assert head["recipe"] == "glue/fedpetuning/rte"
    assert looks[-1]["round"] == 2


def test_the_papers_settings_are_taken(folder):
    data = datasets.load("glue/frlora/rte", source="stand-in", limit=30)
    recipe = rte.prepared(data, str(folder), "frlora")
    assert recipe.rounds == 200
    assert recipe.simulator.population.n_clients == 5
    assert recipe.test["input_ids"].shape[1] <= 256
