"""Secure aggregation: masks that cancel bit for bit, drop-outs, and what a mask hides."""

import contextlib
import hmac

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import fedjax_fm as ffm
from fedjax_fm import secure
from fedjax_fm.secure import FixedPoint, TooFew, agreed, masked, unmasked_sum
from fedjax_fm.secure.shamir import PRIME

pytest.importorskip("cryptography")

# Whole numbers


def test_codes_are_unbiased_and_their_error_is_that_of_rounding():
    fixed = FixedPoint(clip=1.0, levels=10)
    x = jnp.array([0.03, -0.51, 0.77, 1.0, -1.0, 7.0, 0.0])
    keys = jax.random.split(jax.random.key(0), 4000)
    codes = np.asarray(jax.vmap(lambda key: secure.encode(x, fixed, key))(keys))
    assert codes.dtype == np.uint32
    assert codes.min() >= 0
    assert codes.max() <= 10
    found = np.asarray(secure.decode(jnp.asarray(codes), 1, fixed))
    clipped = np.clip(np.asarray(x, np.float64), -1, 1)
    rest = clipped / 0.2 - np.floor(clipped / 0.2)
    spread = 0.2 * np.sqrt(rest * (1 - rest))
    np.testing.assert_allclose(
        found.mean(axis=0), clipped, atol=4 * 0.1 / np.sqrt(4000)
    )
    np.testing.assert_allclose(found.std(axis=0), spread, atol=0.01)


def test_small_numbers_keep_their_digits():
    """x + c would lose them: they are rounded before c is added."""
    fixed, x = FixedPoint(), jnp.full(20_000, 3e-7)
    codes = secure.encode(x, fixed, jax.random.key(1))
    share = np.mean(np.asarray(codes) > fixed.levels // 2)
    assert share == pytest.approx(3e-7 / fixed.step, abs=4 * np.sqrt(0.08 / 20_000))


def test_the_sum_of_codes_is_the_sum_to_the_step():
    fixed = FixedPoint()
    x = np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 50)
    codes = jax.vmap(lambda row, key: secure.encode(row, fixed, key))(x, keys)
    total = jnp.sum(codes, axis=0, dtype=jnp.uint32)
    error = np.asarray(secure.decode(total, 50, fixed)) - x.astype(np.float64).sum(0)
    assert np.abs(error).max() < 50 * fixed.step
    # Roundings are independent: errors add up as their variances do.
    assert np.abs(error).max() < 5 * fixed.step * np.sqrt(50 / 4) + 2e-5


def test_sums_that_may_wrap_are_no_numbers():
    fixed = FixedPoint()
    assert fixed.most_clients == 1023
    codes = secure.encode(jnp.ones(3), fixed, jax.random.key(0))
    assert np.isfinite(secure.decode(codes, 1023, fixed)).all()
    assert np.isnan(secure.decode(codes, 1024, fixed)).all()
    with pytest.raises(ValueError, match=r"1024 clients' codes .* at most 1023"):
        fixed.bits(1024)
    assert [fixed.bits(m) for m in (1, 3, 4, 1023)] == [23, 24, 25, 32]


# Keys and shares


def test_the_prime_is_one():
    """By the test of Miller and Rabin, forty bases."""
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        x = pow(base, odd, PRIME)
        powers = [pow(x, 2**i, PRIME) for i in range(twos)]
        assert x == 1 or PRIME - 1 in powers, base
    assert PRIME > 2**256


def test_any_threshold_of_shares_give_the_secret_and_fewer_do_not():
    random = np.random.default_rng(0)
    secret = random.bytes(32)
    shares = secure.split(secret, 7, 4, random)
    for _ in range(20):
        some = random.permutation(7)[:4] + 1
        assert secure.rebuilt({int(i): shares[int(i)] for i in some}) == secret
    assert secure.rebuilt(shares) == secret
    few = {i: shares[i] for i in (1, 2, 3)}
    # Three points fit every secret: the one that they give is as good as random.
    with contextlib.suppress(ValueError):  # or none of 32 bytes
        assert secure.rebuilt(few) != secret


