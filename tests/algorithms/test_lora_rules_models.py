"""Rules that need a start or adapters of their own, on models as `peft.apply` makes them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft, tasks
from fedjax_fm.algorithms import lora_rules

HOW = {"local_steps": 4, "batch_size": 12}
ALPHA, RANK = 4.0, 2


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 8, rngs=rngs)
        self.score = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.score(jnp.tanh(self.first(x)))


def client(seed, kind):
    """Labels by one of two rules, as tasks of two kinds have them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, 8)).astype(np.float32)
    rule = np.random.default_rng(100 + kind).normal(size=(8, 3))
    return {"x": x, "label": np.argmax(x @ rule, axis=1).astype(np.int32)}


KINDS = (0, 1, 0, 1)
CLIENTS = [client(k, kind) for k, kind in enumerate(KINDS)]


def adapted_by(method):
    return peft.apply(Net(nnx.Rngs(0)), method, jax.random.key(1))


def simulator(algorithm, backbone):
    population = ffm.Population.from_clients(CLIENTS)
    how = {"backbone": backbone, "cohort_size": 4, "devices": 1}
    return ffm.Simulator(algorithm, population, **how)


def falls(algorithm, delta, backbone):
    one = simulator(algorithm, backbone)
    state, metrics = one.run(one.init(delta), 10)
    assert metrics["loss"][-1] < 0.9 * metrics["loss"][0]
    return one, state


def logits(adapted, delta, backbone):
    return adapted.model(delta, backbone)(CLIENTS[0]["x"])


def test_frlora_from_the_principal_start():
    adapted = adapted_by(peft.lora(RANK, ALPHA, targets=["first"]))
    given = adapted.delta, adapted.backbone
    delta, backbone = lora_rules.principal_start(*given, scaling=ALPHA / RANK)
    before, after = logits(adapted, *given), logits(adapted, delta, backbone)
    np.testing.assert_allclose(after, before, atol=1e-5)
    task = tasks.classification(adapted)
    method = lora_rules.frlora(task, optax.sgd(0.1), scaling=ALPHA / RANK, **HOW)
    falls(method, delta, backbone)


def test_ravan():
    adapted = adapted_by(peft.ravan(RANK, heads=3, targets=["first"]))
    method = lora_rules.ravan(tasks.classification(adapted), optax.sgd(0.3), **HOW)
    falls(method, adapted.delta, adapted.backbone)


def test_slora():
    adapted = adapted_by(peft.lora(RANK, ALPHA, targets=["first"]))
    how = {"scaling": ALPHA / RANK, "sparse_rounds": 4, "density": 0.3, **HOW}
    method = lora_rules.slora(tasks.classification(adapted), optax.sgd(0.1), **how)
    falls(method, adapted.delta, adapted.backbone)


def test_fedlease_from_the_warm_up_to_the_clients_models():
    """Clients train alone, are clustered by what they learnt, and go on with experts."""
    lora = adapted_by(peft.lora(RANK, ALPHA, targets=["first"]))
    alone = ffm.algorithms.local_only(tasks.classification(lora), optax.sgd(0.3), **HOW)
    warm = simulator(alone, lora.backbone)
    state, _ = warm.run(warm.init(lora.delta), 20)
    deltas = [warm.model(state, k)[0] for k in range(4)]
    clusters = lora_rules.cluster_adapters(deltas, most=3)
    assert clusters.labels.tolist() == list(KINDS)

    adapted = adapted_by(peft.lora_experts(RANK, ALPHA, experts=2, targets=["first"]))
    start = lora_rules.expert_start(adapted.delta, deltas, clusters.labels)
    task = tasks.classification(adapted)
    how = {"labels": clusters.labels, **HOW}
    one, state = falls(
        lora_rules.fedlease(task, optax.sgd(0.3), **how), start, adapted.backbone
    )
    scores = [
        ffm.evaluate(task, *one.model(state, k), CLIENTS[k])["loss"].mean()
        for k in range(4)
    ]
    crossed = [
        ffm.evaluate(task, *one.model(state, 1 - k), CLIENTS[k])["loss"].mean()
        for k in (0, 1)
    ]
    assert max(scores[:2]) < min(crossed)  # another cluster's view is worse
