"""FedMD's exact invariants (Li and Wang 2019): the consensus, what parties make of it, and
what travels.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from two_architectures import (
    CLASSES,
    FEATURES,
    GROUPS,
    LOGITS,
    architectures,
    descent,
    make_clients,
    make_public,
    make_trees,
)

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import distillation
from fedjax_fm.algorithms.fedmd import fedmd, model_of
from fedjax_fm.types import Sampler

RATE, START, STEPS, DIGEST = 0.3, 4, 3, 5
CLIENTS, PUBLIC = make_clients(), make_public()
DELTAS, BACKBONES = make_trees()
N, PARTIES = len(PUBLIC["x"]), len(CLIENTS)
WHOLE = {
    "digest_batch_size": 16,
    "batch_size": 8,
}  # one batch covers the public examples, one all of a client's


def make(public=PUBLIC, groups=GROUPS, **how):
    how = {
        "n_classes": CLASSES,
        "digest_epochs": DIGEST,
        "start_epochs": START,
        "local_steps": STEPS,
        **WHOLE,
    } | how
    return fedmd(architectures(RATE), groups, public, **how)


def simulator(algorithm, clients=CLIENTS, **how):
    """Whose cohort is in the sampler's state: all clients, unless a test puts others there."""
    cohort = (jnp.arange(len(clients), dtype=jnp.int32), jnp.int32(len(clients)))
    sampler = Sampler(
        init=lambda: cohort,
        draw=lambda state, key: (*state, state),
        capacity=len(clients),
    )
    return ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(clients),
        backbone=BACKBONES,
        sampler=sampler,
        cohort_size=len(clients),
        devices=1,
        seed=3,
        **how,
    )


def party(state, k):
    """Party k's model."""
    return model_of(
        DELTAS[GROUPS[k]], jax.tree.map(lambda x: x[k], state.carry.clients)
    )


def logits(k, model):
    return np.asarray(LOGITS[GROUPS[k]](model, BACKBONES[GROUPS[k]], PUBLIC))


def started(k):
    """By a plain loop: party k before it says anything."""
    return descent(
        GROUPS[k],
        DELTAS[GROUPS[k]],
        BACKBONES[GROUPS[k]],
        CLIENTS[k],
        steps=START,
        rate=RATE,
    )


def close(a, b, **how):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, **({"rtol": 2e-5, "atol": 2e-6} | how)
        ),
        a,
        b,
    )


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def plain():
    """The authors' setting: (simulator, state after one round, after two, metrics of
    the second).
    """
    one = simulator(make())
    first, _ = one.run(one.init(DELTAS), 1)
    return one, first, *one.run(first, 1)


def torch_logits(g, w, x):
    def tensor(x):
        return torch.tensor(np.asarray(x))

    return (
        torch.tanh(x @ (tensor(BACKBONES[0]["w"]) + w["w"])) @ w["v"]
        if g == 0
        else x @ w["u"] + w["b"]
    )


