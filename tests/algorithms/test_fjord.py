"""FjORD against plain loops, and against the singular value decomposition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from width_models import MODELS, SIZES, Model, mlp, ordered_descent, where

import fedjax_fm as ffm
from fedjax_fm.algorithms.fjord import Distillation, fjord
from fedjax_fm.algorithms.nested import nest
from fedjax_fm.algorithms.parts import Stream
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.population import samplers

STEPS, RATE, SEED = 3, 0.3, 11
WIDTHS = (0.25, 0.5, 0.7, 1.0)
CAPS = (0.5, 0.25, 0.5, 0.7, 0.25, 0.7, 0.5)  # nobody carries the whole
HOW = {"local_steps": STEPS, "batch_size": 8}


def run(model, widths, caps, rounds=1, clients=None, task=None, optimizer=None, **how):
    clients = clients or model.clients()
    algorithm = fjord(
        task or ffm.Task(model.loss),
        optimizer or optax.sgd(RATE),
        model.prefixes,
        widths,
        caps,
        **(HOW | how),
    )
    everyone = samplers.fixed(range(len(clients)))
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(clients),
        cohort_size=len(clients),
        sampler=everyone,
        seed=SEED,
        devices=1,
        block_size=1,
    )
    return simulator.run(simulator.init(model.delta), rounds)


def close(a, b, rtol=2e-5, atol=2e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
    )


def test_prefixes_are_overwritten_from_the_widest_to_the_narrowest():
    """The server as the authors' code writes it: each width's prefix becomes the
    n_k-weighted mean over the clients whose cap is at least that; what nobody carries
    keeps its bits."""
    model, order = mlp(), sorted(set(CAPS), reverse=True)
    state, metrics = run(model, WIDTHS, CAPS)
    train, round_key = (
        ordered_descent(model, WIDTHS, RATE, STEPS),
        jax.random.fold_in(jax.random.key(SEED), 0),
    )
    results = []
    for k, (cap, client) in enumerate(zip(CAPS, model.clients(), strict=True)):
        key = derive(round_key, Purpose.CLIENT, k, order.index(cap))
        at = where(model.prefixes, cap)
        results.append(
            train(jax.tree.map(lambda x, at: x[at], model.delta, at), client, cap, key)
        )
    expected = jax.tree.map(np.array, model.delta)
    for width in order:
        able = [k for k in range(len(SIZES)) if CAPS[k] >= width]
        shares = np.array([SIZES[k] for k in able]) / sum(SIZES[k] for k in able)
        at = where(model.prefixes, width)
        for name, places in at.items():
            expected[name][places] = sum(
                s * results[k][name][places] for s, k in zip(shares, able, strict=True)
            )
    close(state.delta, expected)
    for name, old in model.delta.items():
        outside = np.ones(old.shape, bool)
        outside[where(model.prefixes, 0.7)[name]] = False
        np.testing.assert_array_equal(
            np.asarray(state.delta[name])[outside], old[outside]
        )
    assert (
        outside.sum() == 0
    )  # the last one, a bias of the outputs, is whole at every width
    nbytes = sum(
        4 * s.size for cap in CAPS for s in jax.tree.leaves(model.prefixes.shapes(cap))
    )
    assert (
        metrics["uplink_bytes"].tolist()
        == metrics["downlink_bytes"].tolist()
        == [nbytes]
    )


def test_one_width_is_fedavg():
    """Random losses too: steps get the keys of FedAvg."""
    model = mlp()

    def noisy(delta, backbone, batch, key):
        losses, metrics = model.loss(delta, backbone, batch, key)
        return losses * jax.random.uniform(key, (), minval=0.5, maxval=1.5), metrics

    n = len(SIZES)
    optimizer = optax.adam(0.05)
    state, metrics = run(
        model, [1.0], np.ones(n), 3, task=ffm.Task(noisy), optimizer=optimizer
    )
    algorithm = ffm.fedavg(ffm.Task(noisy), optimizer, **HOW)
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(model.clients()),
        cohort_size=n,
        seed=SEED,
        devices=1,
        sampler=samplers.fixed(range(n)),
        block_size=1,
    )
    expected, seen = simulator.run(simulator.init(model.delta), 3)
    close(state.delta, expected.delta, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], seen["loss"], rtol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_images_and_words_are_learned_at_every_width(name):
    """Some rounds on fixed examples lower the loss of the whole model and of each of
    its prefixes.
    """
    model = MODELS[name]()
    state, _ = run(model, (0.5, 1.0), np.ones(len(SIZES)), 12, optimizer=optax.sgd(0.1))
    batch = jax.tree.map(lambda *xs: np.concatenate(xs), *model.clients())

    @jax.jit
    def losses(delta):
        return [
            jnp.mean(model.loss(model.prefixes.take(delta, w), (), batch, None)[0])
            for w in (0.5, 1.0)
        ]

    for before, after in zip(losses(model.delta), losses(state.delta), strict=True):
        assert after < before - 0.1


def test_widths_are_drawn_uniformly_up_to_the_cap():
    """The task reports how many units it sees: a mean of 2 under a cap of 3 of 5, of 3 without."""
    delta = {"w": np.zeros(5, np.float32)}
    prefixes = nest(delta, {"w": ("width",)})

    def loss(delta, backbone, batch, key):
        size = jnp.full(batch["y"].shape, float(delta["w"].size))
        return jnp.sum(delta["w"]) * jnp.zeros_like(size), {
            "units": size,
            "squares": size**2,
        }

    model = Model(delta=delta, prefixes=prefixes, logits=None, example=None)
    clients = [{"y": np.zeros(1, np.float32)}]
    for cap, mean, squares in ((0.6, 2.0, 14 / 3), (1.0, 3.0, 11.0)):
        how = {"task": ffm.Task(loss), "clients": clients, "local_steps": 3000}
        _, metrics = run(model, (0.2, 0.4, 0.6, 0.8, 1.0), [cap], **how)
        assert metrics["units"][0] == pytest.approx(mean, abs=0.1)
        assert metrics["squares"][0] == pytest.approx(squares, rel=0.05)


def test_a_linear_map_learns_its_singular_value_decomposition():
    """Horváth et al. 2021: one linear map of K hidden units, whitened inputs, every width as
    likely: the prefix of each k becomes the best map of rank k. At that point every
    width's gradient is zero, so the drawn steps come to rest."""
    rng, (n_in, n_out, k) = np.random.default_rng(0), (6, 5, 4)
    left, right = (
        np.linalg.qr(rng.normal(size=(n, n)))[0][:, :k] for n in (n_out, n_in)
    )
    values = np.array([2.0, 1.4, 0.9, 0.5])
    target = (left * values) @ right.T
    x = (np.linalg.qr(rng.normal(size=(12, n_in)))[0] * np.sqrt(12)).astype(np.float32)
    np.testing.assert_allclose(x.T @ x / 12, np.eye(n_in), atol=1e-5)
    clients = [{"x": x, "y": (x @ target.T).astype(np.float32)}]
    delta = {
        name: rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in (("a", (n_in, k)), ("b", (k, n_out)))
    }
    prefixes = nest(delta, {"a": (None, "width"), "b": ("width", None)})

    def linear(d, backbone, batch, key):
        return (0.5 * jnp.sum((batch["x"] @ d["a"] @ d["b"] - batch["y"]) ** 2, 1), {})

    widths = [i / k for i in range(1, k + 1)]
    state, _ = run(
        Model(delta=delta, prefixes=prefixes, logits=None, example=None),
        widths,
        [1.0],
        6,
        clients=clients,
        task=ffm.Task(linear),
        optimizer=optax.sgd(0.05),
        local_steps=2000,
        batch_size=12,
    )
    for i in range(1, k + 1):
        best = (left[:, :i] * values[:i]) @ right[:, :i].T
        np.testing.assert_allclose(
            (state.delta["a"][:, :i] @ state.delta["b"][:i]).T, best, atol=2e-4
        )


