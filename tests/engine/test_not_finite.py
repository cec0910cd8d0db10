"""NaN and infinity: whose they were, what is kept, whether the sum or each upload was searched."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import everyone, lossy

import fedjax_fm as ffm
from fedjax_fm.algorithms.reduce import stack
from fedjax_fm.types import Reduce

MODES = {
    "fused": {"devices": 1},
    "two devices": {"devices": 2, "block_size": 1},
    "host": {"data": "host"},
    "pmap": {"parallel": "pmap", "devices": 2},
}


def slopes(delta, backbone, batch, key):
    """Loss w x, whose gradient is x: at w = 0 the loss is 0 whatever x is, and only the
    upload shows how large that is.
    """
    return jnp.where(batch["x"] == 0, jnp.nan, 0.0) + delta["w"] * jnp.where(
        batch["x"] == 0, 1, batch["x"]
    ), {}


def run(values, *, rate=1.0, rounds=1, reduce=None, **how):
    """A round of clients that hold one number each; 0 stands for a client whose loss is NaN."""
    clients = [{"x": np.array([value], np.float32)} for value in values]
    algorithm = ffm.fedavg(
        ffm.Task(slopes), optax.sgd(rate), local_steps=1, batch_size=1
    )
    if reduce is not None:
        algorithm = algorithm._replace(
            exchanges=(algorithm.exchanges[0]._replace(reduce=reduce),)
        )
    how = {"cohort_size": len(values), "sampler": everyone(len(values))} | how
    simulator = ffm.Simulator(algorithm, ffm.Population.from_clients(clients), **how)
    return simulator.run(simulator.init({"w": jnp.float32(0)}), rounds)


@pytest.mark.parametrize("mode", MODES)
def test_an_upload_that_overflows_under_a_finite_loss_names_its_client(mode):
    with pytest.raises(
        ffm.NonFiniteClient, match="round 0: client 2 produced NaN"
    ) as caught:
        run([1, 2, 3e38, 4], rate=10.0, **MODES[mode])
    assert float(caught.value.state.delta["w"]) == 0


@pytest.mark.parametrize("mode", MODES)
def test_of_several_the_smallest_is_named_whether_loss_or_upload_was_wrong(mode):
    with pytest.raises(ffm.NonFiniteClient, match="client 1 produced NaN"):
        run([1, 3e38, 2, 0], rate=10.0, **MODES[mode])
    with pytest.raises(ffm.NonFiniteClient, match="client 0 produced NaN"):
        run([0, 3e38, 2, 3], rate=10.0, **MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_a_sum_beyond_f32_blames_nobody(mode):
    with pytest.raises(
        ffm.SumOverflow,
        match="round 0: every upload is finite, but their weighted sum is beyond f32",
    ):
        run([3e38, 3e38, 1], **MODES[mode])
    state, _ = run([1e38, 1e38, 1], **MODES[mode])
    np.testing.assert_allclose(state.delta["w"], -2e38 / 3, rtol=1e-6)


def test_reductions_and_channels_that_hide_nan_have_every_upload_searched():
    def lift(server, sent, weight):
        return jnp.where(
            jnp.isfinite(sent["w"]), sent["w"], 0.0
        )  # rejects, so the sum is finite

    rejecting = Reduce(lift=lift, finish=lambda total, setting: {"w": total})
    keeping = stack(lambda kept, setting: {"w": jnp.nanmedian(kept.values[0]["w"])})
    for how in ({"reduce": rejecting}, {"reduce": keeping}, {"uplink": lossy()}):
        with pytest.raises(ffm.NonFiniteClient, match="client 1 produced NaN"):
            run([1, 3e38, 2], rate=10.0, **how)


def test_a_run_goes_on_from_the_state_before_it():
    values = [1.0, 2.0]
    clients = [{"x": np.array([value], np.float32)} for value in values]

    def rate(round_index):
        return optax.sgd(jnp.where(round_index == 3, jnp.inf, 0.5))

    algorithm = ffm.fedavg(ffm.Task(slopes), rate, local_steps=1, batch_size=1)
    simulator = ffm.Simulator(
        algorithm, ffm.Population.from_clients(clients), cohort_size=2
    )
    with pytest.raises(ffm.NonFiniteClient, match="round 3: client 0") as caught:
        simulator.run(simulator.init({"w": jnp.float32(0)}), 10)
    assert caught.value.state.round == 3
    assert len(caught.value.metrics["loss"]) == 3
    np.testing.assert_allclose(caught.value.state.delta["w"], -3 * 0.5 * 1.5)


def test_a_sum_beyond_f32_leaves_spilled_states_as_they_were():
    clients = [{"x": np.array([value], np.float32)} for value in (3e38, 3e38, 1)]
    plain = ffm.fedavg(ffm.Task(slopes), optax.sgd(1.0), local_steps=1, batch_size=1)
    (exchange,) = plain.exchanges

    def client(backbone, message):
        one = exchange.client(backbone, message)
        return lambda message, count, data, key: one(message, (), data, key)._replace(
            state=count + 1
        )

    algorithm = plain._replace(
        exchanges=(exchange._replace(client=client),),
        client_init=lambda delta, key: jnp.int32(0),
    )
    how = {"cohort_size": 3, "sampler": everyone(3), "states": "host"}
    simulator = ffm.Simulator(algorithm, ffm.Population.from_clients(clients), **how)
    with pytest.raises(ffm.SumOverflow) as caught:
        simulator.run(simulator.init({"w": jnp.float32(0)}), 1)
    store = caught.value.state.carry.clients
    assert store.rounds[0] == caught.value.state.round == 0
    assert not store.touched.any()
    assert (store.rows[0] == 0).all()


def growing(delta, backbone, batch, key):
    """A loss whose weight doubles with each round, until it is beyond f32."""
    return delta["w"] * batch["x"] * -delta["w"], {}


@pytest.mark.parametrize(
    "how", [{"data": "host"}, {"states": "host"}, {"data": "host", "states": "host"}]
)
def test_a_fault_that_is_seen_late_changes_nothing_after_it(how):
    """The next round is on its way by then; it ends as rounds in one program do."""
    clients = [{"x": np.array([float(k)], np.float32)} for k in range(1, 7)]
    algorithm = ffm.fedavg(
        ffm.Task(growing), optax.sgd(1e3), local_steps=2, batch_size=1
    )

    def stopped(**how):
        population = ffm.Population.from_clients(clients)
        simulator = ffm.Simulator(algorithm, population, cohort_size=3, seed=3, **how)
        with pytest.raises(ffm.NonFiniteClient) as caught:
            simulator.run(simulator.init({"w": jnp.float32(1)}), 40)
        return caught.value

    expected, found = stopped(), stopped(**how)
    assert str(found) == str(expected)
    assert 1 < found.state.round < 40
    assert found.state.round == expected.state.round == len(found.metrics["loss"])
    np.testing.assert_array_equal(found.state.delta["w"], expected.state.delta["w"])
    np.testing.assert_array_equal(found.metrics["loss"], expected.metrics["loss"])
