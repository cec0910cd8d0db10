"""What a round holds in memory, by the compiler's own account."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiles import Compiles

import fedjax_fm as ffm

WIDTH, RANK, LAYERS, CLIENTS = 512, 4, 4, 256
BACKBONE = 4 * LAYERS * WIDTH * WIDTH  # bytes
DELTA = 4 * LAYERS * 2 * WIDTH * RANK


def analysis(block_size: int, cohort: int = CLIENTS):
    """Of the program of many rounds, for LoRA over a stack of dense layers, on one device."""

    def loss(delta, backbone, batch, key):
        def layer(x, weights):
            w, a, b = weights
            return jnp.tanh(x @ w + (x @ a) @ b), None

        out, _ = jax.lax.scan(
            layer, batch["x"], (backbone["w"], delta["a"], delta["b"])
        )
        return jnp.mean((out - batch["y"]) ** 2, axis=1), {}

    x = np.zeros((CLIENTS * 2, WIDTH), np.float32)
    population = ffm.Population.from_arrays(
        {"x": x, "y": x}, 2 * np.arange(CLIENTS + 1)
    )
    algorithm = ffm.fedavg(ffm.Task(loss), optax.sgd(0.1), local_steps=2, batch_size=2)
    backbone = {"w": np.zeros((LAYERS, WIDTH, WIDTH), np.float32)}
    delta = {
        "a": jnp.ones((LAYERS, WIDTH, RANK)),
        "b": jnp.zeros((LAYERS, RANK, WIDTH)),
    }
    simulator = ffm.Simulator(
        algorithm,
        population,
        backbone=backbone,
        cohort_size=cohort,
        devices=1,
        block_size=block_size,
    )
    state = simulator.init(delta)
    step = simulator.programs.fused.lower(
        state.carry, simulator.backbone, simulator.data, jnp.int32(1), simulator.key
    )
    return step.compile().memory_analysis()


@pytest.mark.parametrize("block_size", [1, 8])
def test_the_backbone_once_plus_a_block_of_deltas(block_size):
    found = analysis(block_size)
    data = 2 * 4 * CLIENTS * 2 * WIDTH
    # Operands: the backbone once, the data once, a server state.
    assert found.argument_size_in_bytes < BACKBONE + data + 3 * DELTA
    # Scratch: some copies of a block's deltas and activations and of the sums, no
    # second backbone, no 256 deltas.
    activations = 4 * LAYERS * 2 * WIDTH
    assert (
        found.temp_size_in_bytes
        < 6 * block_size * (DELTA + activations) + 6 * DELTA + BACKBONE // LAYERS
    )
    assert found.temp_size_in_bytes < CLIENTS * DELTA / 2


def test_scratch_does_not_grow_with_the_cohort():
    small, large = (analysis(4, cohort).temp_size_in_bytes for cohort in (16, 256))
    assert large < small + 64 * 256


def wide_activations(memory):
    """A tiny delta, so that the rule takes many clients at once, and large activations."""

    def loss(delta, backbone, batch, key):
        hidden = jnp.tanh(
            batch["x"][:, :, None] * backbone["w"] + delta["b"]
        )  # [B, 64, 256]
        return jnp.mean(hidden, axis=(1, 2)), {}

    population = ffm.Population.from_arrays(
        {"x": np.ones((256, 64), np.float32)}, 4 * np.arange(65)
    )
    algorithm = ffm.fedavg(ffm.Task(loss), optax.sgd(0.1), local_steps=1, batch_size=4)
    simulator = ffm.Simulator(
        algorithm,
        population,
        backbone={"w": np.ones((64, 256), np.float32)},
        cohort_size=64,
        devices=1,
        memory=memory,
    )
    state = simulator.init({"b": jnp.zeros(256)})
    step = simulator.programs.fused.lower(
        state.carry, simulator.backbone, simulator.data, jnp.int32(1), simulator.key
    )
    found = step.compile().memory_analysis()
    return (
        simulator.plan,
        found.argument_size_in_bytes + found.temp_size_in_bytes,
        simulator.run(state, 1)[0].delta,
    )


def test_a_block_is_halved_until_it_fits_the_memory():
    wide, needs, expected = wide_activations(None)
    assert wide.block_size == 64
    narrow, fits, delta = wide_activations(needs // 3)
    assert narrow.block_size < wide.block_size
    assert fits <= needs // 3
    assert narrow.slots >= 64
    np.testing.assert_allclose(delta["b"], expected["b"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("given", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_cpu_devices_read_one_copy_of_backbone_and_data(given):
    x = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    population = ffm.Population.from_arrays({"x": x}, 4 * np.arange(17))
    task = ffm.Task(
        lambda delta, backbone, batch, key: (
            ((batch["x"] @ backbone["w"] + delta["b"]) ** 2).mean(1),
            {},
        )
    )
    algorithm = ffm.fedavg(task, optax.sgd(0.1), local_steps=1, batch_size=4)
    backbone = {"w": given(np.ones((32, 32), np.float32))}
    simulator = ffm.Simulator(
        algorithm,
        population,
        backbone=backbone,
        cohort_size=16,
        devices=8,
        block_size=1,
    )
    state = simulator.init({"b": jnp.zeros(32)})
    for leaf in jax.tree.leaves((simulator.backbone, simulator.data)):
        shards = leaf.addressable_shards
        assert len(shards) == 8
        assert len({shard.data.unsafe_buffer_pointer() for shard in shards}) == 1
    first, _ = simulator.run(state, 1)
    x[:] = 100  # the caller's array is the caller's
    again, _ = simulator.run(state, 1)
    np.testing.assert_array_equal(first.delta["b"], again.delta["b"])


def test_a_client_of_a_large_cohort_costs_a_few_bytes_of_scratch():
    """Its id and its slot; here of all clients at once, alike in size."""

    def scratch(n):
        population = ffm.Population.from_arrays(
            {"x": np.ones((2 * n, 4), np.float32)}, 2 * np.arange(n + 1)
        )
        task = ffm.Task(
            lambda delta, backbone, batch, key: ((batch["x"] @ delta["w"]) ** 2, {})
        )
        algorithm = ffm.fedavg(task, optax.sgd(0.1), local_steps=1, batch_size=2)
        simulator = ffm.Simulator(
            algorithm, population, cohort_size=n, devices=2, block_size=1000
        )
        state = simulator.init({"w": jnp.zeros(4)})
        arguments = (simulator.backbone, simulator.data, jnp.int32(1), simulator.key)
        return (
            simulator.programs.fused.lower(state.carry, *arguments)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    assert (scratch(100_000) - scratch(20_000)) / 80_000 < 16


@pytest.fixture
def compiles():
    with Compiles() as counted:
        yield counted


def matrices(model_parallel=1, **how):
    """FedAvg on a stack of two dense layers with biases, over up to eight devices."""

    def loss(delta, backbone, batch, key):
        def layer(x, weights):
            return jnp.tanh(x @ weights["kernel"] + weights["bias"]), None

        out, _ = jax.lax.scan(layer, batch["x"], backbone)
        return jnp.mean((out * delta["scale_of_all"]) ** 2, axis=1), {}

    x = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    population = ffm.Population.from_arrays({"x": x}, 4 * np.arange(9))
    algorithm = ffm.fedavg(ffm.Task(loss), optax.sgd(0.1), local_steps=1, batch_size=4)
    backbone = {"kernel": np.ones((2, 16, 16), np.float32) / 16}
    backbone["bias"] = np.zeros((2, 16), np.float32)
    simulator = ffm.Simulator(
        algorithm,
        population,
        backbone=backbone,
        cohort_size=8,
        model_parallel=model_parallel,
        **how,
    )
    return simulator, simulator.init({"scale_of_all": jnp.ones((16, 16))[0]})


def test_rounds_that_were_compiled_to_be_measured_are_those_that_run(compiles):
    simulator, state = matrices(memory=1 << 30, devices=2)
    before = compiles.of("fused")
    assert before == 1
    simulator.run(state, 2)
    assert compiles.of("fused") == before


def test_what_the_compiler_calls_too_large_is_halved(monkeypatch):
    """On a TPU it raises; nothing is compiled to be looked at."""
    from fedjax_fm.engine.programs import Programs

    sizes = []

    class TooLarge:
        def trace(self, *operands):
            return self

        def lower(self, lowering_platforms):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory")

    original = Programs.bytes_needed

    def bytes_needed(self, *operands):
        sizes.append(self.engine.plan.block_size)
        if self.engine.plan.block_size > 2:
            monkeypatch.setattr(self, "fused", TooLarge())
        return original(self, *operands)

    monkeypatch.setattr(Programs, "bytes_needed", bytes_needed)
    simulator, state = matrices(memory=1 << 30, devices=1)
    assert sizes == [8, 4, 2]
    assert simulator.plan.block_size == 2
    assert np.isfinite(simulator.run(state, 1)[1]["loss"]).all()


def test_other_failures_of_the_compiler_are_not_hidden(monkeypatch):
    from fedjax_fm.engine.programs import Programs

    class Broken:
        def trace(self, *operands):
            raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    original = Programs.bytes_needed

    def bytes_needed(self, *operands):
        monkeypatch.setattr(self, "fused", Broken())
        return original(self, *operands)

    monkeypatch.setattr(Programs, "bytes_needed", bytes_needed)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        matrices(memory=1 << 30, devices=1)


def test_vectors_of_stacked_layers_are_not_split_over_model():
    simulator, _ = matrices(model_parallel=2, devices=2)
    whole = {
        name: leaf.is_fully_replicated for name, leaf in simulator.backbone.items()
    }
    assert whole == {"kernel": False, "bias": True}


def test_the_servers_state_stays_whole_and_donated_where_models_are_split(compiles):
    simulator, state = matrices(model_parallel=2, devices=2)
    state, _ = simulator.run(state, 130)  # two dispatches
    assert state.delta["scale_of_all"].is_fully_replicated
    assert compiles.of("fused") == 1
    operands = (simulator.backbone, simulator.data, jnp.int32(1), simulator.key)
    rounds = simulator.programs.fused.lower(state.carry, *operands).compile()
    found = rounds.memory_analysis()
    assert found.alias_size_in_bytes >= 16 * 4


def test_the_memory_is_that_of_a_device_of_this_process(monkeypatch):
    class Elsewhere:
        platform = "tpu"

        def memory_stats(self):
            raise RuntimeError("only supported for addressable devices")

    class Here(Elsewhere):
        def memory_stats(self):
            return {"bytes_limit": 1 << 30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Here()])
    simulator, _ = matrices(devices=1)
    assert simulator.memory == 1 << 30
