"""FADA on small linear features, and its rounds as a plain loop over clients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_fm.algorithms import fada, fada_networks

FEATURES, CLASSES, TARGET = 4, 3, 0
RATE, IDENTIFIER_RATE, STEPS, BATCH = 0.1, 0.3, 2, 6
STRENGTHS = {
    "alignment": 0.7, "confusion": 0.4, "separation": 0.3, "reconstruction": 0.2,
}  # fmt: skip


def _extract(w, backbone, batch, key):
    return jnp.tanh(batch["x"] @ (backbone + w))


def networks():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(5, FEATURES)), jnp.float32)
    sizes = {"features": FEATURES, "classes": CLASSES, "width": 8}
    return fada_networks(_extract, w, jax.random.key(1), **sizes)


def backbone():
    rng = np.random.default_rng(1)
    return jnp.asarray(0.3 * rng.normal(size=(5, FEATURES)), jnp.float32)


def clients(sizes, shift=0.5):
    """Of different domains: every client's inputs are moved by its own vector."""
    found = []
    for k, n in enumerate(sizes):
        rng = np.random.default_rng(10 + k)
        x = rng.normal(size=(n, 5)) + shift * rng.normal(size=5)
        label = rng.integers(0, CLASSES, n)
        found.append({"x": x.astype(np.float32), "label": label.astype(np.int32)})
    return found


def method(**how):
    given = {
        "target": TARGET, "clusters": CLASSES, "local_steps": STEPS, "batch_size": BATCH,
        **STRENGTHS,
    }  # fmt: skip
    sgd = optax.sgd(RATE), optax.sgd(IDENTIFIER_RATE)
    return fada(networks()[0], *sgd, **{**given, **how})


# The plain loop. Losses are written as the paper has them, over whole clients.