def test_distillation_is_the_papers_loss():
    """One step, against torch: CE(wide) + (1 - alpha) CE(narrow) + alpha KL(wide ||
    narrow), softened.
    """
    model, alpha, temperature = mlp(), 0.3, 2.0
    client = model.clients((6,))[0]

    def logits(delta, backbone, batch, key):
        return model.logits(delta, batch, 1.0)

    step_key = jax.random.fold_in(
        derive(jax.random.fold_in(jax.random.key(SEED), 0), Purpose.CLIENT, 0, 0), 0
    )
    assert (
        int(
            jax.random.randint(
                jax.random.fold_in(step_key, Stream.DRAWN_WIDTH), (), 0, 2
            )
        )
        == 0
    )  # draws the narrower of two
    for width, teacher_learns in ((0.5, True), (0.7, False)):
        distillation = Distillation(
            logits=logits,
            alpha=alpha,
            temperature=temperature,
            teacher_learns=teacher_learns,
        )
        state, metrics = run(
            model,
            (width, 1.0),
            [1.0],
            clients=[client],
            distillation=distillation,
            local_steps=1,
        )
        expected_loss, expected = torch_step(
            model, client, width, alpha, temperature, teacher_learns
        )
        assert metrics["loss"][0] == pytest.approx(expected_loss, rel=1e-5)
        close(state.delta, expected, rtol=1e-4, atol=1e-5)


