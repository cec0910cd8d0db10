"""Adapters through NVIDIA FLARE's formats: PEFT opens ours, we open FLARE's, and the rows of
its sites are those of our clients. FLARE's own objects are used where it is installed; a file
that it wrote is here.
"""

import json
from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from peft_pairs import make_pair, ours, theirs

import fedjax_fm as ffm
from fedjax_fm import models, peft
from fedjax_fm.bridges import flare
from fedjax_fm.models import torch_file

JOB = Path(__file__).resolve().parent / "flare_job"
NAME = "base_model.model.q_proj.lora_A.weight"


def small(rank=2):
    model = nnx.Dict(q_proj=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    return peft.apply(model, peft.lora(rank, 4, targets=["q_proj"]))


def drawn(adapted, seed=0):
    """The adapter with all values away from their start."""
    keys = iter(jax.random.split(jax.random.key(seed), 100))
    delta = jax.tree.map(
        lambda x: x + jax.random.normal(next(keys), x.shape), adapted.delta
    )
    return adapted._replace(delta=delta)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_fl_model_comes_back():
    adapted = drawn(small())
    sent = flare.fl_model(adapted, examples=7, metrics={"loss": 2}, current_round=3)
    assert sent["meta"] == {"NUM_STEPS_CURRENT_ROUND": 7}
    assert sent["current_round"] == 3
    assert sent["metrics"] == {"loss": 2.0}
    assert {x.dtype for x in sent["params"].values()} == {np.dtype(np.float32)}
    same(flare.from_fl_model(sent, small()).delta, adapted.delta)


def test_a_diff_is_the_change_and_is_added():
    before, after = drawn(small(), 1), drawn(small(), 2)
    sent = flare.fl_model(after, start=before.delta)
    assert sent["params_type"] == "DIFF"
    kernel = np.asarray(
        after.delta.q_proj.lora_a[...] - before.delta.q_proj.lora_a[...]
    )
    np.testing.assert_array_equal(sent["params"][f"model.{NAME}"], kernel.T)
    found = flare.from_fl_model(sent, before, params_type="DIFF")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        found.delta,
        after.delta,
    )


def test_what_does_not_fit_is_named():
    sent = flare.fl_model(small())
    params = sent["params"]
    with pytest.raises(ValueError, match="params_type 'FULL', got 'DIFF'"):
        flare.from_fl_model({**sent, "params_type": "DIFF"}, small())
    with pytest.raises(ValueError, match="params_type 'DIFF', got 'FULL'"):
        flare.from_fl_model(sent, small(), params_type="DIFF")
    with pytest.raises(ValueError, match="got 'None'"):
        flare.from_fl_model({"params": params}, small())
    with pytest.raises(
        peft.AdapterError, match=r"expected shape \[3, 4\], got \[2, 4\]"
    ):
        flare.from_fl_model(sent, small(rank=3))
    renamed = {name.replace("q_proj", "k_proj"): x for name, x in params.items()}
    with pytest.raises(peft.AdapterError, match=r"missing .*q_proj.*extra .*k_proj"):
        flare.from_fl_model({**sent, "params": renamed}, small())
    base = {"base_model.model.q_proj.weight": np.ones((3, 4))}
    diff = {"params_type": "DIFF", "params": params | base}
    with pytest.raises(
        peft.AdapterError, match=r"changes the adapter alone.*q_proj.weight"
    ):
        flare.from_fl_model(diff, small(), params_type="DIFF")
    nan = {name: x + np.nan for name, x in params.items()}
    with pytest.raises(ValueError, match="finite numbers in model"):
        flare.from_fl_model({**sent, "params": nan}, small())
    twice = params | {NAME: np.ones((2, 4))}
    with pytest.raises(peft.AdapterError, match="two parameters are called"):
        flare.from_fl_model({**sent, "params": twice}, small())
    with pytest.raises(TypeError, match="expected an FLModel"):
        flare.from_fl_model(None, small())


