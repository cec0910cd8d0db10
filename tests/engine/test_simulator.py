"""What a user of the Simulator relies on."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm import channels


def quadratic(delta, backbone, batch, key):
    return 0.5 * batch["h"] * (delta["w"] - batch["a"]) ** 2, {}


def quadratic_clients(h, a, n):
    return [
        {"h": np.full(k, hk, np.float32), "a": np.full(k, ak, np.float32)}
        for hk, ak, k in zip(h, a, n, strict=True)
    ]


def test_client_drift_reaches_the_biased_fixed_point():
    """FedAvg's fixed point in closed form: w* = sum p c a / sum p c with c = 1 - (1 - eta h)^tau, which is not
    the optimum.
    """
    h, a, n, eta, tau = (
        np.array([0.5, 2.0, 1.0]),
        np.array([1.0, -1.0, 4.0]),
        np.array([4, 2, 6]),
        0.2,
        5,
    )
    algorithm = ffm.fedavg(
        ffm.Task(quadratic), optax.sgd(eta), local_steps=tau, batch_size=8
    )
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(quadratic_clients(h, a, n)),
        cohort_size=3,
        devices=1,
    )
    state, _ = simulator.run(simulator.init({"w": jnp.float32(0.0)}), 60)
    c, p = 1 - (1 - eta * h) ** tau, n / n.sum()
    assert float(state.delta["w"]) == pytest.approx(
        np.sum(p * c * a) / np.sum(p * c), abs=2e-6
    )
    assert abs(float(state.delta["w"]) - np.sum(p * h * a) / np.sum(p * h)) > 0.05


def test_equal_curvature_contracts_in_closed_form():
    """FedAvg on equal quadratics: w_{t+1} - mean(a) = (1 - eta)^tau (w_t - mean(a))."""
    a, n = np.array([1.0, -2.0, 0.5]), np.array([3, 1, 4])
    algorithm = ffm.fedavg(
        ffm.Task(quadratic), optax.sgd(0.1), local_steps=4, batch_size=4
    )
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(quadratic_clients(np.ones(3), a, n)),
        cohort_size=3,
        devices=1,
    )
    state, _ = simulator.run(simulator.init({"w": jnp.float32(5.0)}), 3)
    mean = np.sum(n * a) / n.sum()
    assert float(state.delta["w"]) == pytest.approx(
        mean + 0.9**12 * (5.0 - mean), rel=1e-5
    )


def linear_problem(n_clients=12, uplink=None, **how):
    rng = np.random.default_rng(0)
    clients = [
        {
            "x": rng.normal(size=(5, 64)).astype(np.float32),
            "y": rng.normal(size=5).astype(np.float32),
        }
        for _ in range(n_clients)
    ]
    traces = []

    def loss(delta, backbone, batch, key):
        traces.append(1)
        return (batch["x"] @ (backbone["w"] + delta["w"]) - batch["y"]) ** 2, {}

    algorithm = ffm.fedavg(ffm.Task(loss), optax.sgd(0.01), epochs=1, batch_size=2)
    backbone = {"w": rng.normal(size=64).astype(np.float32)}
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(clients),
        backbone=backbone,
        cohort_size=4,
        uplink=uplink,
        devices=2,
        **how,
    )
    return simulator, {"w": jnp.zeros(64)}, clients, traces


def test_bytes_are_the_lengths_of_real_buffers():
    channel = channels.chain(channels.top_k(0.25), channels.quantize(4))
    simulator, delta, _, _ = linear_problem(uplink=channel)
    _, metrics = simulator.run(simulator.init(delta), 2)
    payload, _ = channel.encode(
        channel.init(delta),
        {"w": jax.random.normal(jax.random.key(0), (64,))},
        jax.random.key(1),
    )
    real = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(payload))
    assert real == 8 + 8 + 4  # bitmap of 64, sixteen 4-bit codes, one scale
    assert metrics["uplink_bytes"].tolist() == [4 * real] * 2
    assert metrics["downlink_bytes"].tolist() == [4 * 64 * 4] * 2


def test_downlink_channel_is_seen_and_billed():
    simulator, *_ = linear_problem(downlink=channels.quantize(8))
    plain, _, _, _ = linear_problem()
    start = {"w": jax.random.normal(jax.random.key(0), (64,))}
    state, metrics = simulator.run(simulator.init(start), 1)
    exact, _ = plain.run(plain.init(start), 1)
    assert metrics["downlink_bytes"].tolist() == [4 * (64 + 4)]
    assert not np.array_equal(state.delta["w"], exact.delta["w"])
    np.testing.assert_allclose(state.delta["w"], exact.delta["w"], atol=0.05)


def test_one_trace_for_any_number_of_rounds():
    simulator, delta, _, traces = linear_problem()
    state = simulator.init(delta)
    state, _ = simulator.run(state, 1)
    after_first = len(traces)
    state, _ = simulator.run(state, 5)
    state, _ = simulator.run(state, 3)
    assert ffm.testing.compile_count(simulator) == 1
    assert len(traces) == after_first


def test_the_backbone_is_an_operand_not_a_constant():
    simulator, delta, _, _ = linear_problem()
    state = simulator.init(delta)
    text = simulator.programs.fused.lower(
        state.carry, simulator.backbone, simulator.data, jnp.int32(1), simulator.key
    ).as_text()
    assert (
        max(
            (len(line) for line in text.splitlines() if "stablehlo.constant" in line),
            default=0,
        )
        < 400
    )


def test_run_keeps_the_callers_trees():
    simulator, delta, _, _ = linear_problem()
    state = simulator.init(delta)
    first, _ = simulator.run(state, 2)
    again, _ = simulator.run(state, 2)
    np.testing.assert_array_equal(first.delta["w"], again.delta["w"])
    np.testing.assert_array_equal(delta["w"], np.zeros(64))


def test_a_client_with_nan_stops_the_run_with_the_last_good_state():
    simulator, delta, clients, _ = linear_problem()
    clients[7]["x"][3] = np.nan
    broken = ffm.Simulator(
        simulator.algorithm,
        ffm.Population.from_clients(clients),
        backbone=simulator.backbone,
        cohort_size=4,
        devices=2,
    )
    with pytest.raises(ffm.NonFiniteClient, match=r"client 7 produced NaN") as caught:
        broken.run(broken.init(delta), 30)
    error = caught.value
    assert error.client == 7
    assert error.round == error.state.round == len(error.metrics["loss"])
    assert np.isfinite(error.state.delta["w"]).all()
    expected, _ = broken.run(broken.init(delta), error.round)
    np.testing.assert_array_equal(error.state.delta["w"], expected.delta["w"])


def test_zero_rounds_change_nothing():
    simulator, delta, _, _ = linear_problem()
    state, metrics = simulator.run(simulator.init(delta), 0)
    assert state.round == 0
    assert metrics == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cohort_size": 13}, r"1 <= cohort_size <= 12.*got cohort_size=13"),
        ({"cohort_size": 0}, r"got cohort_size=0"),
        ({"devices": 99}, r"1 <= devices <= 8.*got 99"),
        ({"block_size": 0}, r"block_size >= 1, got block_size=0"),
    ],
)
def test_impossible_layouts_are_refused(change, message):
    simulator, _, clients, _ = linear_problem()
    how = {"cohort_size": 4} | change
    with pytest.raises(ValueError, match=message):
        ffm.Simulator(
            simulator.algorithm,
            ffm.Population.from_clients(clients),
            backbone=simulator.backbone,
            **how,
        )


def test_impossible_work_is_refused():
    task = ffm.Task(quadratic)
    with pytest.raises(ValueError, match="either epochs or local_steps"):
        ffm.fedavg(task, optax.sgd(0.1), batch_size=4)
    with pytest.raises(ValueError, match="batch_size=0"):
        ffm.fedavg(task, optax.sgd(0.1), epochs=1, batch_size=0)
    simulator, delta, _, _ = linear_problem()
    with pytest.raises(ValueError, match="NaN or infinity at w"):
        simulator.init({"w": jnp.full(64, jnp.nan)})
    with pytest.raises(ValueError, match="rounds=-1"):
        simulator.run(simulator.init(delta), -1)


def test_importing_starts_no_backend():
    import subprocess
    import sys

    code = (
        "import fedjax_fm, jax; from jax._src import xla_bridge as b; assert not "
        "b.backends_are_initialized()"
    )
    with warnings.catch_warnings():
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