def torch_rounds(rounds):
    """Algorithm 1 with torch's gradients, SGD and Adam: (models, consensus of the last round)."""
    public = torch.tensor(PUBLIC["x"])
    models = [
        {
            name: torch.tensor(np.asarray(x)).requires_grad_()
            for name, x in DELTAS[g].items()
        }
        for g in GROUPS
    ]

    def private(k, steps):
        x, y = torch.tensor(CLIENTS[k]["x"]), torch.tensor(CLIENTS[k]["y"]).long()
        optimizer = torch.optim.SGD(models[k].values(), lr=RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(
                torch_logits(GROUPS[k], models[k], x), y
            ).backward()
            optimizer.step()

    for k in range(PARTIES):
        private(k, START)
    for _ in range(rounds):
        with torch.no_grad():
            consensus = torch.stack(
                [
                    torch_logits(g, w, public)
                    for g, w in zip(GROUPS, models, strict=True)
                ]
            ).mean(0)
        for k, g in enumerate(GROUPS):
            optimizer = torch.optim.Adam(models[k].values(), lr=1e-3)
            for _ in range(DIGEST):
                optimizer.zero_grad()
                (torch_logits(g, models[k], public) - consensus).abs().mean().backward()
                optimizer.step()
            private(k, STEPS)
    return [
        {name: x.detach().numpy() for name, x in w.items()} for w in models
    ], consensus.numpy()


def test_rounds_with_the_authors_distance_and_optimizer_are_torchs(plain):
    models, consensus = torch_rounds(2)
    state = plain[2]
    close(state.carry.server.consensus, consensus, rtol=1e-4, atol=1e-4)
    for k in range(PARTIES):
        close(party(state, k), models[k], rtol=1e-4, atol=1e-4)
    equal(state.delta, DELTAS)  # the server has no model


def test_the_consensus_is_the_mean_of_all_parties_logits(plain):
    """Of both architectures, each counting once however many examples it has; numpy
    adds them up.
    """
    said = [logits(k, started(k)) for k in range(PARTIES)]
    close(plain[1].carry.server.consensus, np.mean(said, axis=0), rtol=1e-4, atol=1e-5)


def test_a_party_that_is_alone_agrees_with_itself():
    """The consensus of one is its own logits; KL's gradient is zero: what is left is
    training by oneself.
    """
    one = simulator(
        make(groups=[0], distance=distillation.kl, digest_optimizer=optax.sgd(1.0)),
        CLIENTS[:1],
    )
    state, _ = one.run(one.init(DELTAS), 2)
    close(party(state, 0), alone(0, START + 2 * STEPS), atol=1e-5)
    close(state.carry.server.consensus, logits(0, alone(0, START + STEPS)), atol=1e-5)


def alone(k, steps):
    return descent(
        GROUPS[k],
        DELTAS[GROUPS[k]],
        BACKBONES[GROUPS[k]],
        CLIENTS[k],
        steps=steps,
        rate=RATE,
    )


def test_without_digests_every_party_trains_alone(plain):
    one = simulator(make(digest_epochs=0, start_epochs=0))
    state, _ = one.run(one.init(DELTAS), 2)
    for k in range(PARTIES):
        close(party(state, k), alone(k, 2 * STEPS), atol=1e-5)
        assert (
            max(
                np.abs(x - y).max()
                for x, y in both(party(state, k), party(plain[2], k))
            )
            > 1e-3
        )


def both(a, b):
    return zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)


def test_traffic_is_logits_whatever_the_models(plain):
    """4 B K bytes each way for every party, and with 16 times the hidden units no more."""
    one, _, _, metrics = plain
    expected = 4 * N * CLASSES
    assert (
        metrics["uplink_bytes"][0] == metrics["downlink_bytes"][0] == PARTIES * expected
    )
    assert [(bill.up, bill.down) for bill in one.messages.bills] == [
        (expected, 0)
    ] * 2 + [(0, expected)] * 2
    rng = np.random.default_rng(0)
    wide = {
        "w": rng.normal(size=(FEATURES, 64)).astype(np.float32),
        "v": rng.normal(size=(64, CLASSES)).astype(np.float32),
    }
    other = ffm.Simulator(
        make(n_public=5),
        ffm.Population.from_clients(CLIENTS),
        backbone=({"w": wide["w"]}, ()),
        cohort_size=PARTIES,
    )
    other.init((wide, DELTAS[1]))
    assert [(bill.up, bill.down) for bill in other.messages.bills] == [(60, 0)] * 2 + [
        (0, 60)
    ] * 2


def test_top_k_of_all_classes_is_the_full_version(plain):
    one = simulator(make(), uplink=channels.top_k(1.0))
    state, _ = one.run(one.init(DELTAS), 1)
    equal(state.carry.server.consensus, plain[1].carry.server.consensus)
    equal(state.carry.clients, plain[1].carry.clients)


