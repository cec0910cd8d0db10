"""Operations of a client's program: those of closed forms, of the compiler, of loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm.experiments.bench.workloads import WORKLOADS
from fedjax_fm.systems import counts_of, flop_of, flop_of_client, per_example, together


def counted(name):
    """(FLOP of a round, its closed form) of a workload in its small form."""
    workload = WORKLOADS[name]
    data = workload.make(True)
    simulator, delta = workload.simulator(data)
    simulator.init(delta)
    (size,) = set(simulator.population.sizes.tolist())
    one = flop_of_client(simulator, size)
    assert one.is_exact
    return one.flop * simulator.population.n_clients, workload.flop(data)


@pytest.mark.parametrize("name", ["mlp-1000", "cifar-cnn", "tiny-round"])
def test_a_round_has_the_operations_of_its_closed_form(name):
    found, expected = counted(name)
    assert found == expected


@pytest.mark.parametrize("name", ["lora-minilm", "lora-gpt"])
def test_a_transformer_with_lora_has_little_more_than_its_closed_form(name):
    """Layers run in a loop, which also makes the gradients of the first one's input, and
    forms the narrow products of LoRA again on the way back.
    """
    found, expected = counted(name)
    assert expected < found < 1.1 * expected


def test_a_product_is_what_the_compiler_counts():
    a = jax.ShapeDtypeStruct((6, 5, 4), jnp.float32)
    b = jax.ShapeDtypeStruct((6, 4, 3), jnp.float32)
    found = flop_of(jnp.matmul, a, b)
    compiled = jax.jit(jnp.matmul).lower(a, b).compile()
    assert found == compiled.cost_analysis()["flops"] == 2 * 6 * 5 * 4 * 3


def test_loops_branches_and_what_nobody_needs():
    x = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    one = 2 * 27

    def looped(x):
        return jax.lax.fori_loop(0, 5, lambda i, y: y @ x, x)

    def branched(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

    def unneeded(x):
        _ = x @ x
        return x @ x

    def shaped(x):
        return jax.checkpoint(jax.jit(jnp.dot))(x, x)

    assert flop_of(looped, x) == 5 * one
    assert flop_of(branched, x) == 2 * one
    assert flop_of(unneeded, x) == one
    assert flop_of(shaped, x) == one


def loss(delta, backbone, batch, key):
    return ((batch["x"] @ backbone) @ delta)[:, 0] ** 2, {}


def make(sizes, behaviour=None, **local):
    clients = [{"x": np.ones((n, 3), np.float32)} for n in sizes]
    method = ffm.fedavg(ffm.Task(loss), optax.sgd(0.01), **local)
    simulator = ffm.Simulator(
        method,
        ffm.Population.from_clients(clients),
        backbone=jnp.ones((3, 5)),
        cohort_size=len(sizes),
        behaviour=behaviour,
        seed=1,
    )
    return simulator, simulator.init(jnp.full((5, 1), 0.1))


ROW = 2 * 3 * 5 + 2 * 2 * 5  # the frozen product once, as nothing is behind it


def test_counts_of_a_ragged_run_are_those_of_its_rows():
    simulator, state = make((8, 3, 0, 5), epochs=2, batch_size=4)
    _, metrics = simulator.run(state, 3)
    found = counts_of(per_example(simulator), metrics)
    rows = 3 * 2 * (8 + 3 + 5)
    assert found.examples == rows
    assert found.flop == pytest.approx(rows * ROW)
    assert (found.rounds, found.clients, found.clients_lost) == (3, 9, 0)
    assert found.bytes_down == metrics["downlink_bytes"].sum() == 9 * 20
    assert (found.trained, found.model_bytes) == (5, 4 * 15 + 4 * 5)
    assert found.tokens == 0
    assert found.is_exact
    twice = together(found, found)
    assert (twice.flop, twice.rounds) == (2 * found.flop, 6)
    assert twice.trained == found.trained


def test_who_drops_out_is_counted_by_what_it_did():
    """Without drop-outs the same round has lost nobody, and more has arrived."""
    how = {"local_steps": 3, "batch_size": 2}
    drops = ffm.Behaviour(drops=lambda client, round, key: client % 2 == 1)
    simulator, state = make((4, 4, 4, 4), drops, **how)
    _, metrics = simulator.run(state, 2)
    assert metrics["clients_lost"].tolist() == [2, 2]
    assert metrics["examples_lost"].tolist() == [12, 12]
    assert metrics["clients"].tolist() == [2, 2]
    found = counts_of(per_example(simulator), metrics)
    assert found.flop_lost == found.flop == pytest.approx(24 * ROW)
    assert found.lost_share == 0.5
    plain, state = make((4, 4, 4, 4), **how)
    _, whole = plain.run(state, 2)
    assert "clients_lost" not in whole
    total = counts_of(per_example(plain), whole)
    assert total.flop == pytest.approx(found.flop + found.flop_lost)
    assert total.bytes_down == found.bytes_down
    assert total.bytes_up == 2 * found.bytes_up


def test_who_trains_alone_computes_as_much_as_who_uploads():
    """Local training ends in the client's state, and no upload depends on it."""
    from fedjax_fm.algorithms import local_only

    clients = [{"x": np.ones((8, 3), np.float32)}] * 2
    how = {"local_steps": 3, "batch_size": 4}
    task, sgd = ffm.Task(loss), optax.sgd(0.01)
    found = []
    for method in (ffm.fedavg(task, sgd, **how), local_only(task, sgd, **how)):
        population = ffm.Population.from_clients(clients)
        simulator = ffm.Simulator(
            method, population, backbone=jnp.ones((3, 5)), cohort_size=2
        )
        simulator.init(jnp.full((5, 1), 0.1))
        found.append(flop_of_client(simulator, 8).flop)
    assert found == [3 * 4 * ROW] * 2


def test_every_step_of_every_exchange_counts():
    """FedLin's clients compute a gradient at the server's model before their steps."""
    from fedjax_fm.algorithms import fedlin

    clients = [{"x": np.ones((4, 3), np.float32)}] * 3
    how = {"local_steps": 2, "batch_size": 4, "learning_rate": 0.1}
    simulator = ffm.Simulator(
        fedlin(ffm.Task(loss), **how),
        ffm.Population.from_clients(clients),
        backbone=jnp.ones((3, 5)),
        cohort_size=3,
    )
    simulator.init(jnp.full((5, 1), 0.1))
    one = flop_of_client(simulator, 4)
    assert one.flop >= (4 + 2 * 4) * ROW


def test_tokens_are_the_width_of_the_text():
    from fedjax_fm.systems.counts import _tokens

    arrays = {"input_ids": np.zeros((7, 16)), "label": np.zeros(7)}
    assert _tokens(arrays) == 16
    assert _tokens({"x": np.zeros((7, 16))}) == 0
