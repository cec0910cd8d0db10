"""FedSVD: exact means, a rotation that loses nothing, and who has to fetch A."""

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
    close,
    effective,
    loss,
    make_clients,
    make_trees,
    mean,
    simulated,
    train,
)

import fedjax_fm as ffm
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.algorithms.lora_rules.factors import Pair, product
from fedjax_fm.algorithms.lora_rules.fedsvd import orthonormal

D_IN, D_OUT, HEAD = 3 * 5, 2 * 5 + 7, 7


def in_rows(a):
    """[..., in, r] -> A A^T [..., r, r]."""
    return np.swapaxes(a, -1, -2) @ a


def test_every_round_is_the_mean_and_its_rows_are_orthonormal():
    one, state, _ = simulated("fedsvd", MIXED)
    for _ in range(2):
        clients = zip(make_clients(), MIXED, strict=True)
        found = [
            train(state.delta, one.backbone, *client, ("lora_a",)) for client in clients
        ]
        state, _ = one.run(state, 1)
        expected = mean([effective(end, one.backbone) for end in found])
        close(effective(state.delta, one.backbone), expected, atol=2e-5)
        for name in LAYERS:
            a, b = (np.asarray(state.delta[name][x]) for x in ("lora_a", "lora_b"))
            gram = in_rows(a)
            np.testing.assert_allclose(gram, gram * 0 + np.eye(3), atol=1e-5)
            singular = np.linalg.norm(b, axis=-1)  # rows of b, by size
            whole = np.linalg.svd(a @ b, compute_uv=False)[..., :3]
            np.testing.assert_allclose(singular, whole, rtol=1e-4, atol=1e-5)


def test_without_a_period_it_is_ffa_lora():
    one, state, _ = simulated("fedsvd", MIXED, period=0)
    other, same, _ = simulated("ffa_lora", MIXED)
    (state, bill), (same, expected) = one.run(state, 2), other.run(same, 2)
    jax.tree.map(np.testing.assert_array_equal, state.delta, same.delta)
    for way in ("uplink_bytes", "downlink_bytes"):
        np.testing.assert_array_equal(bill[way], expected[way])


@pytest.mark.parametrize("n_out", [9, 2], ids=["wide", "fewer outputs than rows"])
def test_the_product_stays_and_the_rows_become_orthonormal(n_out):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(4, 2, n)).astype(np.float32) for n in (6, n_out))
    b[:, 1] = 0  # the second matrix has no update
    turned = orthonormal(Pair(a, b))
    np.testing.assert_allclose(product(turned), product(Pair(a, b)), atol=2e-5)
    gram = np.einsum("ri,si->rs", turned.a[:, 0], turned.a[:, 0])
    np.testing.assert_allclose(gram, np.eye(4), atol=1e-5)
    np.testing.assert_array_equal(turned.a[:, 1], a[:, 1])
    largest = np.take_along_axis(
        np.asarray(turned.a[:, 0]), np.abs(turned.a[:, 0]).argmax(-1)[:, None], -1
    )
    assert (largest > 0).all()
    s = np.linalg.svd(a[:, 0].T @ b[:, 0], compute_uv=False)
    s = np.pad(s[:4], (0, 4 - len(s[:4])))
    np.testing.assert_allclose(np.linalg.norm(turned.b[:, 0], axis=-1), s, atol=1e-4)


def test_noise_on_b_has_the_energy_that_orthonormal_rows_promise():
    """Noise N on B enters B A as N A, of energy s^2 d_out r whatever was learnt."""
    rng = np.random.default_rng(1)
    n, r, d_in, d_out, s = 4000, 2, 5, 3, 0.1
    start = Pair(
        *(rng.normal(size=(r, 1, d)).astype(np.float32) for d in (d_in, d_out))
    )
    a = np.broadcast_to(orthonormal(start).a, (r, n, d_in))
    noise = s * rng.normal(size=(r, n, d_out)).astype(np.float32)
    energy = np.sum(np.asarray(product(Pair(a, noise))) ** 2, axis=(1, 2))
    expected = s**2 * d_out * r
    assert abs(energy.mean() - expected) < 4 * energy.std() / np.sqrt(n)


def test_clients_fetch_the_a_that_they_do_not_have():
    """Client 0 takes part in rounds 0, 1, 2 and 4, client 1 in round 3; A changes after
    rounds 1 and 3."""
    schedule = jnp.array([0, 0, 0, 1, 0], jnp.int32)

    def draw(i, key):
        return schedule[i][None], jnp.int32(1), i + 1

    sampler = ffm.Sampler(init=lambda: jnp.int32(0), draw=draw, capacity=1)
    method = lora_rules.fedsvd(ffm.Task(loss), optax.sgd(RATE), period=2, **HOW)
    delta, backbone = make_trees()
    population = ffm.Population.from_clients(make_clients()[:2])
    one = ffm.Simulator(
        method, population, backbone=backbone, sampler=sampler, cohort_size=1, devices=1
    )
    _, metrics = one.run(one.init(delta), 5)
    numbers = [D_OUT, D_OUT, D_IN + D_OUT, D_IN + D_OUT, D_IN + D_OUT]
    expected = [4 * (3 * n + HEAD) for n in numbers]
    assert metrics["downlink_bytes"].tolist() == expected
    assert metrics["uplink_bytes"].tolist() == [4 * (3 * D_OUT + HEAD)] * 5


def test_more_rows_than_inputs_are_refused():
    method = lora_rules.fedsvd(ffm.Task(loss), optax.sgd(RATE), **HOW)
    delta, _ = make_trees(d=2)
    with pytest.raises(ValueError, match=r"at most 2, the inputs of .*, got rank 3"):
        method.init(delta, None, ffm.Setting(2, 2))
