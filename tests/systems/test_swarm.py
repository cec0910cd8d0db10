"""SWARM: routing in proportion, no sample lost, the gradient of the model in one piece, throughput."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import systems
from fedjax_fm.models import GPT2Config, GPT2LMHeadModel
from fedjax_fm.systems import Peer, Wiring, swarm

# Routing


@pytest.mark.parametrize(
    "speeds",
    [(1, 1, 1), (1, 2, 4), (10, *[1] * 10), (3.7, 0.2, 1.1, 9.3, 5.0)],
)
def test_counts_are_within_one_of_proportional_at_all_times(speeds):
    wiring = Wiring()
    for peer, speed in enumerate(speeds):
        wiring.join(peer, seconds=1 / speed)
    counts = np.zeros(len(speeds))
    shares = np.array(speeds) / sum(speeds)
    for n in range(1, 2000):
        counts[wiring.choose()] += 1
        assert (np.abs(counts - n * shares) < 1 + 1e-6).all()


def test_who_joins_late_does_not_get_what_it_missed():
    wiring = Wiring()
    wiring.join("a", 1.0)
    for _ in range(100):
        wiring.choose()
    wiring.join("b", 1.0)
    found = collections.Counter(wiring.choose() for _ in range(100))
    assert abs(found["a"] - found["b"]) <= 1


def test_estimates_are_exponential_means_and_a_new_peer_has_that_of_the_others():
    wiring = Wiring(memory=0.5)
    wiring.join("a", 4.0)
    wiring.observe("a", 2.0)
    assert wiring.seconds["a"] == 3.0
    wiring.join("b")
    assert wiring.seconds["b"] == 3.0
    wiring.leave("a")
    assert {wiring.choose() for _ in range(3)} == {"b"}
    wiring.leave("b")
    with pytest.raises(LookupError, match="no peer"):
        wiring.choose()


# Runs


def peers_of(seed, n_stages=4, each=5, churn=0.0, horizon=1.0):
    """Peers of unlike speeds, a share of which fails and is followed by a new one."""
    rng = np.random.default_rng(seed)
    found = [
        Peer(stage, float(np.exp(0.4 * rng.standard_normal())))
        for stage in range(n_stages)
        for _ in range(each)
    ]
    leaving = rng.choice(len(found), round(churn * len(found)), replace=False)
    for number in leaving:
        second = float(rng.uniform(0.1, 0.9) * horizon)
        found[number] = found[number]._replace(leaves=second)
        speed = float(np.exp(0.4 * rng.standard_normal()))
        found.append(Peer(None, speed, joins=second + 0.02 * horizon))
    return found


HOW = {"n_stages": 4, "steps": 20, "microbatches": 200, "in_flight": 80}


def whole(found, how):
    """Asserts that each gradient counts once, after its own activations."""
    counted = collections.Counter(
        (one.microbatch, one.stage) for one in found.done if one.backward and one.counts
    )
    n = how["steps"] * how["microbatches"]
    assert len(counted) == n * how["n_stages"]
    assert set(counted.values()) == {1}
    seen = {}
    for one in found.done:
        if not one.backward:
            seen[one.microbatch, one.stage] = one.second
            if one.stage:
                assert seen[one.microbatch, one.stage - 1] <= one.second
        else:
            assert seen[one.microbatch, how["n_stages"] - 1] <= one.second


@pytest.mark.parametrize("seed", range(3))
def test_a_static_swarm_reaches_its_slowest_stage(seed):
    peers = peers_of(seed)
    found = swarm(peers, **HOW, rebalance_every=None)
    speeds = [sum(p.speed for p in peers if p.stage == s) for s in range(4)]
    assert found.bound == pytest.approx(min(speeds))
    assert 0.9 <= found.throughput / found.bound <= 1 + 1e-9
    assert found.lost == 0
    whole(found, HOW)


@pytest.mark.parametrize("seed", range(3))
def test_with_a_fifth_of_the_peers_leaving_it_stays_within_a_tenth(seed):
    how = HOW | {"steps": 40, "in_flight": 100}
    horizon = 1600.0  # about as long as the run takes
    peers = peers_of(seed, churn=0.2, horizon=horizon)
    n_gone = sum(peer.leaves is not None for peer in peers)
    assert n_gone == 4
    found = swarm(peers, **how, rebalance_every=horizon / 50, download_seconds=4.0)
    assert found.steps[-1] > 0.9 * max(p.leaves for p in peers if p.leaves is not None)
    assert found.lost > 0
    assert 0.9 <= found.throughput / found.bound <= 1 + 1e-9
    whole(found, how)


def test_rebalancing_brings_peers_to_where_they_are_missed():
    peers = [Peer(0, 1.0)] * 6 + [Peer(1, 1.0)] * 2
    how = {"n_stages": 2, "steps": 1, "microbatches": 600, "in_flight": 60}
    still = swarm(peers, **how, rebalance_every=None)
    moved = swarm(peers, **how, rebalance_every=10.0)
    assert still.bound == pytest.approx(2.0)
    assert moved.bound > 3.5
    assert moved.throughput > 1.6 * still.throughput
    assert [(source, target) for _, _, source, target in moved.moves] == [(0, 1)] * 2
    whole(moved, how)


def test_steps_that_wait_for_each_other_run_empty_in_between():
    peers = [Peer(stage, 1.0) for stage in (0, 0, 1, 1)]
    how = {"n_stages": 2, "steps": 10, "microbatches": 20, "in_flight": 12}
    late, strict = (swarm(peers, **how, delayed=delayed) for delayed in (True, False))
    assert strict.throughput < 0.95 * late.throughput
    for step, end in enumerate(strict.steps[:-1]):
        begun = [d.second for d in strict.done if d.microbatch >= 20 * (step + 1)]
        assert min(begun) > end
    for step, end in enumerate(late.steps[:-2]):
        begun = [d.second for d in late.done if d.microbatch >= 20 * (step + 2)]
        assert min(begun) > end
    slow = swarm(peers, **how, delayed=False, reduce_seconds=3.0)
    assert slow.steps[-1] == pytest.approx(strict.steps[-1] + 30)
    for found in (late, strict, slow):
        whole(found, how)


def test_rebalancing_leaves_a_balanced_swarm_alone():
    peers = [Peer(stage, 1.0) for stage in (0, 0, 1, 1)]
    found = swarm(
        peers, n_stages=2, steps=1, microbatches=200, in_flight=16, rebalance_every=5.0
    )
    assert found.moves == []


def test_a_stage_that_loses_all_of_its_peers_waits_for_one():
    peers = [
        Peer(0, 1.0),
        Peer(0, 1.0),
        Peer(1, 1.0, leaves=20.0),
        Peer(None, 1.0, 50.0),
    ]
    how = {"n_stages": 2, "steps": 1, "microbatches": 60, "in_flight": 8}
    found = swarm(peers, **how, rebalance_every=None)
    assert not [d for d in found.done if d.stage == 1 and 20 < d.second < 50]
    whole(found, how)
    alone = [peer for peer in peers if peer.joins == 0]
    with pytest.raises(RuntimeError, match=r"stages \[1\] have no peer any more"):
        swarm(alone, **how, rebalance_every=None)
    rescued = swarm(alone, **how, rebalance_every=10.0)
    assert rescued.moves
    whole(rescued, how)


def test_two_stages_that_lose_all_of_their_peers_are_both_rescued():
    peers = [Peer(0, 1.0)] * 4 + [Peer(s, 1.0, leaves=5.0) for s in (1, 2)]
    how = {"n_stages": 3, "steps": 1, "microbatches": 40, "in_flight": 8}
    found = swarm(peers, **how, rebalance_every=4.0)
    assert {target for *_, target in found.moves} >= {1, 2}
    whole(found, how)


@pytest.mark.parametrize(
    ("peers", "kind", "said"),
    [
        ([Peer(0, 1.0)], ValueError, "none for stage 1|got none"),
        ([Peer(0, 0.0), Peer(1, 1.0)], ValueError, r"peers\[0\].speed > 0|0 < peers"),
        ([Peer(2, 1.0), Peer(1, 1.0)], ValueError, r"peers\[0\].stage"),
        ([Peer(0, 1.0, 5.0, 4.0), Peer(1, 1.0)], ValueError, r"peers\[0\].leaves"),
        ([3], TypeError, r"peers\[0\] to be a Peer"),
    ],
)
def test_peers_that_make_no_sense(peers, kind, said):
    with pytest.raises(kind, match=said):
        swarm(peers, n_stages=2, steps=1, microbatches=1, in_flight=1)


# Gradients

CONFIG = GPT2Config(
    vocab_size=40, n_positions=8, n_embd=16, n_layer=4, n_head=2, n_inner=32
)


@pytest.fixture(scope="module")
def model():
    return GPT2LMHeadModel(CONFIG, nnx.Rngs(3))


@pytest.fixture(scope="module")
def batches():
    ids = np.random.default_rng(0).integers(0, 40, (6, 2, 8))
    return [{"input_ids": jnp.asarray(one)} for one in ids]


def in_one_piece(model, batches):
    """The gradient of the model's own forward pass, all microbatches at once."""
    graphdef, state = nnx.split(model)

    def loss(state):
        total = 0.0
        for batch in batches:
            ids = batch["input_ids"]
            scores = jax.nn.log_softmax(nnx.merge(graphdef, state)(ids)[:, :-1])
            total -= jnp.take_along_axis(scores, ids[:, 1:, None], axis=-1).sum()
        return total

    return jax.grad(loss)(state)["transformer"]