def _linear(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def _narrow(layers, x):
    return _linear(layers["out"], jax.nn.relu(_linear(layers["hidden"], x)))[..., 0]


def _features(extractor, client):
    return _extract(extractor, backbone(), client, None)


def _both(parts, client):
    f = _features(parts["extractor"], client)
    pair = parts["disentangler"]
    return f, *(jax.nn.relu(_linear(pair[name], f)) for name in ("shared", "own"))


def _log_likelihood(logits, labels):
    p = jnp.exp(logits) / jnp.exp(logits).sum(axis=1, keepdims=True)
    return jnp.log(p[jnp.arange(len(labels)), labels]).mean()


def _probability(identifier, f):
    return 1 / (1 + jnp.exp(-_narrow(identifier, f)))


def telling(identifier, source, target):
    from_source = jnp.log(_probability(identifier, source)).mean()
    from_target = jnp.log(1 - _probability(identifier, target)).mean()
    return -from_source - from_target


def confusing(identifier, source, target):
    from_source = jnp.log(1 - _probability(identifier, source)).mean()
    from_target = jnp.log(_probability(identifier, target)).mean()
    return -from_source - from_target


def information(estimator, shared, own):
    together, apart = [], []
    for i in range(len(shared)):
        for j in range(len(own)):
            score = _narrow(estimator, jnp.concatenate([shared[i], own[j]]))
            apart.append(jnp.exp(score))
            if i == j:
                together.append(score)
    return jnp.stack(together).mean() - jnp.log(jnp.stack(apart).mean())


def _down(tree, slope, rate):
    return jax.tree.map(lambda w, g: w - rate * g, tree, slope)


def _classes(own, client):
    _, shared, apart = _both(own, client)
    found = _log_likelihood(_linear(own["classifier"], shared), client["label"])
    beside = _linear(own["class_identifier"], apart)
    return -found - _log_likelihood(beside, client["label"])


def _minus_entropy(own, identifier, client, strength):
    _, _, apart = _both(own, client)
    logits = _linear(identifier, apart)
    p = jnp.exp(logits) / jnp.exp(logits).sum(axis=1, keepdims=True)
    return strength * (p * jnp.log(p)).sum(axis=1).mean()


def _apart(own, extractor, client, strengths):
    """(mutual information, reconstruction), each times its strength."""
    f, shared, apart = _both({**own, "extractor": extractor}, client)
    bound = information(own["estimator"], shared, apart)
    rebuilt = _linear(own["rebuilder"], jnp.concatenate([shared, apart], axis=1))
    distance = ((rebuilt - f) ** 2).mean()
    return strengths["separation"] * bound, strengths["reconstruction"] * distance


def source_step(parts, client, strengths):
    """The three updates of a source that need nobody else."""
    names = ("extractor", "disentangler", "classifier", "class_identifier")
    own = {name: parts[name] for name in names}
    parts = {**parts, **_down(own, jax.grad(_classes)(own, client), RATE)}
    own = {name: parts[name] for name in names[:2]}
    fixed = parts["class_identifier"]
    slope = jax.grad(_minus_entropy)(own, fixed, client, strengths["confusion"])
    parts = {**parts, **_down(own, slope, RATE)}
    own = {name: parts[name] for name in ("disentangler", "estimator", "rebuilder")}

    def one_of(number):
        def loss(own):
            return _apart(own, parts["extractor"], client, strengths)[number]

        return jax.grad(loss)(own)

    bound, distance = one_of(0), one_of(1)
    bound["estimator"] = jax.tree.map(lambda x: -x, bound["estimator"])
    slope = jax.tree.map(lambda a, b: a + b, bound, distance)
    return {**parts, **_down(own, slope, RATE)}


def spread(features, clusters, steps=10):
    """Mean square distance to the centres of a loop of Lloyd's."""
    rows = np.asarray(features, np.float64)
    centres = [rows[0]]
    while len(centres) < clusters:
        nearest = [min(np.sum((row - c) ** 2) for c in centres) for row in rows]
        centres.append(rows[int(np.argmax(nearest))])
    for _ in range(steps):
        own = [int(np.argmin([np.sum((r - c) ** 2) for c in centres])) for r in rows]
        for r in range(clusters):
            members = [row for row, place in zip(rows, own, strict=True) if place == r]
            centres[r] = np.mean(members, axis=0) if members else centres[r]
    return np.mean([min(np.sum((r - c) ** 2) for c in centres) for r in rows])


def rounds(population, n_rounds, strengths, steps=STEPS, begin="own"):
    """(the target's delta, the sources' parts, alpha of the last round)."""
    _, delta = networks()
    names = [name for name in delta if name != "domain_identifier"]
    parts = [{name: delta[name] for name in names} for _ in population]
    identifiers = [delta["domain_identifier"]] * len(population)
    target, others = population[TARGET], range(1, len(population))
    sent = ("extractor", "disentangler", "classifier")
    for _ in range(n_rounds):
        if begin == "target":
            parts = [{**own, **{name: delta[name] for name in sent}} for own in parts]
        start = [dict(own) for own in parts]
        g = delta["extractor"]
        for _ in range(steps):
            seen = [
                _features(p["extractor"], c)
                for p, c in zip(parts, population, strict=True)
            ]
            of_target = _features(g, target)
            slope_of_target = jnp.zeros_like(of_target)
            for k in others:
                slope = jax.grad(telling)(identifiers[k], seen[k], of_target)
                identifiers[k] = _down(identifiers[k], slope, IDENTIFIER_RATE)
                both = jax.grad(confusing, (1, 2))(identifiers[k], seen[k], of_target)
                slope_of_target += strengths["alignment"] * both[1]
                own = parts[k]["extractor"]
                _, pull = jax.vjp(lambda w, k=k: _features(w, population[k]), own)
                (slope,) = pull(strengths["alignment"] * both[0])
                aligned = {**parts[k], "extractor": own - RATE * slope}
                parts[k] = source_step(aligned, population[k], strengths)
            _, pull = jax.vjp(lambda w: _features(w, target), g)
            g = g - RATE * pull(slope_of_target)[0]
        changes = {
            k: {n: jax.tree.map(jnp.subtract, parts[k][n], start[k][n]) for n in sent}
            for k in others
        }
        before = spread(_features(g, target), CLASSES)
        gains = np.array([
            before - spread(_features(g + changes[k]["extractor"], target), CLASSES)
            for k in others
        ])  # fmt: skip
        alpha = np.exp(gains) / np.exp(gains).sum()
        delta = {**delta, "extractor": g}
        for share, k in zip(alpha, others, strict=True):
            for name in sent:
                delta[name] = jax.tree.map(
                    lambda w, u, share=share: w + share * u,
                    delta[name],
                    changes[k][name],
                )
    return delta, parts, alpha
