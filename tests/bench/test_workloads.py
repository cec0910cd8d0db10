"""Our sides at tiny sizes, their floors in closed form, and the same round in PyTorch."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

import fedjax_fm.experiments.bench as bench
from fedjax_fm.experiments.bench import ours
from fedjax_fm.experiments.bench.compare import TOLERANCE, distance
from fedjax_fm.experiments.bench.environments import PEERS
from fedjax_fm.experiments.bench.protocol import Data
from fedjax_fm.experiments.bench.workloads import WORKLOADS, lora_gpt, lora_minilm

PEERS_FOLDER = Path(bench.__file__).parent / "peers"


@pytest.fixture
def peer_modules(monkeypatch):
    """The peers' scripts import each other by bare names."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(PEERS_FOLDER))


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_trains(name):
    data = WORKLOADS[name].make(True)._replace(rounds=1)
    data = data if data.n_clients <= 1000 else data.full_batch(1000)
    run, parameters = ours.build(name, data)
    results = [data.start]
    for _ in range(2):
        run(1)
        results.append({key: np.array(value) for key, value in parameters().items()})
    for before, after in itertools.pairwise(results):
        assert all(
            after[key].shape == data.start[key].shape and np.isfinite(after[key]).all()
            for key in data.start
        )
        assert any((after[key] != before[key]).any() for key in data.start)


# Rows times 2 FLOP a weight times products, written out.
MLP = 2 * 2 * 784 * 128 + 3 * 2 * 128 * 10
CNN = (
    900 * 2 * 2 * 27 * 32
    + 784 * 3 * 2 * 288 * 64
    + 3 * 2 * 12544 * 128
    + 3 * 2 * 128 * 10
)
D, T, V, R = 256, 32, 1024, 8
LAYER = 2 * 2 * 12 * D * D + 3 * 2 * (D * R + R * 3 * D) + 2 * 3 * 2 * T * D
D_M = 384
LAYER_M = 2 * 2 * 12 * D_M * D_M + 3 * 2 * 4 * D_M * R + 2 * 3 * 2 * T * D_M
FIRST_M = (
    2 * 3 * D_M * D_M + 2 * 2 * D_M * R + 2 * T * D_M
)  # gradients that the first layer's input and keys do not need
MINILM = T * (6 * LAYER_M - FIRST_M) + 2 * 2 * D_M * D_M + 3 * 2 * D_M * 2
GPT = 4 * LAYER + 2 * 2 * D * V - 2 * D * 3 * D - 2 * D * R
FLOP = {
    "mlp-1000": 1000 * 20 * 5 * MLP,
    "cifar-cnn": 50 * 50 * CNN,
    "lora-gpt": 32 * 4 * 4 * 32 * GPT,
    "lora-minilm": 64 * 2 * 8 * MINILM,
    "tiny-round": 10 * 20 * (2 * 2 * 32 * 16 + 3 * 2 * 16 * 10),
    "clients-1e4": 10_000 * 2 * 2 * 2 * 8,
}


@pytest.mark.parametrize("name", FLOP)
def test_floor_in_closed_form(name):
    assert WORKLOADS[name].flop(WORKLOADS[name].make(False)) == FLOP[name]


def test_floor_is_what_the_compiler_counts():
    """XLA's own count of one step's FLOP is the products' and a little for what is not
    a product.
    """
    from fedjax_fm.experiments.bench.workload import cross_entropy, mlp

    data = WORKLOADS["mlp-1000"].make(True)._replace(epochs=1).full_batch(1)
    loss = cross_entropy(mlp)
    step = jax.jit(jax.grad(lambda p: loss(p, (), data.client(0), None)[0].mean()))
    counted = step.lower(data.start).compile().cost_analysis()["flops"]
    assert 1.0 <= counted / WORKLOADS["mlp-1000"].flop(data) < 1.05


def test_ragged_sizes_are_ragged():
    sizes = WORKLOADS["ragged"].make(False).sizes
    assert len(sizes) == 1000
    assert 1 <= sizes.min() < 4
    assert sizes.max() > 10 * np.median(sizes)


def test_data_survive_their_file_and_are_the_same_each_time(tmp_path):
    data = WORKLOADS["lora-gpt"].make(True)
    data.save(tmp_path / "data.npz")
    for other in (Data.load(tmp_path / "data.npz"), WORKLOADS["lora-gpt"].make(True)):
        jax.tree.map(np.testing.assert_array_equal, data._asdict(), other._asdict())
    assert type(Data.load(tmp_path / "data.npz").batch_size) is int


def test_full_batch_copy_keeps_the_first_clients_whole():
    data = WORKLOADS["ragged"].make(True)
    copy = data.full_batch(3)
    assert not data.is_full_batch
    assert copy.is_full_batch
    assert copy.n_clients == 3
    np.testing.assert_array_equal(copy.client(2)["x"], data.client(2)["x"])


@pytest.mark.parametrize("name", ["mlp-1000", "cifar-cnn", "ragged"])
def test_the_torch_peer_computes_the_same(name, peer_modules):
    import with_torch

    data = WORKLOADS[name].make(True)
    data = data if data.is_full_batch else data.full_batch()
    results = []
    for build in (ours.build, with_torch.build):
        run, parameters = build(name, data)
        run(1)
        results.append({key: np.asarray(value) for key, value in parameters().items()})
    assert distance(*results, data.start) < TOLERANCE


def test_our_gpt_is_hugging_faces(peer_modules):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import gpt2

    data = WORKLOADS["lora-gpt"].make(True)
    ids = data.examples["x"]
    logits = lora_gpt.pretrained(data.frozen)(ids)
    with torch.no_grad():
        expected = gpt2.pretrained(data.frozen)(
            input_ids=torch.from_numpy(ids).long()
        ).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_our_bert_is_hugging_faces_and_peft_trains_the_same(peer_modules):
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    import bert
    import with_peft

    data = WORKLOADS["lora-minilm"].make(True)
    ids, mask = data.examples["ids"], data.examples["mask"]
    model = lora_minilm.pretrained(data)
    model.classifier.kernel[...] = data.start["classifier.kernel"]
    with torch.no_grad():
        expected = bert.pretrained(data)(
            torch.from_numpy(ids).long(), torch.from_numpy(mask).long()
        ).logits.numpy()
    np.testing.assert_allclose(model(ids, mask), expected, atol=1e-5)

    results = []
    for build in (ours.build, with_peft.build):
        run, parameters = build("lora-minilm", data)
        run(1)
        results.append({key: np.asarray(value) for key, value in parameters().items()})
    assert distance(*results, data.start) < TOLERANCE


def test_every_peer_has_its_script_and_exact_pins():
    assert {peer for workload in WORKLOADS.values() for peer in workload.peers} == set(
        PEERS
    )
    for peer in PEERS.values():
        assert (PEERS_FOLDER / peer.script).is_file()
        assert "==" in peer.requirements[0]
