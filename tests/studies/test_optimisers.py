"""The study on optimisers for LoRA, on features of a random BERT."""

import dataclasses

import jax
import numpy as np
import pytest
from small_runs import check_scores, run_arms

import fedjax_fm as ffm
from fedjax_fm import study, trees
from fedjax_fm.experiments.optimisers import METHODS, STUDY, Config, data
from fedjax_fm.experiments.optimisers.training import tuned

# one of each kind: a rate at the server, by name, two trees each way, no rate
KEPT = ("fedavg", "fedadam", "scaffold", "feddyn", "shuffled", "untrained")


@pytest.fixture(scope="module")
def config(tiny_bert):
    sizes = {"hidden": 4, "rank": 2, "rounds": 1, "max_length": 24}
    return dataclasses.replace(Config().smoke(), model=str(tiny_bert), **sizes)


@pytest.fixture(scope="module")
def found(config):
    left = [arm.name for arm in STUDY.arms if arm.name not in KEPT]
    return run_arms(STUDY, config, leave_out=left)


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    assert set(found["fedavg"].run.notes) == {"rates, 0.1"}


def test_what_travels(config, found):
    """A LoRA and a head, of two clients."""
    delta = data(config, 0, "final").adapted.delta
    each = trees.nbytes(delta)
    assert each == 4 * (2 * (16 + 4) + 4 * 2 + 2)
    sent = {name: ran.run.bytes["uplink_bytes"] for name, ran in found.items()}
    assert sent["fedavg"] == sent["fedadam"] == sent["feddyn"] == 2 * each
    assert sent["scaffold"] == 4 * each


def test_all_methods_get_the_same_budget():
    config = Config()
    sizes = {name: len(getattr(config, one.rates)) for name, one in METHODS.items()}
    assert set(sizes.values()) == {3}


def test_the_best_of_a_sweep_is_the_best_of_single_runs(config):
    """Also where a lane diverges."""
    rates = {"client_rates": (0.1, 1e9), "server_rates": (0.001, 1.0)}
    several = dataclasses.replace(config, rounds=3, **rates)
    best = tuned(several, "fedavg", "0.1")
    assert best.client == pytest.approx(0.1)
    made = data(several, STUDY.tuning_seed, "tuning")
    losses = {}
    for server in several.server_rates:
        one = dataclasses.replace(several, client_rates=(0.1,), server_rates=(server,))
        losses[server] = _loss(one, made, server)
    assert best.server == pytest.approx(min(losses, key=losses.__getitem__))
    assert abs(losses[1.0] - losses[0.001]) > 1e-4


def _loss(config, made, server):
    algorithm = METHODS["fedavg"].make(made.task, 0.1, server, **study.walk(config))
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(made.clients["0.1"]),
        backbone=made.adapted.backbone,
        cohort_size=min(config.cohort, len(made.clients["0.1"])),
        devices=1,
    )
    state, _ = simulator.run(simulator.init(made.adapted.delta), config.rounds)
    parts = (state.delta, made.adapted.backbone, made.test)
    return float(ffm.evaluate(made.task, *parts)["loss"].mean())


def test_partitions_deal_every_sentence_once(config):
    whole = dataclasses.replace(config, partitions=("0.1", "1", "iid"))
    made = data(whole, 0, "final")
    counts = {
        name: sorted(np.concatenate([one["label"] for one in clients]).tolist())
        for name, clients in made.clients.items()
    }
    assert counts["0.1"] == counts["1"] == counts["iid"]
    shares = [one["label"].mean() for one in made.clients["0.1"]]
    alike = [one["label"].mean() for one in made.clients["iid"]]
    assert np.std(shares) > np.std(alike)
    leaves = jax.tree.leaves(made.adapted.delta)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
