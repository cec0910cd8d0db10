"""FedPAQ: FedAvg without the rounding, unbiased with it, and refused combinations."""

import jax
import numpy as np
import optax
import pytest
from quadratics import START, TASK, A, D, H, N, clients, run, simulator

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import fedpaq

WALK = {"local_steps": 3, "batch_size": 4}
RATE = 0.1


def make(channel=None, **how):
    return fedpaq(TASK, optax.sgd(RATE), channel=channel, **(WALK | how))


def test_without_rounding_it_is_fedavg():
    """Also on clients of different sizes, and with a momentum at the server."""
    server = optax.sgd(0.7, momentum=0.9)
    ragged = clients(sizes=(1, 2, 3, 1, 2, 5))
    plain = ffm.fedavg(TASK, optax.sgd(RATE), server, **WALK)
    same = fedpaq(TASK, optax.sgd(RATE), server, channel=channels.identity(), **WALK)
    expected, paid = run(plain, 4, clients=ragged)
    found, also = run(same, 4, clients=ragged)
    np.testing.assert_array_equal(found.delta, expected.delta)
    np.testing.assert_array_equal(also["uplink_bytes"], paid["uplink_bytes"])


def test_the_plain_mean_of_the_paper():
    ragged = clients(sizes=(1, 2, 3, 1, 2, 5))
    state, _ = run(make(channels.identity(), weighted=False), 1, clients=ragged)
    trained = A + (1 - RATE * H) ** 3 * (START - A)
    np.testing.assert_allclose(state.delta, trained.mean(0), rtol=2e-6)


def test_the_mean_is_unbiased_with_the_sum_of_the_variances():
    """Keys of clients are independent: else the variance would be N times as large."""
    one = simulator(make(channels.quantize(3, norm="l2", bucket_size=None)))
    updates = A - A - (1 - RATE * H) ** 3 * (START - A) + (START - A)
    draws = 400
    found = np.stack(
        [one.run(one.init(START, seed=s), 1)[0].delta for s in range(draws)]
    ).astype(np.float64)
    norm, levels = np.linalg.norm(updates, axis=1, keepdims=True), 3
    above = levels * np.abs(updates) / norm
    share = above - np.floor(above)
    variance = (norm**2 / levels**2 * share * (1 - share)).sum(0) / N**2
    z = (found.mean(0) + updates.mean(0)) / np.sqrt(variance / draws)
    assert np.abs(z).max() < 4
    ratio = found.var(axis=0).sum() / variance.sum()
    assert ratio == pytest.approx(1, abs=0.12)


def test_bytes_are_those_of_the_buffers():
    _, metrics = run(make(), 2)
    bits = 32 + 4 * D  # a norm, and a code of four bits an entry
    assert metrics["uplink_bytes"].tolist() == [N * bits // 8] * 2
    channel = channels.quantize(4, norm="l2", bucket_size=None)
    payload, _ = channel.encode((), START, jax.random.key(0))
    assert 8 * sum(x.nbytes for x in jax.tree.leaves(payload)) == bits
    assert metrics["downlink_bytes"].tolist() == [N * 4 * D] * 2


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        (channels.top_k(0.5), "expected an unbiased channel.*law=Contractive"),
        (channels.nnadq(), "expected an unbiased channel.*law=None"),
        (channels.error_feedback(channels.top_k(0.5)), "leave error_feedback"),
        (
            channels.anchored(channels.identity(), channels.natural(), 2),
            "without memory",
        ),
        (channels.top_k, "call it with its arguments"),
        ("quantize", "expected a channel"),
    ],
)
def test_what_its_theory_does_not_cover_is_refused(channel, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make(channel)


def test_a_second_channel_behind_its_own_is_refused():
    for uplink in (channels.top_k(0.5), channels.error_feedback(channels.sign())):
        one = simulator(make(channels.identity()), uplink=uplink)
        with pytest.raises(TypeError, match="encoded_by_the_method"):
            one.init(START)
