"""A run goes on only as what it was begun as: every other setting, datum or weight is
refused and shown.
"""

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss
from rich.console import Console
from run_folder import run_rounds

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.population import samplers
from fedjax_fm.runs import OtherRun, RunFolder, RunFolderError

PENALTY = 0.0
HELPERS = Path(__file__).resolve().parents[1] / "helpers"


def penalised_loss(delta, backbone, batch, key):
    losses, metrics = mlp_loss(delta, backbone, batch, key)
    return losses + PENALTY * jnp.sum(delta["w"] ** 2), metrics


def clients_with(change):
    clients = [
        {name: np.array(array) for name, array in client.items()}
        for client in make_clients()
    ]
    change(clients)
    return clients


def one_value(clients):
    clients[2]["x"][0, 0] += 0.5


def two_rows_change_places(clients):
    for array in clients[0].values():
        array[[0, 1]] = array[[1, 0]]


def backbone_with(scale):
    return jax.tree.map(lambda leaf: leaf * scale, make_trees()[1])


def algorithm(loss=mlp_loss, optimizer=None, server=None, steps=1, batch_size=4):
    optimizer = optax.sgd(0.05) if optimizer is None else optimizer
    return ffm.fedavg(
        ffm.Task(loss), optimizer, server, local_steps=steps, batch_size=batch_size
    )


def lossy(bits=4, share=0.5):
    return channels.error_feedback(
        channels.chain(channels.top_k(share), channels.quantize(bits))
    )


def never(client, round_index, key):
    return jnp.zeros((), bool)


BEGUN = dict(
    algorithm=algorithm,
    clients=make_clients,
    backbone=lambda: make_trees()[1],
    uplink=lossy,
    cohort_size=3,
)


def simulator_of(**changes):
    made = {
        name: value() if callable(value) else value
        for name, value in {**BEGUN, **changes}.items()
    }
    method, clients = made.pop("algorithm"), made.pop("clients")
    return ffm.Simulator(method, ffm.Population.from_clients(clients), **made)


def go_on(folder, rounds, *, delta=None, **changes):
    said = io.StringIO()
    delta = make_trees()[0] if delta is None else delta
    state = run_rounds(
        simulator_of(**changes),
        delta,
        rounds,
        folder,
        label="mlp",
        console=Console(file=said, width=400),
        evaluate_every=1,
    )
    return state, said.getvalue()


