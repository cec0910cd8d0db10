"""What each LoRA aggregation rule promises (their papers' equations), through the
simulator, against loops by hand.
"""

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
    SIZES,
    close,
    cut,
    effective,
    loss,
    make_clients,
    make_trees,
    mean,
    simulated,
    train,
    update,
)

import fedjax_fm as ffm
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.algorithms.lora_rules.factors import Pair, product, product_norm, split
from fedjax_fm.algorithms.lora_rules.flexlora import truncated_svd

HOW_OF = {"hetlora": {"gamma": 1.0, "tail_penalty": 0.0}}
FIXED = {  # leaves that stay in odd and even rounds
    "ffa_lora": (("lora_a",), ("lora_a",)),
    "rolora": (("lora_a",), ("lora_b",)),
}


def ends(delta, backbone, ranks=None, fixed=()):
    """What every client has after local training."""
    ranks = [None] * len(SIZES) if ranks is None else ranks
    return [
        train(delta, backbone, c, r, fixed)
        for c, r in zip(make_clients(), ranks, strict=True)
    ]


def seen(state, backbone):
    model = state.algorithm.model
    return backbone if model is None else model(state.carry.server, None, backbone)[1]


@pytest.mark.parametrize(
    "name", ["ffa_lora", "rolora", "fedex_lora", "flora", "fed_sb"]
)
def test_effective_weights_are_the_mean_of_the_clients(name):
    one, state, _ = simulated(name, MIXED)
    for fixed in FIXED.get(name, ((), ())):
        before = seen(state, one.backbone)
        found = ends(state.delta, before, MIXED, fixed)
        after, _ = one.run(state, 1)
        whole = effective(after.delta, seen(after, one.backbone))
        close(whole, mean([effective(end, before) for end in found]))
        assert (
            np.abs(whole["inner"] - effective(state.delta, before)["inner"]).max()
            > 1e-3
        )  # and it moved
        state = after


def test_fedit_averages_factors_and_misses_the_covariance():
    """Hu et al. 2021: mean(B_i A_i) - B A = mean((B_i - B)(A_i - A))."""
    one, state, _ = simulated("fedit")
    found = ends(state.delta, one.backbone)
    after, metrics = one.run(state, 1)
    average = mean(found)
    close(after.delta, average)
    missed = mean([update(end, one.backbone, "outer") for end in found]) - update(
        average, one.backbone, "outer"
    )
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *found)["outer"]
    a, b = (stacked[kind] - average["outer"][kind] for kind in ("lora_a", "lora_b"))
    covariance = SCALING * np.einsum(
        "k,kir,kro->io", np.array(SIZES) / sum(SIZES), a, b
    )
    np.testing.assert_allclose(missed, covariance, rtol=1e-9)
    assert np.abs(covariance).max() > 1e-4
    algorithm = ffm.fedavg(ffm.Task(loss), optax.sgd(RATE), **HOW)
    population = ffm.Population.from_clients(make_clients())
    same = ffm.Simulator(
        algorithm, population, backbone=one.backbone, cohort_size=8, devices=1
    )
    expected, bill = same.run(same.init(state.delta), 1)
    close(after.delta, expected.delta)
    assert [metrics[name][0] for name in ("uplink_bytes", "downlink_bytes")] == [
        bill["uplink_bytes"][0]
    ] * 2


def test_fedit_pads_small_ranks_with_zeros():
    one, state, _ = simulated("fedit", MIXED)
    close(one.run(state, 1)[0].delta, mean(ends(state.delta, one.backbone, MIXED)))


def matrices(tree):
    """The three products, without scaling."""
    inner, outer = (
        np.asarray(tree[name]["lora_a"], np.float64) @ tree[name]["lora_b"]
        for name in LAYERS
    )
    return [inner[0], inner[1], outer]


def test_flexlora_is_the_best_approximation_and_errs_by_the_tail():
    one, state, _ = simulated("flexlora", MIXED)
    for _ in range(2):
        found = ends(state.delta, one.backbone, MIXED)
        state, metrics = one.run(state, 1)
        errors = 0.0
        for whole, ours in zip(
            mean([matrices(end) for end in found]), matrices(state.delta), strict=True
        ):
            tail = np.linalg.svd(whole, compute_uv=False)[3:]
            np.testing.assert_allclose(
                np.linalg.norm(whole - ours), np.linalg.norm(tail), rtol=1e-3, atol=1e-6
            )
            errors += np.sum(tail**2)
        assert errors > 1e-7
        np.testing.assert_allclose(
            metrics["truncation_error"], [np.sqrt(errors)], rtol=1e-3
        )


