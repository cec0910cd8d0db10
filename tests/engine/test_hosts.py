"""Several processes that talk over gloo, as hosts of a pod would: the same program, the
same numbers.
"""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlp_problem import make_clients
from small_checkpoints import LLAMA, checkpoint

import fedjax_fm as ffm

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
DEVICES = 4  # of all processes together

HOST = """
import json, sys
import jax
number, n_hosts, port = map(int, sys.argv[1:4])
if n_hosts > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", n_hosts, number)
import numpy as np
from mlp_problem import lossy, make_clients, simulate
from fedjax_fm.engine import hosts
from fedjax_fm.engine import simulator as simulator_module
assert len(jax.devices()) == 4
"""

RESULTS = """
CASES = {
    "device": {"uplink": lossy(), "block_size": 2},
    "streamed": {"uplink": lossy(), "block_size": 2, "data": "host"},
    "spilled": {"uplink": lossy(), "block_size": 2, "states": "host"},
    "shared": {"uplink": lossy(), "block_size": 2},
    "few clients": {"cohort_size": 2},
    "model": {"model_parallel": 2},
}
found = {}
for name, how in CASES.items():
    simulator_module.SHARED_FROM = 0 if name == "shared" else 1 << 30
    state, metrics = simulate(rounds=2, devices=4, **how)
    in_parts = [hosts.is_in_parts(x) for x in jax.tree.leaves(state.carry.uplinks)]
    assert any(in_parts) == (name == "shared" and n_hosts > 1), (name, in_parts)
    trees = hosts.here((state.delta, state.carry.uplinks))
    leaves = [np.asarray(x) for x in jax.tree.leaves(trees)]
    found[name] = [x.tolist() for x in leaves]
    found[name] += [metrics["loss"].tolist(), metrics["uplink_bytes"].tolist()]
print(json.dumps(found))
"""

REFUSALS = """
from fedjax_fm import NonFiniteClient
found = {}
def error_of(name, kind, **how):
    try:
        simulate(rounds=2, devices=how.pop("devices", 4), **how)
    except kind as error:
        found[name] = str(error)
error_of("data", ValueError, clients=make_clients(seed=number))
error_of("seed", ValueError, seed=number)
clients = make_clients()
clients[2]["y"][:] = np.nan
error_of("nan", NonFiniteClient, clients=clients, cohort_size=8)
error_of("devices", ValueError, devices=1)
print(json.dumps(found))
"""


RUNS = """
import os, signal
import optax
import fedjax_fm as ffm
from fedjax_fm.runs.errors import Interrupted
from mlp_problem import make_trees, mlp_loss

simulator_module.SHARED_FROM = 0  # each device, and so each host, has a part of the states
folder, stops = sys.argv[4], sys.argv[5] == "stops"
delta, backbone = make_trees()
method = ffm.fedavg(
    ffm.Task(mlp_loss), optax.sgd(0.05, momentum=0.9), optax.sgd(0.7), epochs=2, batch_size=4
)
clients = make_clients()
simulator = ffm.Simulator(
    method, ffm.Population.from_clients(clients), backbone=backbone, cohort_size=6, seed=3,
    uplink=lossy(), devices=4, block_size=2,
)

def stop(round, state, metrics):
    if stops and round == 4 and number == n_hosts - 1:
        os.kill(os.getpid(), signal.SIGTERM)

def scored(round, state, metrics):
    scores = ffm.evaluate(ffm.Task(mlp_loss), *simulator.model(state), clients[0])
    return {"score": float(np.mean(scores["loss"]))}

looks = [ffm.callbacks.checkpoint(folder), stop, scored]
try:
    state, metrics = simulator.run(simulator.init(delta), 8, every=2, callbacks=looks)
    found = {"delta": [np.asarray(x).tolist() for x in jax.tree.leaves(state.delta)]}
    found |= {"loss": metrics["loss"].tolist(), "score": metrics["score"][[1, 7]].tolist()}
    mine = simulator.client_state(state, 5)
    assert mine == ()
    residuals = hosts.here(state.carry.uplinks)
    found |= {"residuals": [np.asarray(x).tolist() for x in jax.tree.leaves(residuals)]}
except Interrupted as error:
    found = {"stopped": str(error)}
print(json.dumps(found))
"""


DEALT = """
import os
import jax.numpy as jnp
import optax
import fedjax_fm as ffm
from fedjax_fm.engine import DealtPopulation
from mlp_problem import make_trees, mlp_loss

saved, where, folder = sys.argv[4:7]
delta, backbone = make_trees()
method = ffm.fedavg(
    ffm.Task(mlp_loss), optax.sgd(0.05, momentum=0.9), optax.sgd(0.7), epochs=2, batch_size=4
)
whole = ffm.Population.open(saved)
population = whole
if where == "files":
    population = DealtPopulation.open(saved)
elif where == "clients":
    cuts = {1: [0, 8], 2: [0, 5, 8], 4: [0, 1, 4, 6, 8]}[n_hosts]
    mine = [whole.client(k) for k in range(*cuts[number:number + 2])]
    population = DealtPopulation.of_hosts(ffm.Population.from_clients(mine))
assert (len(population.arrays["y"]) < population.n_examples) == (n_hosts > 1)

good = jnp.array([0, 1, 2, 4, 5, 6, 7], jnp.int32)  # client 3 has NaN
def draw(state, key):
    return jax.random.permutation(key, good)[:5], jnp.int32(5), state

sampler = ffm.population.samplers.uniform(8, 5)._replace(draw=draw)
found = {"who": [population.n_clients, population.n_examples]}
found["digests"] = getattr(population, "digests", {})
for data in ("device", "host"):
    simulator = ffm.Simulator(
        method, population, backbone=backbone, cohort_size=5, seed=3, uplink=lossy(),
        devices=4, block_size=2, data=data, sampler=sampler,
    )
    look = ffm.callbacks.checkpoint(os.path.join(folder, data))
    rounds = 4 if sys.argv[7] == "first" else 8
    state, metrics = simulator.run(simulator.init(delta), rounds, every=2, callbacks=[look])
    leaves = [np.asarray(x).tolist() for x in jax.tree.leaves(state.delta)]
    found[data] = [*leaves, metrics["loss"].tolist(), metrics["examples"].tolist()]
print(json.dumps(found))
"""


