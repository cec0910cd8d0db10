"""Rounds compiled ahead: for this machine, and for one that is not here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm import aot, channels
from fedjax_fm.engine.compiled import does_not_fit

SHAPE = jax.ShapeDtypeStruct((), jnp.float32)
# CPU devices as if they were those of other machines
ELSEWHERE = aot.this_machine()._replace(name="elsewhere", is_here=False)


def simulator(n_clients=8, **how):
    task = ffm.Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2, {}))
    clients = [{"x": np.full(2, float(k))} for k in range(n_clients)]
    method = ffm.fedavg(task, optax.sgd(0.1), epochs=1, batch_size=2)
    return ffm.Simulator(
        method, ffm.Population.from_clients(clients), cohort_size=4, **how
    )


def test_run_takes_what_was_compiled():
    ahead, plain = simulator(), simulator()
    compiled = ahead.compile(SHAPE)
    start = ahead.init(jnp.float32(0))
    ahead.programs.fused = None  # what would compile
    state, _ = ahead.run(start, 3)
    expected, _ = plain.run(plain.init(jnp.float32(0)), 3)
    assert state.delta == expected.delta
    assert compiled.program is ahead.programs.ready.compiled


def test_a_second_call_compiles_nothing():
    ahead = simulator()
    first = ahead.compile(SHAPE)
    ahead.programs.fused = None  # what would compile
    second = ahead.compile(SHAPE)
    assert second.program is first.program


def test_for_machines_that_are_not_here():
    ahead = simulator(target=ELSEWHERE)
    compiled = ahead.compile(SHAPE)
    assert compiled.fits
    assert compiled.target.name == "elsewhere"
    leaves = jax.tree.leaves((ahead.programs.backbone, ahead.programs.data))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    with pytest.raises(RuntimeError, match="for elsewhere, which is not here"):
        ahead.init(jnp.float32(0))


def test_the_kernels_are_those_of_the_target():
    """Lowered for TPUs on CPU devices: the text has Mosaic's calls."""
    target = ELSEWHERE._replace(platform="tpu")
    task = ffm.Task(lambda w, backbone, batch, key: (jnp.sum(w) * batch["x"], {}))
    clients = [{"x": np.ones(2)}] * 8
    for channel, has_kernel in ((channels.top_k(0.1), True), (None, False)):
        ahead = ffm.Simulator(
            ffm.fedavg(task, optax.sgd(0.1), epochs=1, batch_size=2),
            ffm.Population.from_clients(clients),
            cohort_size=8,
            uplink=channel,
            target=target,
            block_size=1,
        )
        lowered = ahead.lower(jnp.ones(512))
        assert ("tpu_custom_call" in lowered.as_text()) == has_kernel


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"data": "host"}, "streamed data: True"),
        ({"states": "host"}, "spilled states: True"),
        ({"parallel": "pmap"}, "parallel='pmap'"),
    ],
)
def test_what_the_host_drives_is_refused(how, words):
    with pytest.raises(ValueError, match=words):
        simulator(**how).compile(SHAPE)


def test_what_does_not_fit_says_how_much_is_missing():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (53.50G) exceeds available HBM (15.75G)."
    )
    error = does_not_fit(RuntimeError(said), ELSEWHERE)
    assert isinstance(error, aot.DoesNotFit)
    assert "need 53.50 GiB on a device of elsewhere, which has 15.75 GiB" in str(error)
    assert "37.75 GiB are missing" in str(error)
    assert "model_parallel" in str(error)
    other = RuntimeError("INTERNAL: something else")
    assert does_not_fit(other, ELSEWHERE) is other


def test_another_target_than_a_target_is_refused():
    with pytest.raises(TypeError, match="target"):
        simulator(target="v5e:2x4")


def test_options_reach_the_compiler():
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        simulator(compiler_options={"no_such_option": True}).compile(SHAPE)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5f:2x4", "did you mean 'v5p'"),
        ("v5e", "expected a topology like 'v5e:2x4', got 'v5e'"),
        ("h100:8 cards", "expected a topology like 'h100:8'"),
    ],
)
def test_topologies_that_are_not(name, words):
    with pytest.raises(ValueError, match=words):
        aot.topology(name)