@pytest.mark.parametrize(
    "shape", [(9, 6), (12, 14)], ids=["dense", "by QR"]
)  # eight rows
def test_truncated_svd_is_numpys(shape):
    rng = np.random.default_rng(0)
    stack = Pair(*(rng.normal(size=(8, 2, n)).astype(np.float32) for n in shape))
    cut_off, tail = truncated_svd(stack, 3)
    whole = np.asarray(product(stack), np.float64)
    u, s, vt = np.linalg.svd(whole)
    n = len(tail[0])
    np.testing.assert_allclose(tail, s[:, 3 : 3 + n], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        product(cut_off),
        np.einsum("lir,lr,lro->lio", u[:, :, :3], s[:, :3], vt[:, :3]),
        atol=1e-4,
    )
    gram = np.einsum("rli,sli->lrs", cut_off.a, cut_off.a)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-5)
    all_of_it, nothing = truncated_svd(stack, min(8, *shape))
    np.testing.assert_allclose(product(all_of_it), whole, atol=1e-4)
    np.testing.assert_allclose(nothing, np.zeros_like(nothing), atol=1e-4)
    np.testing.assert_allclose(
        product_norm(stack), np.linalg.norm(whole, axis=(-2, -1)), rtol=1e-5
    )


def test_fedsa_shares_a_and_keeps_b():
    one, state, _ = simulated("fedsa_lora", MIXED)
    own = [cut(state.delta, rank) for rank in MIXED]
    for _ in range(2):
        for (
            mine
        ) in own:  # what a client starts from: the server's A and head, its own B
            mine["head"] = np.asarray(state.delta["head"])
            for name in LAYERS:
                mine[name]["lora_a"] = np.asarray(state.delta[name]["lora_a"])
        own = [
            train(mine, one.backbone, c, r)
            for mine, c, r in zip(own, make_clients(), MIXED, strict=True)
        ]
        state, _ = one.run(state, 1)
        average = mean(own)
        for name in LAYERS:
            close(state.delta[name]["lora_a"], average[name]["lora_a"])
            for client, mine in enumerate(
                own
            ):  # the same A for all, each its own B, zero beyond its rank
                kept = jax.tree.map(lambda x, k=client: x[k], state.carry.clients)
                found = lora_rules.fedsa_delta(state.delta, kept)[name]
                close(found["lora_b"], mine[name]["lora_b"])
                np.testing.assert_array_equal(
                    found["lora_a"], state.delta[name]["lora_a"]
                )
    np.testing.assert_array_equal(
        state.delta["outer"]["lora_b"],
        simulated("fedsa_lora", MIXED)[1].delta["outer"]["lora_b"],
    )


def test_the_factor_that_is_fixed_stays_to_the_bit():
    for name in ("ffa_lora", "rolora"):
        one, state, _ = simulated(name, MIXED)
        for fixed in FIXED[name]:
            before, (state, _) = state.delta, one.run(state, 1)
            for layer in LAYERS:
                same = {
                    kind: np.array_equal(state.delta[layer][kind], before[layer][kind])
                    for kind in before[layer]
                }
                assert same == {kind: kind in fixed for kind in same}


def test_hetlora_weighs_by_the_norm_of_the_product():
    one, state, _ = simulated("hetlora", MIXED, gamma=1.0, tail_penalty=0.0)
    found = ends(state.delta, one.backbone, MIXED)
    state, _ = one.run(state, 1)
    close(state.delta["head"], mean(found)["head"])
    for name in LAYERS:
        norms = np.stack(
            [
                np.linalg.norm(end[name]["lora_a"] @ end[name]["lora_b"], axis=(-2, -1))
                for end in found
            ]
        )
        for kind in ("lora_a", "lora_b"):
            stacked = np.stack([end[name][kind] for end in found])
            close(
                state.delta[name][kind],
                np.einsum("k...,k...ij->...ij", norms / norms.sum(0), stacked),
            )
    assert one.run(state, 2)[0].carry.clients.tolist() == list(
        MIXED
    )  # gamma = 1 never prunes


def test_hetlora_with_equal_ranks_and_norms_is_uniform_fedit():
    """Uploads whose A is turned have products of one norm; FedIT sees them with equal weights."""
    delta, _ = make_trees()
    rng = np.random.default_rng(4)
    setting = ffm.Setting(5, 5)

    def turned():
        turn = np.linalg.qr(rng.normal(size=(5, 5)))[0].astype(np.float32)
        whole = {
            name: {**delta[name], "lora_a": turn @ delta[name]["lora_a"]}
            for name in LAYERS
        }
        return jax.tree.map(
            jnp.subtract, split({**whole, "head": delta["head"]}), split(delta)
        )

    sent, results = [turned() for _ in range(5)], []
    for rule, how in (
        (lora_rules.hetlora, {"tail_penalty": 0.1}),
        (lora_rules.fedit, {}),
    ):
        algorithm = rule(ffm.Task(loss), optax.sgd(RATE), **HOW, **how)
        exchange = algorithm.exchanges[0]
        server = algorithm.init(delta, jax.random.key(0), setting)
        lift = jax.jit(exchange.reduce.lift)
        lifted = [lift(server, change, jnp.float32(2.0)) for change in sent]
        total = jax.tree.map(lambda *xs: sum(xs), *lifted)
        aggregate = ffm.Aggregate(exchange.reduce.finish(total, setting), jnp.int32(5))
        results.append(exchange.server(server, aggregate, jax.random.key(0))[0].delta)
    close(*results)
    assert np.abs(results[0]["outer"]["lora_a"] - delta["outer"]["lora_a"]).max() > 0.01