def go_on_plain(folder, rounds, **changes):
    """Without a channel, which compiles faster."""
    return go_on(folder, rounds, **{"uplink": None, **changes})


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with one round done."""
    folder = RunFolder.create(tmp_path_factory.mktemp("begun") / "run", {}, "mlp")
    go_on(folder, 1)
    return folder


OTHERS = {
    "learning rate": (
        dict(algorithm=lambda: algorithm(optimizer=optax.sgd(0.1))),
        ["-0.05 → -0.1"],
    ),
    "optimizer": (
        dict(algorithm=lambda: algorithm(optimizer=optax.sgd(0.05, momentum=0.9))),
        ["0.9"],
    ),
    "schedule": (
        dict(
            algorithm=lambda: algorithm(
                optimizer=optax.sgd(optax.cosine_decay_schedule(0.05, 10))
            )
        ),
        ["0.05"],
    ),
    "server optimizer": (
        dict(algorithm=lambda: algorithm(server=optax.sgd(0.7))),
        ["0.7"],
    ),
    "local steps": (dict(algorithm=lambda: algorithm(steps=2)), ["steps", "1", "2"]),
    "batch size": (
        dict(algorithm=lambda: algorithm(batch_size=2)),
        ["batch_size: 4 → 2"],
    ),
    "another loss": (
        dict(algorithm=lambda: algorithm(loss=penalised_loss)),
        ["mlp_loss", "penalised_loss"],
    ),
    "seed": (dict(seed=7), ["seed: 0 → 7"]),
    "cohort size": (dict(cohort_size=2), ["cohort_size: 3 → 2"]),
    "bits of the channel": (dict(uplink=lambda: lossy(bits=8)), ["uplink", "4 → 8"]),
    "share of the channel": (dict(uplink=lambda: lossy(share=0.25)), ["0.5 → 0.25"]),
    "no channel": (dict(uplink=None), ["uplink"]),
    "another channel without settings": (dict(downlink=channels.natural), ["downlink"]),
    "sampler": (
        dict(sampler=lambda: samplers.cyclic(len(make_clients()), 3)),
        ["sampler"],
    ),
    "behaviour": (
        dict(behaviour=lambda: ffm.Behaviour(drops=never)),
        ["behaviour", "never"],
    ),
    "one value of the data": (
        dict(clients=lambda: clients_with(one_value)),
        ["data", "x"],
    ),
    "order of the data": (
        dict(clients=lambda: clients_with(two_rows_change_places)),
        ["data", "x"],
    ),
    "a client less": (dict(clients=lambda: make_clients()[:-1]), ["n_clients"]),
    "backbone": (
        dict(backbone=lambda: backbone_with(1.01)),
        ["backbone", "other values"],
    ),
    "start": (
        dict(delta=jax.tree.map(lambda leaf: leaf + 0.1, make_trees()[0])),
        ["delta", "other values"],
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_another_run_is_refused_with_the_difference(begun, other):
    changes, words = OTHERS[other]
    before = (begun.path / "metrics.jsonl").read_bytes()
    with pytest.raises(OtherRun, match="was begun") as raised:
        go_on(begun, 2, **changes)
    for word in (*words, str(begun.path), "identity.json"):
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1500
    assert (begun.path / "metrics.jsonl").read_bytes() == before


def test_a_constant_that_only_the_program_holds_is_seen(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "run", {}, "mlp")
    made = dict(algorithm=lambda: algorithm(loss=penalised_loss))
    go_on_plain(folder, 1, **made)
    monkeypatch.setitem(globals(), "PENALTY", 0.01)
    with pytest.raises(OtherRun, match="program"):
        go_on_plain(folder, 2, **made)


@pytest.mark.parametrize("where", [dict(data="host"), dict(states="host")], ids=str)
def test_it_is_seen_where_the_host_drives_the_rounds(tmp_path, monkeypatch, where):
    folder = RunFolder.create(tmp_path / "run", {}, "mlp")
    made = dict(algorithm=lambda: algorithm(loss=penalised_loss), **where)
    go_on_plain(folder, 1, **made)
    go_on_plain(folder, 2, **made)
    monkeypatch.setitem(globals(), "PENALTY", 0.01)
    with pytest.raises(OtherRun, match="program"):
        go_on_plain(folder, 3, **made)


def test_the_same_run_goes_on_and_may_go_further(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {}, "mlp")
    go_on_plain(folder, 1)
    _, said = go_on_plain(folder, 3)
    assert "warning" not in said
    assert [row["round"] for row in folder.metrics()] == [1, 2, 3]


def test_another_version_of_the_code_is_a_warning(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {}, "mlp")
    go_on_plain(folder, 1)
    found = folder.read_json("identity.json")
    found["code"] |= {"jax": "0.9.1"}
    folder.write_json("identity.json", found | {"program": "of another jax"})
    _, said = go_on_plain(folder, 2)
    assert "warning: " in said
    assert f"jax 0.9.1 → {jax.__version__}" in said


def test_weights_that_differ_by_rounding_are_a_warning(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {}, "mlp")
    go_on_plain(folder, 1)
    _, said = go_on_plain(
        folder,
        2,
        backbone=lambda: jax.tree.map(
            lambda x: x * np.float32(1 + 2e-7), make_trees()[1]
        ),
    )
    assert "warning: " in said
    assert "rounding" in said


def test_one_value_among_many_is_another_data_set():
    """In weights it could be rounding."""
    from fedjax_fm.runs.fingerprint import array_print
    from fedjax_fm.runs.identity import compare

    many = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
    other = many.copy()
    other[123_456] += 0.5
    for name, refused, warnings in (("data.x", 1, 0), ("backbone['w']", 0, 1)):
        before, now = (
            {"settings": {}, "code": {}, "arrays": {name: array_print(a)}}
            for a in (many, other)
        )
        found = compare(before, now)
        assert (len(found.refused), len(found.warnings)) == (refused, warnings)
        assert compare(before, before) == ([], [])


def test_a_folder_without_an_identity_goes_on_with_a_warning(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {}, "mlp")
    go_on_plain(folder, 1)
    (folder.path / "identity.json").unlink()
    _, said = go_on_plain(
        folder, 2, seed=0, algorithm=lambda: algorithm(optimizer=optax.sgd(0.1))
    )
    assert "warning: " in said
    assert "identity.json" in said
    with pytest.raises(OtherRun, match=r"0\.1"):
        go_on_plain(folder, 3)


def test_before_the_first_checkpoint_settings_may_change(tmp_path):
    """A run that was killed while it compiled left its layout, of another cohort, and
    nothing to protect.
    """
    folder = RunFolder.create(tmp_path / "run", {}, "mlp")
    go_on_plain(folder, 0, cohort_size=1)
    state, _ = go_on_plain(folder, 1)
    assert folder.metrics()[0]["clients"] == 3
    assert state.round == 1


def test_fewer_rounds_than_are_done_are_refused(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {}, "mlp")
    go_on_plain(folder, 2)
    with pytest.raises(RunFolderError, match="has 2 rounds done, 1 were asked for"):
        go_on_plain(folder, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rounds", -1), ("rounds", 1.5), ("rounds", True), ("evaluate_every", 0), ("evaluate_every", "2")],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(tmp_path, name, value):
    folder = RunFolder.create(tmp_path / "run", {}, "mlp")
    given = {"rounds": 1, name: value}
    said = {"evaluate_every": "every"}.get(name, name)
    with pytest.raises((TypeError, ValueError), match=rf"got {said}={value!r}"):
        run_rounds(
            simulator_of(),
            make_trees()[0],
            given.pop("rounds"),
            folder,
            label="mlp",
            console=Console(file=io.StringIO()),
            **given,
        )
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.json"]


def test_a_layout_that_this_machine_cannot_have_is_named(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {}, "mlp")
    go_on_plain(folder, 1)
    folder.write_json("plan.json", {"n_devices": 1000, "block_size": 1, "n_blocks": 1})
    with pytest.raises(RunFolderError, match=r"on 1000 devices.*this machine has"):
        go_on_plain(folder, 2)
    folder.write_json("plan.json", {"devices": 1})
    with pytest.raises(RunFolderError, match=r"plan\.json"):
        go_on_plain(folder, 2)


def test_identities_of_two_processes_are_equal(tmp_path):
    """Addresses, hash seeds and orders of sets change from process to process."""
    text = textwrap.dedent("""
        import sys; sys.path[:0] = sys.argv[2:]
        import test_identity as t
        t.go_on_plain(t.RunFolder.create(sys.argv[1], {}, "mlp"), 0)
    """)
    found = []
    for seed in ("1", "2"):
        place, paths = tmp_path / seed, (str(HELPERS), str(Path(__file__).parent))
        subprocess.run(
            [sys.executable, "-c", text, str(place), *paths],
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        found.append(json.loads((place / "identity.json").read_text()))
    assert found[0]["settings"] == found[1]["settings"]
    assert found[0] == found[1]
    assert found[0]["program"]


def test_large_arrays_are_not_read_whole(tmp_path):
    """A memory map of 8 GB (a sparse file): its identity is a matter of milliseconds."""
    from fedjax_fm.runs.fingerprint import array_print

    (tmp_path / "x.npy").touch()
    os.truncate(tmp_path / "x.npy", 8 << 30)
    large = np.memmap(tmp_path / "x.npy", np.float32, "r", shape=(1 << 19, 1 << 12))
    small = np.ones((3, 2), np.float32)
    assert array_print(large)["type"] == "float32[524288, 4096]"
    assert array_print(small) == array_print(jnp.ones((3, 2)))
    assert array_print(small)["sha256"] != array_print(small + 1)["sha256"]
    assert array_print(small)["sha256"] != array_print(small.reshape(2, 3))["sha256"]
    key = array_print(jax.random.key(3))
    assert key != array_print(jax.random.key(4))