RUNS = {
    "one peer a stage": [Peer(s, 1.0) for s in range(3)],
    "several": [Peer(s % 3, 1.0 + 0.3 * s) for s in range(8)],
    "failures": [
        *(Peer(s % 3, 1.0 + 0.3 * s) for s in range(6)),
        *(Peer(s, 2.0, leaves=2.5 + s) for s in range(3)),
        Peer(None, 1.0, joins=4.0),
    ],
}


@pytest.mark.parametrize("name", RUNS)
def test_the_sum_over_peers_is_the_gradient_of_the_model_in_one_piece(
    name, model, batches
):
    found = swarm(
        RUNS[name],
        n_stages=3,
        steps=1,
        microbatches=len(batches),
        in_flight=4,
        rebalance_every=3.0,
    )
    stages = systems.stages_of(model, 3)
    sums = systems.swarm_gradients(stages, batches, found.done)
    gradient = systems.whole_gradient(systems.reduced(sums))
    expected = in_one_piece(model, batches)
    if name != "one peer a stage":
        assert max(len(own) for own in sums) > 1
    if name == "failures":
        assert found.lost > 0

    def close(x, y):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)

    close(gradient["wte"], expected["wte"]["embedding"][...])
    close(gradient["wpe"], expected["wpe"]["embedding"][...])
    jax.tree.map(close, gradient["h"], expected["h"])
    jax.tree.map(close, gradient["ln_f"], expected["ln_f"])


def test_a_log_with_a_gradient_twice_or_never_is_refused(model, batches):
    found = swarm(
        RUNS["several"], n_stages=3, steps=1, microbatches=len(batches), in_flight=4
    )
    stages = systems.stages_of(model, 3)
    last = next(one for one in reversed(found.done) if one.backward)
    with pytest.raises(ValueError, match="counts twice"):
        systems.swarm_gradients(stages, batches, [*found.done, last])
    without = [one for one in found.done if one != last]
    with pytest.raises(ValueError, match="is not whole in this log"):
        systems.swarm_gradients(stages, batches, without)


def test_more_stages_than_layers_are_refused(model):
    with pytest.raises(ValueError, match="n_stages"):
        systems.stages_of(model, 5)
