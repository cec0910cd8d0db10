"""Seconds of HeteroFL's clients by width, on a causal transformer.

    python -m fedjax_fm.experiments.bench.widths [--layers 4] [--d 512] [--rounds 7]

All widths live in one compiled program. Its cohorts are of one width each, in turn, so
that the widths meet the same machine; every fourth cohort has no examples and shows
what a round costs without clients. One JSON line for each width: `seconds` a client
(median over rounds of a round's time by the size of the cohort), `ratio` to the widest.
Weights and tokens are random: what is measured is the engine.
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm.algorithms.heterofl import heterofl
from fedjax_fm.algorithms.nested import Groups, Prefixes, kept, nest
from fedjax_fm.population import samplers

WIDTHS = (1.0, 0.5, 0.25)


def start(
    d: int, n_layers: int, vocabulary: int, length: int, seed: int = 0
) -> dict[str, Any]:
    """Random weights of a pre-norm transformer with stacked layers and an untied head.

    Args:
      d: width.
      n_layers: how many layers.
      vocabulary: tokens.
      length: positions.
      seed: of the weights.
    """
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(0, shape[-2] ** -0.5, shape).astype(np.float32)

    def norm(*front):
        return {
            "gain": np.ones((*front, d), np.float32),
            "bias": np.zeros((*front, d), np.float32),
        }

    return {
        "tokens": draw(vocabulary, d),
        "places": draw(length, d),
        "layers": {
            **{name: draw(n_layers, d, d) for name in "qkvo"},
            "widen": draw(n_layers, d, 4 * d),
            "narrow": draw(n_layers, 4 * d, d),
            "norm_1": norm(n_layers),
            "norm_2": norm(n_layers),
        },
        "norm": norm(),
        "head": draw(d, vocabulary),
    }


def prefixes_of(delta: Any, n_heads: int) -> Prefixes:
    """The parts of the model that narrower clients have.

    All widths but the vocabulary and the length get narrower; queries, keys and values
    in each head.

    Args:
      delta: weights of the model.
      n_heads: attention heads.
    """
    heads = Groups(n_heads)
    return nest(
        delta,
        {
            r"^(tokens|places)$": (None, "width"),
            r"layers\.[qkv]$": (None, "width", heads),
            r"layers\.o$": (None, heads, "width"),
            r"layers\.(widen|narrow)": (None, "width", "width"),
            r"layers\.norm": (None, "width"),
            r"^norm": ("width",),
            r"^head": ("width", "labels"),
        },
    )


def transformer(
    delta: Any, ids: jax.Array, n_heads: int, width: float = 1.0
) -> jax.Array:
    """Logits of next tokens; every width is read from the arrays.

    Args:
      delta: weights.
      ids: i32[B, T].
      n_heads: attention heads.
      width: of a full tree whose tails are zeros: layer norms and attention then divide
        by the sizes that are live.

    Returns:
      f32[B, T, vocabulary].
    """

    def norm(x, parts):
        live = kept(x.shape[-1], width)
        centred = x - jnp.sum(x, -1, keepdims=True) / live
        if live < x.shape[-1]:
            centred = jnp.where(jnp.arange(x.shape[-1])[None, None] < live, centred, 0)
        scale = jax.lax.rsqrt(jnp.sum(centred**2, -1, keepdims=True) / live + 1e-5)
        return centred * scale * parts["gain"][None, None] + parts["bias"][None, None]

    def layer(x, parts):
        y = norm(x, parts["norm_1"])

        def heads(name):
            return (y @ parts[name]).reshape(*x.shape[:2], n_heads, -1)

        query = heads("q")
        attended = jax.nn.dot_product_attention(
            query,
            heads("k"),
            heads("v"),
            scale=kept(query.shape[-1], width) ** -0.5,
            is_causal=True,
        )
        x = x + attended.reshape(*x.shape[:2], -1) @ parts["o"]
        wide = jax.nn.gelu(norm(x, parts["norm_2"]) @ parts["widen"])
        return x + wide @ parts["narrow"], None

    x = delta["tokens"][ids] + delta["places"][None, : ids.shape[1]]
    x, _ = jax.lax.scan(layer, x, delta["layers"])
    return norm(x, delta["norm"]) @ delta["head"]


def next_token_loss(n_heads: int):
    """The loss of a task: mean cross-entropy of each row's next tokens.

    Args:
      n_heads: attention heads.
    """

    def loss(delta, backbone, batch, key):
        ids = batch["ids"]
        logits = transformer(delta, ids[:, :-1], n_heads)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
        return each.mean(axis=-1), {}

    return loss


def measure(
    d: int,
    n_layers: int,
    rounds: int,
    *,
    n_heads: int = 8,
    vocabulary: int = 1024,
    length: int = 32,
    batch: int = 4,
    steps: int = 8,
    cohort: int = 4,
) -> Iterator[dict[str, Any]]:
    """One row for each width, widest first, and one for rounds without clients.

    Args:
      d: width of the model.
      n_layers: of the model.
      rounds: of each width, after one that compiles.
      n_heads: attention heads.
      vocabulary: tokens.
      length: of a text.
      batch: texts of a client, all of which are one batch.
      steps: local steps.
      cohort: clients of a round.
    """
    delta = start(d, n_layers, vocabulary, length)
    prefixes = prefixes_of(delta, n_heads)

    def tokens(n):
        random = np.random.default_rng(n)
        ids = random.integers(0, vocabulary, (n, length + 1))
        return {"ids": ids.astype(np.int32)}

    clients = [tokens(batch) for _ in range(cohort * len(WIDTHS))]
    clients += [tokens(0) for _ in range(cohort)]
    rates = np.repeat([*WIDTHS, WIDTHS[-1]], cohort)
    algorithm = heterofl(
        ffm.Task(next_token_loss(n_heads)),
        optax.sgd(0.01),
        prefixes,
        rates,
        local_steps=steps,
        batch_size=batch,
    )
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(clients),
        cohort_size=cohort,
        sampler=samplers.cyclic(len(clients), cohort),
    )
    state = simulator.init(delta)
    kinds = len(WIDTHS) + 1
    seconds, sent = [[] for _ in range(kinds)], [0] * kinds
    for i in range(kinds * (rounds + 1)):
        started = time.perf_counter()
        state, metrics = simulator.run(state, 1)
        jax.block_until_ready(state.delta)
        spent = time.perf_counter() - started
        seconds[i % kinds].append(spent)
        sent[i % kinds] = int(metrics["uplink_bytes"][0])
    # The first rounds compile.
    medians = [float(np.median(times[1:])) for times in seconds]
    shape = {
        "d": d,
        "layers": n_layers,
        "cohort": cohort,
        "steps": steps,
        "batch": batch,
        "tokens": length,
    }
    for width, median, up in zip(WIDTHS, medians, sent, strict=False):
        yield {
            "name": f"width-{width:g}",
            "seconds": median / cohort,
            "ratio": median / medians[0],
            "uplink_bytes": up // cohort,
            "devices": simulator.engine.plan.n_devices,
            **shape,
        }
    yield {"name": "nobody", "seconds_a_round": medians[-1]}


def main() -> None:
    """Prints JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for row in measure(options.d, options.layers, options.rounds):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