# Bytes

D_IN, D_OUT, HEAD = 3 * 5, 2 * 5 + 7, 7  # over the three matrices, and the head
DENSE = 2 * 25 + 35
BOTH = D_IN + D_OUT
CLOSED = {  # numbers: (up, down) of a client of rank r beside clients of ranks R, in round t
    "fedit": lambda r, R, t: (r * BOTH, r * BOTH),
    "ffa_lora": lambda r, R, t: (r * D_OUT, r * D_OUT),
    "fedsa_lora": lambda r, R, t: (r * D_IN, r * D_IN),
    "rolora": lambda r, R, t: (
        (r * D_OUT, r * D_IN) if t % 2 == 0 else (r * D_IN, r * D_OUT)
    ),
    "flexlora": lambda r, R, t: (r * BOTH, r * BOTH),
    "hetlora": lambda r, R, t: (r * BOTH, r * BOTH),
    "fedex_lora": lambda r, R, t: (r * BOTH, r * BOTH + (t > 0) * DENSE),
    "flora": lambda r, R, t: (r * BOTH, (t > 0) * sum(R) * BOTH),
    "lora_fair": lambda r, R, t: (r * BOTH, r * BOTH),
    "fedsvd": lambda r, R, t: (r * D_OUT, r * (BOTH if t > 0 else D_OUT)),
    "fedrot_lora": lambda r, R, t: (r * BOTH, r * BOTH),
    "fedrpca": lambda r, R, t: (r * BOTH, r * BOTH),
    "fslora": lambda r, R, t: (r * BOTH, r * BOTH),
    "fed_sb": lambda r, R, t: (3 * r * r, 3 * r * r),
}


@pytest.mark.parametrize("name", CLOSED)
def test_bytes_equal_closed_forms_in_one_program(name):
    one, state, traces = simulated(name, MIXED, **HOW_OF.get(name, {}))
    state, metrics = one.run(state, 2)
    n_traces = len(traces)
    _, more = one.run(state, 2)
    assert len(traces) == n_traces
    assert ffm.testing.compile_count(one) == 1
    for round_index in range(4):
        part = (metrics, more)[round_index // 2]
        found = [part[f"{way}link_bytes"][round_index % 2] for way in ("up", "down")]
        numbers = (
            np.array([CLOSED[name](r, MIXED, round_index) for r in MIXED]).sum(0)
            + HEAD * 8
        )
        assert found == (4 * numbers).tolist()


@pytest.mark.parametrize(
    "name", ["fedit", "ffa_lora", "fedsa_lora", "flexlora", "fed_sb"]
)
def test_with_equal_ranks_shapes_tell_the_bytes(name):
    one, state, _ = simulated(name)
    up, down = CLOSED[name](3, [3] * 8, 0)
    assert one.bytes_per_client(state) == (4 * (up + HEAD), 4 * (down + HEAD))
    assert all(bill.is_exact for bill in one.messages.bills)


def test_mixed_ranks_trace_the_loss_no_more_often_than_equal_ones():
    one, state, traces = simulated("fedit")
    other, first, mixed = simulated("fedit", MIXED)
    one.run(state, 1), other.run(first, 1)
    assert len(traces) == len(mixed)


def test_noise_on_b_alone_enters_once():
    """Sun et al. 2024: with A fixed, noise of variance s^2 on B gives N_B A of energy s^2
    d_out ||A||^2; with noise on both, the term N_B N_A has energy s_A^2 s_B^2 d_out r
    d_in."""
    rng = np.random.default_rng(0)
    n, d_in, r, d_out, s = 4000, 4, 2, 3, 0.1
    a = rng.normal(size=(r, d_in))
    noise_a, noise_b = (
        s * rng.normal(size=(r, n, d)).astype(np.float32) for d in (d_in, d_out)
    )
    whole = np.broadcast_to(a[:, None], noise_a.shape)
    for factor, expected in (
        (whole, s**2 * d_out * np.sum(a**2)),
        (noise_a, s**4 * d_out * r * d_in),
    ):
        energy = np.sum(np.asarray(product(Pair(factor, noise_b))) ** 2, axis=(1, 2))
        assert abs(energy.mean() - expected) < 4 * energy.std() / np.sqrt(n)