def test_a_file_that_flares_server_wrote_is_the_adapter_that_peft_saved():
    config = models.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
    )  # fmt: skip
    model = models.LlamaForCausalLM(config, nnx.Rngs(0))
    expected = peft.load_pretrained(JOB, model)
    start = peft.apply(model, peft.lora(2, 4, targets=["q_proj", "v_proj"]))
    found = flare.load_global_model(JOB / "FL_global_model.pt", start)
    same(found.delta, expected.delta)


def test_our_file_has_the_form_of_flares(tmp_path):
    theirs_ = torch_file.load(JOB / "FL_global_model.pt")
    adapted = drawn(small())
    flare.save_global_model(tmp_path / "FL_global_model.pt", adapted)
    found = torch_file.load(tmp_path / "FL_global_model.pt")
    assert list(found) == list(theirs_) == ["model", "train_conf"]
    assert found["train_conf"] == theirs_["train_conf"]
    assert type(found["model"]) is type(theirs_["model"]) is OrderedDict
    assert all(name.startswith("model.base_model.model.") for name in theirs_["model"])
    same(
        flare.load_global_model(tmp_path / "FL_global_model.pt", small()).delta,
        adapted.delta,
    )


@pytest.mark.parametrize("kind", ["names of a module", "names alone"])
def test_names_of_a_whole_module_are_read(tmp_path, kind):
    """Without a state_dict of its own, a server's model names the adapter, and its base."""
    adapted = drawn(small())
    arrays = peft.state_dict(adapted)
    base = np.full((3, 4), 2.0, np.float32)
    if kind == "names of a module":
        arrays = {
            name.replace(".weight", ".default.weight"): x for name, x in arrays.items()
        }
        arrays["base_model.model.q_proj.base_layer.weight"] = base
        arrays = {f"model.{name}": x for name, x in arrays.items()}
    torch_file.save(tmp_path / "model.pt", arrays)
    found = flare.load_global_model(tmp_path / "model.pt", small())
    same(found.delta, adapted.delta)
    kernel = found.model().q_proj.base.kernel[...]
    assert bool((kernel == 2).all()) == (kind == "names of a module")


def test_peft_opens_it_with_equal_logits(tmp_path):
    torch = pytest.importorskip("torch")
    hugging_face = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    pair = make_pair("llama", tmp_path / "base")
    method = peft.lora(3, 6, targets=["q_proj", "v_proj"])
    adapted = drawn(peft.apply(pair.model, method))
    flare.save_global_model(tmp_path / "FL_global_model.pt", adapted)
    state = torch.load(tmp_path / "FL_global_model.pt", weights_only=True)["model"]
    config = hugging_face.LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    reference = hugging_face.get_peft_model(pair.reference(), config).eval()
    names = hugging_face.get_peft_model_state_dict(reference).keys()
    plain = {name.removeprefix("model."): value for name, value in state.items()}
    assert plain.keys() == names
    hugging_face.set_peft_model_state_dict(reference, plain)
    np.testing.assert_allclose(theirs(reference), ours(adapted), rtol=1e-4, atol=1e-4)


def test_flares_own_objects_are_read_and_written(tmp_path):
    pytest.importorskip("nvflare")
    from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
    from nvflare.app_opt.pt.model_persistence_format_manager import (
        PTModelPersistenceFormatManager,
    )

    adapted = drawn(small())
    sent = FLModel(
        **flare.fl_model(adapted, examples=3, current_round=1, total_rounds=2)
    )
    assert sent.params_type is ParamsType.FULL
    same(flare.from_fl_model(sent, small()).delta, adapted.delta)
    import torch

    flare.save_global_model(tmp_path / "FL_global_model.pt", adapted)
    data = torch.load(tmp_path / "FL_global_model.pt", weights_only=True)
    manager = PTModelPersistenceFormatManager(data)
    weights = manager.to_model_learnable(None)["weights"]
    assert weights.keys() == sent.params.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(value, sent.params[name])
    diff = FLModel(params_type="DIFF", params=sent.params)
    with pytest.raises(ValueError, match="got 'DIFF'"):
        flare.from_fl_model(diff, small())