def test_permuted_public_examples_permute_the_rows_of_the_consensus(plain):
    one, first, _, _ = plain
    order = np.random.default_rng(0).permutation(N)
    state = one.init(DELTAS)
    server = state.carry.server._replace(public={"x": jnp.asarray(PUBLIC["x"][order])})
    permuted, _ = one.run(
        dataclasses.replace(state, carry=state.carry._replace(server=server)), 1
    )
    close(permuted.carry.server.consensus, first.carry.server.consensus[order])
    close(permuted.carry.clients, first.carry.clients, atol=1e-5)


def test_mean_probabilities():
    one = simulator(
        make(average="probabilities", n_public=N, digest_optimizer=optax.sgd(0.1))
    )
    state, _ = one.run(one.init(DELTAS), 1)
    said = np.mean(
        [jax.nn.softmax(logits(k, started(k))) for k in range(PARTIES)], axis=0
    )
    close(state.carry.server.consensus, np.log(said), atol=1e-5)
    target = state.carry.server.consensus
    for k in (0, 1):  # one of each architecture digests by KL, then trains
        g = GROUPS[k]
        digested = descent(
            g, started(k), BACKBONES[g], PUBLIC, steps=DIGEST, rate=0.1, target=target
        )
        close(
            party(state, k),
            descent(g, digested, BACKBONES[g], CLIENTS[k], steps=STEPS, rate=RATE),
            atol=1e-5,
        )


def test_a_party_starts_when_it_first_takes_part(plain):
    """And a party's state is as long as the largest model, one bit more."""
    one = plain[0]
    state = one.init(DELTAS)
    first_two = (jnp.array([0, 1, 0, 0, 0, 0, 0], jnp.int32), jnp.int32(2))
    state = dataclasses.replace(state, carry=state.carry._replace(sampler=first_two))
    after, _ = one.run(state, 1)
    weights, has_started = after.carry.clients
    assert weights.shape == (PARTIES, max(map(ffm.trees.size, DELTAS)))
    np.testing.assert_array_equal(has_started, [True, True] + [False] * 5)
    equal(party(after, 2), DELTAS[0])
    everyone = (jnp.arange(PARTIES, dtype=jnp.int32), jnp.int32(PARTIES))
    later, _ = one.run(
        dataclasses.replace(after, carry=after.carry._replace(sampler=everyone)), 1
    )
    said = [logits(k, party(after, k) if k < 2 else started(k)) for k in range(PARTIES)]
    close(later.carry.server.consensus, np.mean(said, axis=0), rtol=1e-4, atol=1e-5)


def test_public_examples_are_drawn_anew_each_round():
    algorithm = make(n_public=5)
    state = algorithm.init(DELTAS, jax.random.key(1), ffm.Setting(PARTIES, PARTIES))
    said = (jnp.zeros((5, CLASSES)), jnp.float32(1))
    after, _ = algorithm.exchanges[-1].server(
        state, ffm.Aggregate(said, jnp.int32(1)), jax.random.key(2)
    )
    for rows in (state.rows, after.rows):
        assert len(set(np.asarray(rows).tolist())) == 5
        assert np.asarray(rows).max() < N
    assert (state.rows != after.rows).any()
    asked = algorithm.exchanges[0].broadcast(after).known.value[1]
    np.testing.assert_array_equal(asked["x"], PUBLIC["x"][np.asarray(after.rows)])


def test_what_cannot_be():
    for how, word in (
        ({"n_public": N + 1}, f"n_public <= {N}, got n_public={N + 1}"),
        ({"n_classes": 0}, "n_classes >= 1"),
        ({"digest_epochs": -1}, "digest_epochs >= 0"),
        ({"start_epochs": -1}, "start_epochs >= 0"),
        (
            {"average": "probabilities", "distance": distillation.mean_absolute},
            "up to a constant",
        ),
        ({"groups": [0, -1]}, r"groups in \[0, 2\)"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(ValueError, match=word):
            make(**how)