def test_two_sides_agree_on_the_seed_of_rfc_5869():
    """HKDF by hand, of what X25519 gives."""
    from cryptography.hazmat.primitives.asymmetric import x25519

    one, other = (secure.key_pair(bytes([k]) * 32) for k in (3, 9))
    seed = secure.agreed_seed(one.private, other.public)
    assert seed == secure.agreed_seed(other.private, one.public)
    assert seed != secure.agreed_seed(one.private, one.public)
    mine = x25519.X25519PrivateKey.from_private_bytes(one.private)
    assert mine.public_key().public_bytes_raw() == one.public
    theirs = x25519.X25519PublicKey.from_public_bytes(other.public)
    extracted = hmac.digest(bytes(32), mine.exchange(theirs), "sha256")
    assert seed == hmac.digest(extracted, b"fedjax_fm pairwise mask\x01", "sha256")


# The protocol

M, D = 9, 400
FIXED = FixedPoint()


def codes_of(m=M, d=D, seed=0):
    top = FIXED.levels + 1
    return np.random.default_rng(seed).integers(0, top, (m, d)).astype(np.uint32)


@pytest.mark.parametrize("degree", [None, 6], ids=["all pairs", "six neighbours"])
@pytest.mark.parametrize("dropped", [(), (4,), (0, 8)], ids=str)
def test_the_masked_sum_is_the_plain_sum_bit_for_bit(degree, dropped):
    codes = codes_of()
    cohort = agreed(M, bits=FIXED.bits(M), degree=degree, threshold=0.6)
    sent = [None if k in dropped else masked(codes[k], k, cohort) for k in range(M)]
    arrived = [k for k in range(M) if k not in dropped]
    expected = codes[arrived].astype(np.uint64).sum(axis=0)
    assert unmasked_sum(sent, cohort).tolist() == expected.tolist()


def test_nobody_else_has_to_answer_than_the_threshold():
    codes, cohort = codes_of(), agreed(M, threshold=0.6)  # 5 of 8 neighbours
    sent = [masked(codes[k], k, cohort) for k in range(M)]
    answered = np.arange(M) < 6  # every client has at least five of them beside itself
    found = unmasked_sum(sent, cohort, answered)
    assert found.tolist() == codes.sum(axis=0, dtype=np.uint32).tolist()
    with pytest.raises(TooFew, match=r"client 0 4 of 8 neighbours answered, and 5"):
        unmasked_sum(sent, cohort, np.arange(M) < 5)


def test_too_many_that_drop_out_end_the_round():
    codes, cohort = codes_of(), agreed(M, threshold=0.6)
    sent = [masked(codes[k], k, cohort) if k < 4 else None for k in range(M)]
    with pytest.raises(TooFew):
        unmasked_sum(sent, cohort)


def test_without_a_dropped_clients_masks_the_sum_is_wrong():
    """The test would fail if there were no masks to bring back."""
    codes, cohort = codes_of(), agreed(M)
    sent = [masked(codes[k], k, cohort) for k in range(M)]
    some = np.sum(sent[:-1], axis=0, dtype=np.uint32)
    assert (some != codes[:-1].sum(axis=0, dtype=np.uint32)).all()


def test_one_masked_upload_is_uniform():
    """Equal codes, as far from uniform as can be; chi-square on high and low bits."""
    bits = FIXED.bits(M)
    cohort = agreed(M, bits=bits, seed=5)
    sent = masked(np.full(64_000, 17, np.uint32), 2, cohort)
    for shift in (0, bits - 6):
        counts = np.bincount((sent >> shift) & 63, minlength=64)
        assert counts.sum() == 64_000
        assert stats.chisquare(counts).pvalue > 1e-3
    plain = np.bincount(np.full(64_000, 17) & 63, minlength=64)
    assert stats.chisquare(plain).pvalue < 1e-10
    # Two uploads of one client's codes have nothing in common either.
    again = masked(np.full(64_000, 17, np.uint32), 3, cohort)
    assert abs(np.corrcoef(sent.astype(float), again.astype(float))[0, 1]) < 0.02


def test_a_graph_is_symmetric_and_in_one_piece():
    near = secure.neighbours(20, 4, seed=2)
    assert all(k in near[j] for k in range(20) for j in near[k])
    assert all(len(set(own)) == 4 and k not in own for k, own in enumerate(near))
    seen, waiting = set(), [0]
    while waiting:
        k = waiting.pop()
        if k not in seen:
            seen.add(k)
            waiting += near[k].tolist()
    assert len(seen) == 20