def torch_step(model, client, width, alpha, temperature, teacher_learns):
    p = {
        name: torch.tensor(value, requires_grad=True)
        for name, value in model.delta.items()
    }
    x, y = torch.tensor(client["x"]), torch.tensor(client["y"]).long()

    def logits(p):
        return (
            torch.relu(torch.relu(x @ p["w1"] + p["b1"]) @ p["w2"]) @ p["out"]
            + p["bias"]
        )

    at = where(model.prefixes, width)
    wide, narrow = (
        logits(p),
        logits({name: p[name][tuple(map(torch.tensor, at[name]))] for name in p}),
    )
    cross_entropy = torch.nn.functional.cross_entropy
    divergence = torch.nn.functional.kl_div(
        torch.log_softmax(narrow / temperature, 1),
        torch.softmax(wide.detach() / temperature, 1),
        reduction="batchmean",
    )
    loss = (1 - alpha) * cross_entropy(narrow, y) + alpha * divergence
    loss = loss + cross_entropy(wide, y) if teacher_learns else loss
    loss.backward()
    return loss.item(), {
        name: (w - RATE * w.grad).detach().numpy() for name, w in p.items()
    }


def test_distillation_without_weight_is_none():
    model = mlp()

    def logits(delta, backbone, batch, key):
        return model.logits(delta, batch, 1.0)

    how = {"clients": model.clients((5,)), "local_steps": 8}
    idle, _ = run(
        model,
        (0.5, 1.0),
        [1.0],
        distillation=Distillation(logits=logits, alpha=0.0, teacher_learns=False),
        **how,
    )
    plain, _ = run(model, (0.5, 1.0), [1.0], **how)
    close(idle.delta, plain.delta)


def test_settings_that_make_no_sense_are_errors():
    model = mlp()

    def make(widths, caps, **how):
        return fjord(
            ffm.Task(model.loss),
            optax.sgd(0.1),
            model.prefixes,
            widths,
            caps,
            **(HOW | how),
        )

    with pytest.raises(
        ValueError,
        match=r"every cap to be one of widths=\(0.5, 1.0\), got caps of \[0.25, 0.7\]",
    ):
        make((0.5, 1.0), [0.7, 0.25, 1.0])
    with pytest.raises(ValueError, match="expected 0 < width <= 1, got width=2"):
        make((0.5, 2.0), [0.5])
    for how, message in (
        ({"alpha": 1.5}, "expected 0 <= alpha <= 1, got alpha=1.5"),
        ({"temperature": 0.0}, "expected temperature > 0, got temperature=0.0"),
        ({"teacher_learns": False}, "no model would see a label"),
    ):
        with pytest.raises(ValueError, match=message):
            make(
                (0.5, 1.0),
                [0.5],
                distillation=Distillation(logits=lambda *rest: None, **how),
            )
