"""FedOBD: its blocks by a plain loop, its bytes by hand, FedAvg where nothing is lost."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import channels, trees
from fedjax_fm.algorithms import fedobd, fedobd_second_stage, fedpaq
from fedjax_fm.channels.block_dropout import blocks_of

RATE = 0.05
WALK = {"local_steps": 2, "batch_size": 16}
SIZES = (6, 1, 4, 2, 6, 3)
RNG = np.random.default_rng(0)


def message():
    """Two stacks of three layers, an embedding and a head."""

    def draw(*shape):
        return RNG.normal(size=shape).astype(np.float32)

    layers = {"w": draw(3, 4, 5) * np.float32([[[3]], [[1]], [[2]]]), "b": draw(3, 5)}
    return {"layers": layers, "embed": {"w": draw(7, 4)}, "head": {"w": draw(4, 2)}}


def sent(channel, tree):
    payload, _ = jax.jit(channel.encode)((), tree, jax.random.key(0))
    return payload, jax.jit(channel.decode)(payload)


def entries(tree, name):
    """The entries of a block of `message()`."""
    if name.startswith("layers"):
        row = int(name[7])
        return np.concatenate([tree["layers"][k][row].ravel() for k in ("b", "w")])
    return np.asarray(tree[name]["w"]).ravel()


def test_the_blocks_of_a_stack_are_its_layers():
    found = blocks_of(message(), stacked="^layers")
    assert found.names == ("embed", "head", "layers[0]", "layers[1]", "layers[2]")
    assert found.sizes.tolist() == [28, 8, 25, 25, 25]
    modules = blocks_of(message())
    assert modules.names == ("embed", "head", "layers")
    assert blocks_of(message(), blocks=len).names == (7, 6, 8)


@pytest.mark.parametrize("dropped", [0.0, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("score", ["norm", "mean"])
def test_blocks_are_kept_by_falling_score_while_they_fit(dropped, score):
    tree = message()
    channel = channels.block_dropout(dropped, 1e-6, stacked="layers", score=score)
    _, arrived = sent(channel, tree)
    found = blocks_of(tree, stacked="layers")
    parts = {name: entries(tree, name) for name in found.names}

    def value(x):
        return np.linalg.norm(x) / x.size if score == "norm" else np.abs(x).mean()

    room, total = math.floor((1 - dropped) * trees.size(tree) + 1e-9), 0
    for name in sorted(parts, key=lambda name: -value(parts[name])):
        got = entries(arrived, name)
        if total + parts[name].size <= room:
            total += parts[name].size
            np.testing.assert_allclose(got, parts[name], atol=2e-3)
        else:
            np.testing.assert_array_equal(got, 0)
    assert 0 < total <= room


def test_each_tensor_is_nnadqs_and_its_bits_are_counted():
    tree, weight = message(), 0.05
    channel = channels.block_dropout(0.5, weight, stacked="layers")
    payload, arrived = sent(channel, tree)
    bits = 8  # five marks in a byte
    tensors = [tree["embed"]["w"], tree["head"]["w"]]
    tensors += [tree["layers"][name][row] for name in ("w", "b") for row in range(3)]
    got = [arrived["embed"]["w"], arrived["head"]["w"]]
    got += [arrived["layers"][name][row] for name in ("w", "b") for row in range(3)]
    n_kept = 0
    for x, y in zip(tensors, got, strict=True):
        if not np.any(y):
            continue
        n_kept += 1
        norm = (x.max() - x.min()) / 2
        level = math.floor(max(1, math.sqrt(norm * 32 * math.log(4) / weight)))
        assert np.abs(x - y).max() <= norm / (2 * level) * (1 + 1e-5)
        width = 1 + math.ceil(math.log2(level + 1))
        bits += 96 + width * 8 * math.ceil(x.size / 8)
    assert 0 < n_kept < 8
    assert int(channel.bits(payload)) == bits


def test_four_times_the_norm_is_twice_the_levels():
    def level(scale):
        payload, _ = sent(
            channels.block_dropout(0, 1e-3), {"w": jnp.float32([-1, 1]) * scale}
        )
        return int(payload.side[1][0].level.values[0])

    assert level(1) == math.floor(math.sqrt(32 * math.log(4) / 1e-3))
    assert level(4.0) in (2 * level(1), 2 * level(1) + 1)


def test_one_value_that_is_not_finite_is_never_dropped_in_silence():
    for place in (("embed", "w"), ("head", "w")):
        tree = message()
        tree[place[0]][place[1]][0, 0] = np.nan
        channel = channels.block_dropout(0.7, 1e-3, stacked="layers")
        _, arrived = sent(channel, tree)
        assert any(np.isnan(x).any() for x in jax.tree.leaves(arrived))


def make(method=fedobd, **how):
    return method(ffm.Task(mlp_loss), optax.sgd(RATE), **(WALK | {"blocks": str} | how))


def run(algorithm, rounds=3, **how):
    delta, backbone = make_trees()
    how = {"cohort_size": 6, "seed": 3, "devices": 1, "backbone": backbone} | how
    population = ffm.Population.from_clients(make_clients(sizes=SIZES))
    one = ffm.Simulator(algorithm, population, **how)
    return one.run(one.init(delta), rounds)


def test_where_nothing_is_lost_it_is_fedavg():
    exact = make(dropped=0.0, quantizer_weight=1e-9)
    found, _ = run(exact)
    expected, _ = run(ffm.fedavg(ffm.Task(mlp_loss), optax.sgd(RATE), **WALK))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5),
        found.delta,
        expected.delta,
    )


def test_a_dropped_block_keeps_the_servers_value():
    start, _ = make_trees()
    state, _ = run(make(dropped=0.25), 1)  # of 16 entries "w" has 12
    changed = {k: bool(np.any(state.delta[k] != start[k])) for k in start}
    assert sorted(changed.values()) == [False, True] or all(changed.values())
    state, _ = run(make(dropped=0.5), 1)  # only "v" fits
    np.testing.assert_array_equal(state.delta["w"], start["w"])
    assert np.any(state.delta["v"] != start["v"])


def test_bytes_against_fedpaqs():
    """Half of the entries at nine bits or fewer: fewer than FedPAQ's eight bits each."""
    big = {"w": jnp.zeros((40, 20)), "v": jnp.zeros(20), "u": jnp.zeros((20, 40))}

    def loss(w, backbone, batch, key):
        out = batch["x"] @ w["w"] @ w["u"]
        return jnp.sum((out - batch["x"]) ** 2, -1) + w["v"].sum() ** 2, {}

    start = jax.tree.map(
        lambda x: 0.1 * RNG.normal(size=x.shape).astype(np.float32), big
    )
    data = [{"x": RNG.normal(size=(4, 40)).astype(np.float32)} for _ in range(4)]
    paid = {}
    methods = {
        "fedobd": fedobd(
            ffm.Task(loss), optax.sgd(1e-3), dropped=0.4, blocks=str, **WALK
        ),
        "fedpaq": fedpaq(
            ffm.Task(loss), optax.sgd(1e-3), channel=channels.quantize(8), **WALK
        ),
    }
    for name, method in methods.items():
        population = ffm.Population.from_clients(data)
        one = ffm.Simulator(method, population, cohort_size=4, devices=1)
        _, metrics = one.run(one.init(start), 2)
        paid[name] = (
            int(metrics["uplink_bytes"].sum()),
            int(metrics["downlink_bytes"].sum()),
        )
    assert paid["fedobd"][0] < 0.6 * paid["fedpaq"][0]
    assert paid["fedobd"][1] < 0.4 * paid["fedpaq"][1]


def test_the_second_stage_is_for_all_clients_and_goes_on_with_the_schedule():
    rates = []

    def schedule(round_index):
        rates.append(round_index)
        return optax.sgd(jnp.where(round_index >= 7, RATE, jnp.nan))

    task = ffm.Task(mlp_loss)
    how = {"rounds_before": 7, "quantizer_weight": 1e-9, "batch_size": 16}
    found, _ = run(fedobd_second_stage(task, schedule, **how), 2)
    plain = ffm.fedavg(task, optax.sgd(RATE), epochs=1, batch_size=16)
    expected, _ = run(plain, 2)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5),
        found.delta,
        expected.delta,
    )
    with pytest.raises(ValueError, match="expected cohort_size=6, got cohort_size=3"):
        run(fedobd_second_stage(task, optax.sgd(RATE), **how), 1, cohort_size=3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="nothing would ever be sent"):
        run(make(dropped=0.9), 1)
    with pytest.raises(ValueError, match="regular expression"):
        channels.block_dropout(stacked="(")
    with pytest.raises(TypeError, match="blocks"):
        channels.block_dropout(blocks="embed")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="encoded_by_the_method"):
        run(make(), 1, uplink=channels.error_feedback(channels.top_k(0.5)))