def test_the_bill_is_that_of_packed_numbers():
    found = secure.bill(1001, 8, 26)
    assert found.numbers == -(-1001 * 26 // 8)
    assert found.uplink == found.numbers + 64 + 8 * (2 * 33 + 16) + 8 * 33
    assert found.downlink == 8 * 64 + 8 * (2 * 33 + 16)


# A run


def loss(w, backbone, batch, key):
    return jnp.sum((w["a"] - batch["x"]) ** 2, axis=-1) / 2 + (w["b"] - 1) ** 2, {}


TASK = ffm.Task(loss)
START = {"a": jnp.zeros(3), "b": jnp.float32(0)}


def population():
    random = np.random.default_rng(0)
    sizes = (1, 4, 2, 3, 4)
    return ffm.Population.from_clients(
        [{"x": random.normal(size=(n, 3)).astype(np.float32)} for n in sizes]
    )


def run(method, rounds=3, **how):
    simulator = ffm.Simulator(method, population(), cohort_size=5, seed=0, **how)
    return simulator.run(simulator.init(START), rounds)


def fedavg():
    return ffm.fedavg(TASK, optax.sgd(0.3), local_steps=2, batch_size=2)


def test_a_run_is_the_plain_one_to_the_step():
    plain, ours = fedavg(), secure.secured(fedavg(), most_weight=4)
    (one, bill), (other, secure_bill) = run(plain), run(ours)
    for a, b in zip(*map(jax.tree.leaves, (one.delta, other.delta)), strict=True):
        np.testing.assert_allclose(a, b, atol=20 * FIXED.step)
    assert not jnp.array_equal(one.delta["a"], other.delta["a"])
    # Four numbers and the weight, of five clients.
    assert bill["uplink_bytes"].tolist() == [4 * 4 * 5] * 3
    assert secure_bill["uplink_bytes"].tolist() == [4 * 5 * 5] * 3


def test_a_run_does_not_depend_on_blocks():
    method = secure.secured(fedavg(), most_weight=4)
    first, _ = run(method, block_size=1, devices=1)
    second, _ = run(method, block_size=3, devices=1)
    for a, b in zip(*map(jax.tree.leaves, (first.delta, second.delta)), strict=True):
        np.testing.assert_allclose(a, b, atol=2 * FIXED.step)


def test_a_client_that_is_not_finite_stops_the_run():
    """Its loss is 0, its gradient is infinite, and its codes are whole numbers."""

    def root(w, backbone, batch, key):
        return jnp.sqrt(jnp.abs(w * batch["x"])), {}

    plain = ffm.fedavg(ffm.Task(root), optax.sgd(1.0), local_steps=1, batch_size=1)
    data = ffm.Population.from_clients([{"x": np.ones(1, np.float32)}] * 2)
    method = secure.secured(plain, most_weight=1)
    simulator = ffm.Simulator(method, data, cohort_size=2)
    with pytest.raises(ffm.NonFiniteClient):
        simulator.run(simulator.init(jnp.float32(0)), 1)


def test_what_secure_aggregation_cannot_do_is_refused():
    from fedjax_fm import robust

    with pytest.raises(ValueError, match="keeps, sorts or clips"):
        secure.secured(
            robust.robust(fedavg(), robust.coordinate_median()), most_weight=1
        )
    private = ffm.algorithms.dp_fedavg(
        TASK, optax.sgd(0.1), noise=ffm.privacy.independent(), clip_norm=1.0,
        noise_multiplier=0.0, local_steps=1, batch_size=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="clips single uploads at the server"):
        secure.secured(private, most_weight=1)
    follows = ffm.algorithms.scaffold(TASK, optax.sgd(0.1), local_steps=1, batch_size=1)
    with pytest.raises(ValueError):
        run(secure.secured(follows, most_weight=1), 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedPoint(clip=0).checked(), "clip=0"),
        (lambda: FixedPoint(levels=3).checked(), "even number of levels, got 3"),
        (lambda: secure.secured(fedavg(), FixedPoint(0.5), most_weight=1), "clip >= 1"),
        (lambda: secure.secured(fedavg(), most_weight=0), "most_weight=0"),
        (lambda: agreed(2), "n_clients=2"),
        (lambda: agreed(4, threshold=0.5), "threshold=0.5"),
        (lambda: secure.neighbours(6, 3), "even degree"),
        (lambda: secure.split(b"short", 3, 2, np.random.default_rng(0)), "got 5"),
        (lambda: unmasked_sum([None] * 3, agreed(3)), "0 arrivals"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