def test_a_population_goes_to_sites_and_back(tmp_path):
    rng = np.random.default_rng(0)
    clients = [
        {"x": rng.normal(size=(n, 2, 3)).astype("float32"), "label": rng.integers(0, 9, n).astype("int32"), "flag": rng.random(n) > 0.5}
        for n in (3, 0, 12)
    ]  # fmt: skip
    population = ffm.Population.from_clients(clients)
    names = flare.write_sites(tmp_path, population)
    assert names == ("site-1", "site-2", "site-3")
    first = (tmp_path / "site-1" / "training.jsonl").read_text().splitlines()
    assert len(first) == 3
    assert json.loads(first[0])["label"] == clients[0]["label"][0]
    dtypes = {name: array.dtype for name, array in population.arrays.items()}
    found = flare.read_sites(tmp_path, dtypes=dtypes).population()
    np.testing.assert_array_equal(found.offsets, population.offsets)
    for name, array in population.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_texts_of_nemos_layout_in_the_order_of_numbers(tmp_path):
    rows = [{"sentence": f"räumt {k}\n \u2028", "label": " neutral"} for k in range(12)]
    for k, row in enumerate(rows):
        path = tmp_path / f"alpha10.0_site-{k + 1}.jsonl"
        path.write_text(json.dumps(row) + "\n")  # as pandas' to_json(lines=True)
    file = "alpha10.0_{site}.jsonl"
    found = flare.read_sites(tmp_path, file=file)
    assert found.names == tuple(f"site-{k + 1}" for k in range(12))
    assert found.columns["sentence"] == [row["sentence"] for row in rows]
    again = tmp_path / "again"
    flare.write_sites(again, found.columns, found.rows, sites=found.names, file=file)
    assert flare.read_sites(again, file=file).columns == found.columns
    two = flare.read_sites(tmp_path, file=file, sites=["site-12", "site-3"])
    assert two.columns["sentence"] == [rows[11]["sentence"], rows[2]["sentence"]]


def test_sites_that_are_wrong_are_named(tmp_path):
    table = {"x": np.arange(4.0), "text": ["a", "b", "c", "d"]}
    flare.write_sites(tmp_path, table, [[0], [1, 2, 3]])
    with pytest.raises(FileExistsError, match="site-1"):
        flare.write_sites(tmp_path, table, [[0]])
    with pytest.raises(FileNotFoundError, match=r"site 'site-3'.*'site-1', 'site-2'"):
        flare.read_sites(tmp_path, sites=["site-1", "site-3"])
    with pytest.raises(FileNotFoundError, match=r"no site .*there are none"):
        flare.read_sites(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="column 'text' is not int32"):
        flare.read_sites(tmp_path, dtypes={"text": "int32"})
    with pytest.raises(KeyError, match="dtypes names 'y'"):
        flare.read_sites(tmp_path, dtypes={"y": "int32"})
    with pytest.raises(ValueError, match="row 0 of site-1 has a value that JSON lacks"):
        flare.write_sites(tmp_path / "n", {"x": np.array([np.nan])}, [[0]])
    for sites, said in (
        (["a"], "2 names"),
        (["a", "a"], "once"),
        (["a", "../b"], "letters"),
    ):
        with pytest.raises(ValueError, match=said):
            flare.write_sites(tmp_path / "n", table, [[0], [1]], sites=sites)
    with pytest.raises(ValueError, match="once in file"):
        flare.read_sites(tmp_path, file="training.jsonl")
    with pytest.raises(TypeError, match="expected rows="):
        flare.write_sites(tmp_path / "n", table)
    second = tmp_path / "site-2" / "training.jsonl"
    second.write_text('{"x": 1.0, "text": "a"}\n{"x": 2.0}\n')
    with pytest.raises(
        ValueError, match=r"line 2: expected the columns \['text', 'x'\]"
    ):
        flare.read_sites(tmp_path)
    second.write_text("{x: 1}\n")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        flare.read_sites(tmp_path)
