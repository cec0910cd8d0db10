"""A round cut at the wire is the simulator's: deltas, bytes, metrics, states of clients."""

import jax
import numpy as np
import pytest
from bridge_problem import (
    HOW,
    METHODS,
    SGD,
    TASK,
    N,
    clients,
    close,
    federation_of,
    remote,
)

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import gossip, graphs
from fedjax_fm.bridges import answer, first_states, run_round, start

CHANNELS = {
    "none": {},
    "quantized": {
        "uplink": channels.quantize(bits=8),
        "downlink": channels.cast("bfloat16"),
    },
    "feedback": {"uplink": channels.error_feedback(channels.top_k(0.3))},
}


CASES = [(name, "none") for name in METHODS] + [
    ("fedavg", "quantized"),
    ("fedavg", "feedback"),
]


@pytest.mark.parametrize(("name", "wire"), CASES)
def test_it_is_the_simulators_round(name, wire):
    how = CHANNELS[wire]
    federation = federation_of(METHODS[name](), **how)
    found, history, states = remote(federation, 3)
    simulator = ffm.Simulator(
        federation.algorithm,
        ffm.Population.from_clients(clients()),
        backbone=federation.backbone,
        cohort_size=5,
        seed=3,
        devices=1,
        block_size=1,
        **how,
    )
    state, metrics = simulator.run(simulator.init(federation.delta), 3)
    close(federation.algorithm.delta(found.server), state.delta)
    for t, row in enumerate(history):
        assert row["uplink_bytes"] == metrics["uplink_bytes"][t]
        assert row["loss"] == pytest.approx(metrics["loss"][t], rel=1e-5)
        assert row["clients"] == metrics["clients"][t]
    own = simulator.client_state(state, 0)
    for mine, theirs in zip(states[0], jax.tree.leaves(own), strict=False):
        close(mine, theirs)


def test_methods_that_no_bridge_carries_are_refused():
    mixing = graphs.metropolis(graphs.ring(N), N)
    with pytest.raises(ValueError, match="its own part of the model"):
        start(federation_of(gossip(TASK, SGD, mixing=mixing, **HOW)))


def test_examples_that_were_not_agreed_on_are_refused():
    federation = federation_of(METHODS["fedavg"]())
    states = first_states(federation, 0)

    def tried(examples):
        def send(requests):
            return [answer(federation, one, examples, states)[0] for one in requests]

        run_round(federation, start(federation), send)

    one = clients()[0]
    for examples, said in (
        ({"x": one["x"]}, "expected the columns"),
        ({**one, "y": one["y"][:2]}, "columns of one length"),
        ({**one, "y": one["y"].astype(np.float64)}, "expected y as float32"),
        ({k: np.concatenate([v] * 3) for k, v in one.items()}, "<= 6"),
    ):
        with pytest.raises(ValueError, match=said):
            tried(examples)


def test_a_reply_that_is_missing_is_named():
    federation = federation_of(METHODS["fedavg"]())
    with pytest.raises(RuntimeError, match=r"no reply of client \d was handed on"):
        run_round(federation, start(federation), lambda requests: [])
