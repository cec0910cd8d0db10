"""What devices send to each other, from programs compiled for eight CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import fedjax_fm as ffm
from fedjax_fm import aot
from fedjax_fm.aot.collectives import collectives_of, groups_of
from fedjax_fm.aot.hlo import parsed
from fedjax_fm.engine.devices import CLIENTS, MODEL, client_mesh

WHOLE = P()


def collectives(function, n=8, model=2, out=WHOLE):
    """Of a function that each device of [n / model, model] runs on 8 numbers."""
    mesh = client_mesh(n, model)
    lifted = jax.shard_map(
        function, mesh=mesh, in_specs=P(), out_specs=out, check_vma=False
    )
    text = jax.jit(lifted).lower(jnp.ones(8)).compile().as_text()
    return collectives_of(parsed(text), dict(mesh.shape))


@pytest.mark.parametrize(
    ("axes", "axis", "n"),
    [(CLIENTS, "clients", 4), (MODEL, "model", 2), ((CLIENTS, MODEL), "all", 8)],
)
def test_a_sum(axes, axis, n):
    (found,) = collectives(lambda x: jax.lax.psum(x, axes))
    assert found.op == "all-reduce"
    assert found.bytes == 32
    assert found.axis == axis
    assert found.sent == round(2 * (n - 1) / n * 32)


def test_a_gather():
    (found,) = collectives(lambda x: jax.lax.all_gather(x, CLIENTS))
    assert found.op == "all-gather"
    assert found.bytes == 4 * 32  # of all four
    assert found.sent == 3 * 32  # everybody else's passes through


def test_a_sum_of_which_each_keeps_a_part():
    (found,) = collectives(
        lambda x: jax.lax.psum_scatter(x, CLIENTS, tiled=True), out=P(CLIENTS)
    )
    assert found.op == "reduce-scatter"
    assert found.bytes == 8
    assert found.sent == 3 * 8


def test_levels_are_those_of_the_loops():
    def rounds(x):
        def a_round(_, x):
            def step(_, x):
                return jax.lax.psum(x, MODEL) / 2

            with jax.named_scope("steps"):
                x = jax.lax.fori_loop(0, x[0].astype(jnp.int32), step, x)
            return jax.lax.psum(x, CLIENTS) / 4

        return jax.lax.fori_loop(0, x[0].astype(jnp.int32), a_round, x)

    found = collectives(rounds)
    assert {(one.level, one.axis) for one in found} == {
        ("step", "model"),
        ("round", "clients"),
    }


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [(0, 2), (1, 3)]),
        ("replica_groups=[2,2]<=[4], x", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [(0, 2), (1, 3)]),
        (
            "replica_groups=mesh['a'=1,'b'=2,'c'=2], device_ids=([2,2]T(1,0)) {'b'}",
            [(0, 1), (2, 3)],
        ),
        ("source_target_pairs={{0,1},{1,0}}", [(0, 1), (1, 0)]),
        ("replica_groups={}", [(0, 1, 2, 3)]),
    ],
)
def test_groups_in_every_spelling(text, groups):
    assert groups_of(text, 4) == groups


def test_groups_in_an_unknown_spelling_are_refused():
    with pytest.raises(ValueError, match="unknown form: replica_groups=<new>"):
        groups_of("replica_groups=<new>", 4)


def compiled(cohort, **how):
    clients = [{"x": np.ones((2, 3), np.float32)}] * 64
    task = ffm.Task(lambda w, backbone, batch, key: ((batch["x"] @ w) ** 2, {}))
    method = ffm.fedavg(task, optax.sgd(0.1), local_steps=1, batch_size=2)
    simulator = ffm.Simulator(
        method, ffm.Population.from_clients(clients), cohort_size=cohort, **how
    )
    return simulator.compile(jax.ShapeDtypeStruct((3,), jnp.float32))


@pytest.mark.parametrize("cohort", [8, 64])
def test_a_round_sends_the_delta_and_a_few_numbers(cohort):
    found = aot.report(compiled(cohort, devices=8))
    sums = [one for one in found.collectives if one.op == "all-reduce"]
    delta, metrics, counts, faults = 3 * 4, 3 * 4, 2 * 4, 8 * 4
    assert sum(one.bytes for one in sums) == delta + metrics + counts + faults
    # What does not change from round to round may be taken out of their loop.
    assert {one.level for one in sums} <= {"round", "run"}
    assert {one.axis for one in sums} == {"clients"}
    assert found.sent_each_round >= found.floor
    assert found.floor == round(2 * 7 / 8 * delta)


def test_what_lies_where():
    found = aot.report(compiled(8, devices=4))
    assert found.mesh == {"clients": 4, "model": 1}
    assert found.n_devices == 4
    assert found.data == 64 * 2 * 3 * 4 + 65 * 4
    assert found.server == 12
    assert found.clients == 0
    assert found.backbone == 0
    assert found.donated >= found.server
    assert found.arguments >= found.data + found.server
    listed = found.as_json()["collectives"]
    assert all(row["operations"] >= 1 for row in listed)