PARTS = """
import jax.numpy as jnp
import optax
import fedjax_fm as ffm
from fedjax_fm import models, peft, tasks

mesh = ffm.engine.client_mesh(model=4)
model = models.from_pretrained(sys.argv[4], mesh=mesh)
adapted = peft.apply(model, peft.lora(rank=2, targets=r"q_proj|v_proj"), jax.random.key(0))
in_parts = [hosts.is_in_parts(leaf) for leaf in jax.tree.leaves(adapted.backbone)]
assert any(in_parts) == (n_hosts > 1)
rng = np.random.default_rng(0)
def client():
    ids = rng.integers(1, 9, (4, 6)).astype(np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}

clients = [client() for _ in range(3)]
simulator = ffm.Simulator(
    ffm.fedavg(tasks.language_modeling(adapted), optax.sgd(0.5), local_steps=2, batch_size=2),
    ffm.Population.from_clients(clients), backbone=adapted.backbone, cohort_size=2,
    devices=4, model_parallel=4,
)
state, metrics = simulator.run(simulator.init(adapted.delta), 2)
leaves = [np.asarray(x).tolist() for x in jax.tree.leaves(state.delta)]
print(json.dumps({"delta": leaves, "loss": metrics["loss"].tolist()}))
"""


@functools.cache
def hosts(n_hosts: int, what: str, *words: str) -> list[dict]:
    """What each of several processes says, which have four devices together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"JAX_NUM_CPU_DEVICES": str(DEVICES // n_hosts), "PYTHONPATH": str(HELPERS)}
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                HOST + what,
                str(number),
                str(n_hosts),
                str(port),
                *words,
            ],
            env=os.environ | here,
            cwd=HELPERS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(n_hosts)
    ]
    try:
        answers = [process.communicate(timeout=400) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, said) in zip(started, answers, strict=True):
        assert process.returncode == 0, said[-3000:]
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in answers]


@pytest.mark.parametrize("n_hosts", [2, 4])
def test_several_hosts_agree_with_one(n_hosts):
    (alone,), several = hosts(1, RESULTS), hosts(n_hosts, RESULTS)
    for found in several:
        assert found.keys() == alone.keys()
        for way, leaves in found.items():
            for leaf, expected in zip(leaves, alone[way], strict=True):
                np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(leaves[-1], alone[way][-1])
    assert all(found == several[0] for found in several)
    assert alone["device"][-2] == pytest.approx(alone["streamed"][-2], rel=1e-5)


def test_what_hosts_differ_in_is_named_in_all_of_them():
    for said in hosts(2, REFUSALS):
        assert "the processes are not about the same: data of process 1" in said["data"]
        assert "seed of process 1 differ from process 0" in said["seed"]
        # NaN is no difference between hosts
        assert "client 2 produced NaN" in said["nan"]
        assert "devices=1 leaves out process 1" in said["devices"]


@pytest.mark.parametrize("n_after", [1, 2])
def test_a_stop_on_one_host_stops_all_and_the_run_goes_on(tmp_path, n_after):
    """In one folder, also with another number of processes."""
    whole, stopped = str(tmp_path / "whole"), str(tmp_path / "stopped")
    (alone,) = hosts(1, RUNS, whole, "goes on")
    for found in hosts(2, RUNS, stopped, "stops"):
        assert found["stopped"].startswith("stopped after round 4 of 8")
    rows = (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["round"] for row in rows] == [1, 2, 3, 4]
    for found in hosts(n_after, RUNS, stopped, "goes on"):
        for name, leaves in found.items():
            for leaf, expected in zip(leaves, alone[name], strict=True):
                np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
    rows = (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["round"] for row in rows] == list(range(1, 9))


@pytest.mark.parametrize("where", ["files", "clients"])
def test_each_host_has_its_own_clients(tmp_path, where):
    """The rounds of one population; a run goes on with another number of processes."""
    clients = make_clients()
    clients[3]["y"][:] = np.nan  # no difference between hosts
    ffm.Population.from_clients(clients).save(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    (whole,) = hosts(1, DEALT, saved, "whole", str(tmp_path / "whole"), "last")
    folder = str(tmp_path / "dealt")
    digests = []
    for n_hosts, part in ((2, "first"), (4, "last"), (1, "last")):
        for found in hosts(n_hosts, DEALT, saved, where, folder, part):
            assert found["who"] == whole["who"]
            digests.append(found["digests"])
            for data in ("device", "host"):
                for leaf, expected in zip(found[data], whole[data], strict=True):
                    if part == "last":
                        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
    assert all(each == digests[0] for each in digests)


def test_each_host_reads_its_part_of_a_backbone(tmp_path):
    fields = LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 4}
    place = str(checkpoint(tmp_path / "llama", fields))
    (alone,) = hosts(1, PARTS, place)
    for found in hosts(2, PARTS, place):
        for name, leaves in alone.items():
            for leaf, expected in zip(found[name], leaves, strict=True):
                np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-6)
