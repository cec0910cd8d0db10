"""OpenFedLLM's runs: its rows by `datasets` itself, its cohorts by its own lines, its folders
by PEFT and numpy.
"""

import json
import random
import warnings
from dataclasses import asdict, make_dataclass

import datasets
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from peft_pairs import make_pair, opened_by_peft, ours, peft_adapter, theirs

import fedjax_fm as ffm
from fedjax_fm import peft
from fedjax_fm.bridges import openfedllm


def split_dataset(dataset, seed, dataset_sample, n_clients):
    """`process_sft_dataset` behind its renaming (utils/process_dataset.py, commit 9ee5d047) and
    `split_dataset` (federated_learning/split_dataset.py, commit 274be4da), by `datasets` itself;
    its version 2.13 dealt in turn by default.
    """
    dataset = dataset.shuffle(seed=2023)
    if dataset_sample:
        dataset = dataset.select(range(min(len(dataset), dataset_sample)))
    dataset = dataset.shuffle(seed=seed)
    return lambda contiguous: [
        dataset.shard(n_clients, k, contiguous=contiguous) for k in range(n_clients)
    ]


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize(
    ("n_rows", "n_clients", "seed", "sample"),
    [(103, 7, 2023, 20_000), (103, 7, 5, 50), (12, 12, 0, 0)],
)
def test_each_client_gets_their_rows(n_rows, n_clients, seed, sample, contiguous):
    table = datasets.Dataset.from_dict({"row": list(range(n_rows))})
    expected = split_dataset(table, seed, sample, n_clients)(contiguous)
    found = openfedllm.split(
        n_rows, n_clients, seed=seed, dataset_sample=sample, contiguous=contiguous
    )
    assert [own.tolist() for own in found] == [shard["row"] for shard in expected]
    population = ffm.Population.from_table(table, rows=found)
    assert population.sizes.tolist() == [len(shard) for shard in expected]


def test_the_cohorts_are_theirs():
    """`get_clients_this_round` of federated_learning/fed_global.py, commit 9ee5d047."""
    known = openfedllm.sampler(6, 20, 3)
    state = known.init()
    for round in range(6):
        random.seed(round)
        expected = sorted(random.sample(range(20), 3))
        assert openfedllm.cohort(round, 20, 3) == expected
        ids, n_active, state = known.draw(state, jax.random.key(round))
        assert (ids.tolist(), int(n_active)) == (expected, 3)
    assert (
        int(known.draw(state, jax.random.key(6))[1]) == 0
    )  # nobody, not the last again
    assert openfedllm.cohort(4, 2, 5) == [0, 1]


def test_their_learning_rate_is_optaxs():
    """`cosine_learning_rate` of utils/utils.py, commit cdc780d5, at some rounds."""
    schedule = optax.cosine_decay_schedule(5e-5, 200, alpha=1e-6 / 5e-5)
    for round, expected in ((0, 5e-5), (50, 4.282412e-05), (100, 2.55e-5), (200, 1e-6)):
        assert float(schedule(round)) == pytest.approx(expected, rel=1e-5)


def test_a_run_comes_back(tmp_path):
    losses = np.array([[0.5, np.nan, 0.25], [np.nan, 1.5, 1.0]])
    run = openfedllm.Run({"seed": 2023}, {"num_clients": 2}, losses, {})
    openfedllm.write_run(tmp_path, run)
    raw = np.load(tmp_path / "training_loss.npy")
    assert raw.tolist() == [[0.5, -1, 0.25], [-1, 1.5, 1]]
    script, federated = (
        make_dataclass(name, fields)(*fields.values())
        for name, fields in (("S", run.script_args), ("F", run.fed_args))
    )
    combined = {"script_args": asdict(script), "fed_args": asdict(federated)}
    assert (tmp_path / "args.json").read_text() == json.dumps(combined, indent=4)
    found = openfedllm.read_run(tmp_path)
    assert found[:2] == run[:2]
    assert found.checkpoints == {}
    np.testing.assert_array_equal(found.losses, losses)


def test_runs_that_are_wrong_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no args.json; found None"):
        openfedllm.read_run(tmp_path / "nowhere")
    (tmp_path / "args.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no training_loss.npy; found \['args"):
        openfedllm.read_run(tmp_path)
    np.save(tmp_path / "training_loss.npy", np.zeros((3, 2)))
    with pytest.raises(ValueError, match="expected args"):
        openfedllm.read_run(tmp_path)
    text = json.dumps({"script_args": {}, "fed_args": {"num_clients": 2}})
    (tmp_path / "args.json").write_text(text)
    with pytest.raises(ValueError, match=r"num_clients=2, rounds\], got \[3, 2\]"):
        openfedllm.read_run(tmp_path)
    model = nnx.Dict(q_proj=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(FileNotFoundError, match=r"any checkpoint .* got rounds none"):
        openfedllm.load_checkpoint(tmp_path, model)
    adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
    openfedllm.save_checkpoint(tmp_path, 50, adapted)
    with pytest.raises(FileNotFoundError, match=r"checkpoint-60 .* got rounds \[50\]"):
        openfedllm.load_checkpoint(tmp_path, model, 60)
    other = nnx.Dict(q_proj=nnx.Linear(5, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(
        peft.AdapterError, match=r"expected shape \[2, 5\], got \[2, 4\]"
    ):
        openfedllm.load_checkpoint(tmp_path, other)
    with pytest.raises(ValueError, match="n_rows=3"):
        openfedllm.split(3, 4)


def test_checkpoints_open_in_peft_and_come_from_peft(tmp_path):
    """As `main_sft.py` saves them: in PEFT's format, older versions as adapter_model.bin."""
    torch = pytest.importorskip("torch")
    hugging_face = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    pair = make_pair("llama", tmp_path / "base")
    config = hugging_face.LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    run = tmp_path / "run"
    reference = peft_adapter(pair, config, run / "checkpoint-50")
    found = openfedllm.load_checkpoint(run, pair.model)
    np.testing.assert_allclose(ours(found), theirs(reference), rtol=1e-4, atol=1e-4)

    saved = openfedllm.save_checkpoint(run, 100, found)
    again = opened_by_peft(pair, saved)
    np.testing.assert_allclose(ours(found), theirs(again), rtol=1e-4, atol=1e-4)

    state = hugging_face.get_peft_model_state_dict(reference)
    older = run / "checkpoint-150"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.save_pretrained(older)
    (older / "adapter_model.safetensors").unlink()
    torch.save(state, older / "adapter_model.bin")
    last = openfedllm.load_checkpoint(run, pair.model)
    jax.tree.map(np.testing.assert_array_equal, last.delta, found.delta)
    fields = {"script_args": {}, "fed_args": {"num_clients": 2}}
    (run / "args.json").write_text(json.dumps(fields))
    np.save(run / "training_loss.npy", np.array([[-1, 0.5], [0.25, -1]]))
    assert list(openfedllm.read_run(run).checkpoints) == [50, 100, 150]
