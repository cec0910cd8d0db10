"""A process does not run out of memory maps: compiled programs are dropped before."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm.engine import memory_maps


@pytest.fixture
def few_maps(monkeypatch, tmp_path):
    """As if the kernel allowed hardly more maps than there are."""
    limit = tmp_path / "max_map_count"
    limit.write_text("10\n")
    monkeypatch.setattr(memory_maps, "LIMIT", limit)


def compiled():
    """A function of JAX that is compiled, and how many of its programs are kept."""
    square: Any = jax.jit(jnp.square)
    square(2.0)
    return square, square._cache_size


def simulated(rounds=2):
    """A simulator with its state after some rounds, and its losses."""

    def loss(delta, backbone, batch, key):
        return 0.5 * (delta["w"] - batch["a"]) ** 2, {}

    clients = [{"a": np.array([1, 2], np.float32)}, {"a": np.array([5, 7], np.float32)}]
    simulator = ffm.Simulator(
        ffm.fedavg(ffm.Task(loss), optax.sgd(0.1), local_steps=2, batch_size=2),
        ffm.Population.from_clients(clients),
        cohort_size=2,
        devices=1,
    )
    state, metrics = simulator.run(simulator.init({"w": jnp.float32(0)}), rounds)
    return simulator, state, np.asarray(metrics["loss"])


def test_a_share_of_the_maps_is_counted(monkeypatch, tmp_path):
    for name, text in {"MAPS": "a\nb\nc\n", "LIMIT": "12\n"}.items():
        file = tmp_path / name
        file.write_text(text)
        monkeypatch.setattr(memory_maps, name, file)
    assert memory_maps.in_use() == 0.25
    assert not memory_maps.make_room()


def test_a_new_simulator_drops_programs_when_maps_run_out(few_maps):
    square, n_kept = compiled()
    assert n_kept() == 1
    simulated()
    assert n_kept() == 0
    assert float(square(3.0)) == 9.0


def test_programs_stay_while_there_is_room():
    _, n_kept = compiled()
    simulated()
    assert n_kept() == 1


def test_a_simulator_goes_on_after_its_programs_were_dropped(few_maps):
    simulator, state, first = simulated()
    simulated()  # drops what the first has compiled
    _, metrics = simulator.run(state, 2)
    _, _, at_once = simulated(rounds=4)
    np.testing.assert_array_equal(np.concatenate([first, metrics["loss"]]), at_once)


def test_elsewhere_than_on_linux_nothing_is_dropped(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_maps, "MAPS", tmp_path / "none")
    assert memory_maps.in_use() == 0.0
    assert not memory_maps.make_room()
