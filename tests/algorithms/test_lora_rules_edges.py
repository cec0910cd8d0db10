"""LoRA rules off the beaten path: residuals as factors, missed rounds, pruning,
channels, refusals.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lora_problem import (
    HOW,
    LAYERS,
    MIXED,
    RATE,
    SCALING,
    close,
    cut,
    effective,
    in_numpy,
    loss,
    make_clients,
    make_trees,
    mean,
    tail_gradient,
    tail_size,
    train,
)

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import lora_rules

TASK, OPTIMIZER = ffm.Task(loss), optax.sgd(RATE)
D_IN, D_OUT, HEAD, DENSE = 3 * 5, 2 * 5 + 7, 7, 2 * 25 + 35
BOTH = D_IN + D_OUT


def simulator(algorithm, clients=None, trees=None, **how):
    clients = clients or make_clients()
    delta, backbone = trees or make_trees()
    how = {"cohort_size": len(clients), "devices": 1} | how
    one = ffm.Simulator(
        algorithm, ffm.Population.from_clients(clients), backbone=backbone, **how
    )
    return one, one.init(delta)


@pytest.mark.parametrize(
    ("ranks", "height"), [(None, 2 * 2), ([2, 1], 3 + 1)], ids=["equal", "mixed"]
)
def test_a_residual_travels_as_factors_where_they_are_smaller(ranks, height):
    """Rank 2, two clients: 4 rows of 32 and 34 numbers against matrices of 256 and 288.
    With ranks 2 and 1 there are three rows of clients and one for the row that the
    second lacks."""
    clients = make_clients(16, (4, 3))
    algorithm = lora_rules.fedex_lora(
        TASK, OPTIMIZER, ranks=ranks, scaling=SCALING, **HOW
    )
    one, state = simulator(algorithm, clients, make_trees(16, rank=2))
    bills = []
    for _ in range(2):
        _, beside = one.model(state)
        found = [
            train(state.delta, beside, c, r)
            for c, r in zip(clients, ranks or [None] * 2, strict=True)
        ]
        state, metrics = one.run(state, 1)
        after = effective(*one.model(state))
        close(after, mean([effective(end, beside) for end in found], (4, 3)))
        bills.append(metrics["downlink_bytes"][0])
    sides = 2 * 32 + 34
    first = 4 * (sum(ranks or [2, 2]) * sides + 2 * 18)
    assert bills == [first, first + 2 * 4 * height * sides]


@pytest.mark.parametrize("name", ["rolora", "fedex_lora", "flora"])
def test_clients_that_missed_rounds_fetch_what_they_lack(name):
    """Rounds of one client each: 0, 0, 1, 0. In the last, client 0 has missed one;
    client 1 is new to the model.
    """
    schedule = jnp.array([0, 0, 1, 0], jnp.int32)

    def draw(i, key):
        return (schedule[i][None], jnp.int32(1), i + 1)

    sampler = ffm.Sampler(init=lambda: jnp.int32(0), draw=draw, capacity=1)
    how = {} if name == "rolora" else {"scaling": SCALING}
    algorithm = getattr(lora_rules, name)(TASK, OPTIMIZER, **HOW, **how)
    one, state = simulator(
        algorithm, make_clients()[:2], sampler=sampler, cohort_size=1
    )
    _, metrics = one.run(state, 4)
    expected = {
        "rolora": [3 * D_IN, 3 * D_OUT, 3 * BOTH, 3 * BOTH],  # one factor, or both
        "fedex_lora": [3 * BOTH + residual for residual in (0, DENSE, 0, DENSE)],
        "flora": [0, 3 * BOTH, 0, DENSE],
    }[name]
    assert metrics["downlink_bytes"].tolist() == [
        4 * (numbers + HEAD) for numbers in expected
    ]


def test_hetlora_prunes_a_rank_whose_tail_shrank():
    """A penalty that outweighs the loss shrinks the last of three rows: every client
    goes from 3 to 2, then to 1.
    """
    algorithm = lora_rules.hetlora(TASK, OPTIMIZER, gamma=0.7, tail_penalty=2.0, **HOW)
    one, start = simulator(algorithm)

    def penalty(delta):
        return tail_gradient(delta, 2, 2.0)

    found = [
        train(start.delta, one.backbone, client, penalty=penalty)
        for client in make_clients()
    ]
    assert all(tail_size(end, 2) < tail_size(in_numpy(start.delta), 2) for end in found)
    state, metrics = one.run(start, 1)
    assert state.carry.clients.tolist() == [2] * 8
    kept = [cut(end, 2)["outer"] for end in found]  # pruned before they are sent
    norms = np.array([np.linalg.norm(end["lora_a"] @ end["lora_b"]) for end in kept])
    for kind in ("lora_a", "lora_b"):
        stacked = np.stack([end[kind] for end in kept])
        close(
            state.delta["outer"][kind],
            np.einsum("k,kij->ij", norms / norms.sum(), stacked),
        )
    assert metrics["uplink_bytes"][0] == 8 * 4 * (2 * BOTH + HEAD)
    assert metrics["downlink_bytes"][0] == 8 * 4 * (3 * BOTH + HEAD)
    after, metrics = one.run(state, 1)
    assert metrics["downlink_bytes"][0] == 8 * 4 * (2 * BOTH + HEAD)
    assert set(after.carry.clients.tolist()) <= {1, 2}


@pytest.mark.parametrize("name", ["fedit", "flora"])
def test_lossy_channels_carry_mixed_ranks(name):
    """Four bits an entry: rows beyond every rank stay zero, the loss falls."""
    how = {"scaling": SCALING} if name == "flora" else {}
    algorithm = getattr(lora_rules, name)(
        TASK, OPTIMIZER, ranks=[min(r, 2) for r in MIXED], **HOW, **how
    )
    one, state = simulator(
        algorithm, uplink=channels.error_feedback(channels.quantize(4))
    )
    state, metrics = one.run(state, 12)
    assert metrics["loss"][-1] < metrics["loss"][0]
    assert (
        metrics["uplink_bytes"][0] < 4 * sum(min(r, 2) * BOTH + HEAD for r in MIXED) / 5
    )
    if name == "fedit":
        np.testing.assert_array_equal(state.delta["outer"]["lora_b"][2], np.zeros(7))


@pytest.mark.parametrize(
    ("name", "how", "other"),
    [
        ("lora_a2", {"ranks": None}, {"ranks": [1] * 8}),
        ("fedsvd", {"period": 0}, {"period": 2}),
    ],
)
def test_a_residual_is_refused_only_where_rows_change_their_places(name, how, other):
    uplink = channels.error_feedback(channels.quantize(4))
    make = partial(getattr(lora_rules, name), TASK, OPTIMIZER, **HOW)
    simulator(make(**how), uplink=uplink)
    with pytest.raises(ValueError, match="other ones each round"):
        simulator(make(**other), uplink=uplink)


@pytest.mark.parametrize("name", ["fslora", "lora_a2"])
def test_lossy_channels_without_memory_carry_rows_of_choice(name):
    """Eight bits an entry: the loss falls, and no more components move than were sent."""
    how = {"server_optimizer": optax.sgd(1.0)} if name == "fslora" else {}
    algorithm = getattr(lora_rules, name)(TASK, OPTIMIZER, ranks=[1], **HOW, **how)
    one, state = simulator(algorithm, make_clients()[:1], uplink=channels.quantize(8))
    after, _ = one.run(state, 1)
    n_moved = 0
    for layer in LAYERS:
        before, ours = (x.delta[layer]["lora_b"] for x in (state, after))
        n_moved += int(np.sum(np.any(ours != before, axis=-1)))
    assert n_moved == 3  # matrices, one component for each
    _, metrics = one.run(after, 20)
    assert metrics["loss"][-1] < metrics["loss"][0]


@pytest.mark.parametrize(
    "name",
    [
        "fedit",
        "ffa_lora",
        "fedsa_lora",
        "hetlora",
        "rolora",
        "flexlora",
        "fedex_lora",
        "flora",
        "lora_fair",
        "fedsvd",
        "fedrot_lora",
        "fedrpca",
    ],
)
def test_a_round_to_which_nobody_came_changes_nothing(name):
    """The server's step on a sum over nobody; FLoRA starts anew, from B = 0, so its
    delta adds nothing before either.
    """
    how = {"scaling": SCALING} if name in ("fedex_lora", "flora") else {}
    how |= {"tail_penalty": 0.1} if name == "hetlora" else {}
    algorithm = getattr(lora_rules, name)(TASK, OPTIMIZER, ranks=MIXED, **HOW, **how)
    delta, backbone = make_trees()
    if name == "flora":
        for layer in LAYERS:
            delta[layer]["lora_b"][:] = 0
    setting, key = ffm.Setting(8, 8), jax.random.key(0)
    server = algorithm.init(delta, key, setting)
    exchange = algorithm.exchanges[0]

    def of_nobody(server):
        message = jax.tree.map(lambda x: x, exchange.broadcast(server))
        factors = lora_rules.factors.split(server.delta)
        part = {"ffa_lora": "b", "fedsvd": "b", "rolora": "b", "fedsa_lora": "a"}
        part = part.get(name, "ab")
        sent = lora_rules.factors.cut_pairs(
            lora_rules.factors.only(factors, part), jnp.int32(0)
        )
        lifted = jax.tree.map(
            jnp.zeros_like, exchange.reduce.lift(server, sent, jnp.float32(0))
        )
        if exchange.reduce.keep:
            rows = jax.tree.map(lambda x: jnp.zeros((8, *x.shape), x.dtype), lifted)
            lifted = ffm.Stack(rows, jnp.zeros(8, bool), jnp.arange(8))
        aggregate = ffm.Aggregate(exchange.reduce.finish(lifted, setting), jnp.int32(0))
        return message, exchange.server(server, aggregate, key)[0]

    _, after = jax.jit(of_nobody)(server)
    learned = (
        (after.delta, backbone)
        if algorithm.model is None
        else algorithm.model(after, None, backbone)
    )
    close(effective(*learned), effective(delta, backbone))


def test_a_cohort_beyond_the_room_stops_the_run():
    algorithm = lora_rules.flora(
        TASK, OPTIMIZER, scaling=SCALING, most_clients=4, **HOW
    )
    one, state = simulator(algorithm)
    with pytest.raises(ffm.NonFiniteClient):
        one.run(state, 2)


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match=r"whole number >= 1.*\[0, 2\]"):
        lora_rules.fedit(TASK, OPTIMIZER, ranks=[0, 2], **HOW)
    with pytest.raises(ValueError, match=r"gamma=1\.5"):
        lora_rules.hetlora(TASK, OPTIMIZER, gamma=1.5, tail_penalty=0.1, **HOW)
    with pytest.raises(ValueError, match="tail_penalty=-1"):
        lora_rules.hetlora(TASK, OPTIMIZER, tail_penalty=-1, **HOW)

    def init(rule, delta, n, **how):
        return rule(TASK, OPTIMIZER, **HOW, **how).init(delta, None, ffm.Setting(n, n))

    with pytest.raises(
        ValueError, match="rank 4, but the largest pair of the delta has rank 3"
    ):
        init(lora_rules.fedit, make_trees()[0], 8, ranks=[4] * 8)
    with pytest.raises(ValueError, match="each of 8 clients, got 2"):
        init(lora_rules.ffa_lora, make_trees()[0], 8, ranks=[1, 2])
    with pytest.raises(ValueError, match=r"lora_a and lora_b.*\['w'\]"):
        init(lora_rules.fedit, {"w": jnp.zeros(3)}, 2)
    with pytest.raises(ValueError, match=r"leaves lora_r.*outer\.lora_a"):
        init(lora_rules.fed_sb, make_trees()[0], 2)


def test_hetlora_does_not_run_without_its_regulariser_unless_told_so():
    with pytest.raises(TypeError, match="tail_penalty"):
        lora_rules.hetlora(TASK, OPTIMIZER, **HOW)


@pytest.mark.parametrize(
    "name", ["fedit", "ffa_lora", "fedsa_lora", "rolora", "fedex_lora", "fed_sb"]
)
def test_rules_say_where_ranks_that_differ_are_not_the_papers(name):
    """FedIT pads them, a baseline of later papers; the others are defined for one rank only."""
    said = " ".join((getattr(lora_rules, name).__doc__ or "").split())
    assert re.search(r"[Rr]anks that differ,?( which)? are not the paper's", said)


def test_quantised_layers_cannot_take_a_residual_in():
    delta, backbone = make_trees()
    backbone["inner"]["base"] = {"codes": jnp.zeros((2, 5, 5), jnp.uint8)}
    algorithm = lora_rules.flora(TASK, OPTIMIZER, scaling=SCALING, **HOW)
    with pytest.raises(
        ValueError, match=r"inner\.base\.kernel.*inner\.base\.codes.*frozen='dense'"
    ):
        simulator(algorithm, trees=(delta, backbone))
