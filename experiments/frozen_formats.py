"""How close LoRA over a bf16, int8 or NF4 backbone stays to LoRA over an f32 one.

    python -m fedjax_fm.experiments.frozen_formats      (three seeds; about 15 minutes of CPU time)

MiniLM (22.7 million weights, its real ones), LoRA of rank 8 on query and value, FedAvg with the clients' Adam at 5e-3 (the
quickstart's rate without compression), the quickstart's sentences and clients: 5 of 64 a round, 4 steps of 8 sentences, 10
rounds; 768 sentences of the test set. Everything but the format of the frozen weights is the same by seed: head, factors,
cohorts, batches. bf16 is weights and activations; the other formats hold the layers' matrices, while embeddings, norms,
biases and pooler are f32 (or bf16 where said), and activations too. Distance of a round: |loss - loss of f32| / loss of f32,
loss as the clients saw it while they trained.

Found (seeds 0 to 2; 95 % intervals over paired seeds, up to +- 2 points):

| frozen weights | bytes | of f32 | loss curve: largest, mean, last | test loss | test accuracy | against f32, points |
|---|---|---|---|---|---|---|
| f32 | 90,852,864 | 1 | | 0.481 | 77.0 % | |
| bf16 | 45,426,432 | 0.50 | 2.9 %, 0.4 %, 1.2 % | 0.477 | 77.3 % | +0.26 [-0.71, +1.23], no difference seen |
| int8 | 59,665,920 | 0.66 | 1.1 %, 0.3 %, 0.6 % | 0.481 | 77.0 % | +0.04 [-0.14, +0.23], no difference seen |
| NF4 | 54,357,504 | 0.60 | 9.3 %, 2.2 %, 3.4 % | 0.485 | 76.2 % | -0.82 [-2.77, +1.13], no difference seen |
| NF4 double, rest bf16 | 29,669,808 | 0.33 | 12.3 %, 2.1 %, 2.3 % | 0.483 | 76.2 % | -0.82 [-1.81, +0.16], no difference seen |

Half of MiniLM is its embedding, which no format but bf16 touches: the matrices alone, 42.5 MB in f32, take 11.3 MB in int8,
6.0 in NF4 and 5.5 with double quantisation. Over a larger decoder the whole backbone shrinks to a fifth:

SmolLM2-135M-Instruct, one forward pass over 16 speeches of Shakespeare and 16 sentences of the reviews, nats a token. Its
weights come from a file in Q4_1 blocks, so that "f32" has lost what 5 bits lose already, and NF4 rounds a second time.

| frozen weights | bytes | of f32 | Shakespeare | sentences |
|---|---|---|---|---|
| f32 | 538,060,032 | 1 | 4.817 | 5.252 |
| bf16 | 269,030,016 | 0.50 | 4.816 | 5.268 |
| int8 | 226,190,592 | 0.42 | 4.806 | 5.258 |
| NF4 | 173,106,432 | 0.32 | 5.169 | 5.567 |
| NF4 double, rest bf16 | 111,463,416 | 0.21 | 5.161 | 5.582 |

NF4 costs this small model 0.35 and 0.32 nats a token before any training; the first round over MiniLM is within 0.4 % of the
loss of f32.
"""

import argparse
import itertools
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import datasets, models, peft, tasks
from fedjax_fm.evaluation import holm, paired_seeds
from fedjax_fm.experiments import quickstart
from fedjax_fm.trees import nbytes

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
# name -> (dtype, frozen), the arguments of from_pretrained.
FORMATS = {
    "f32": ("float32", "dense"),
    "bf16": ("bfloat16", "dense"),
    "int8": ("float32", "int8"),
    "NF4": ("float32", "nf4"),
    "NF4 double, rest bf16": ("bfloat16", "nf4_double"),
}
RATE, TEST_ROWS = 5e-3, 768


def over(config: quickstart.Config, data: quickstart.Data, seed: int, dtype: str, frozen: str) -> quickstart.Data:
    """The same clients over a backbone of another format."""
    model = models.from_pretrained(config.model, num_labels=2, pooling="mean", seed=seed, dtype=dtype, frozen=frozen)
    method = peft.lora(config.rank, 2.0 * config.rank, targets=config.targets)
    adapted = peft.apply(model, method, jax.random.key(seed))
    return data._replace(adapted=adapted, task=tasks.classification(adapted))


def run(config: quickstart.Config, data: quickstart.Data, seed: int) -> dict[str, Any]:
    """One federated run."""
    started, adapted = time.perf_counter(), data.adapted
    frozen = jax.tree.map(np.array, adapted.backbone)
    algorithm = ffm.fedavg(data.task, optax.adam(RATE), local_steps=config.local_steps, batch_size=config.batch_size)
    simulator = ffm.Simulator(
        algorithm, ffm.Population.from_clients(data.train), backbone=adapted.backbone,
        cohort_size=config.cohort, seed=seed,
    )  # fmt: skip
    state, metrics = simulator.run(simulator.init(adapted.delta), config.rounds)
    if not jax.tree.all(jax.tree.map(np.array_equal, frozen, simulator.backbone)):
        raise AssertionError("frozen weights have moved")
    scores = ffm.evaluate(data.task, *simulator.model(state), data.test, batch_size=16)
    return {
        "loss": metrics["loss"].tolist(),
        "accuracy": float(scores["accuracy"].mean()),
        "test loss": float(scores["loss"].mean()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def language_model(n_rows: int = 16, length: int = 64) -> None:
    """Prints SmolLM2's bytes and losses under each format."""
    tokenizer = models.load_chat(SMOLLM2).tokenizer
    texts = {
        "Shakespeare": [str(text) for text in datasets.load_shakespeare()["speech"]],
        "sentences": [str(text) for text in datasets.load_sentiment()["text"]],
    }
    rows = {}
    for name, lines in texts.items():
        order = np.random.default_rng(0).permutation(len(lines))
        ids = (tokenizer.encode(lines[i]).ids[:length] for i in order)
        rows[name] = list(itertools.islice((row for row in ids if len(row) >= 16), n_rows))
    for name, (dtype, frozen) in FORMATS.items():
        model: Any = models.from_pretrained(SMOLLM2, dtype=dtype, frozen=frozen)
        graphdef, state = nnx.split(model)

        @jax.jit
        def score(state, input_ids, attention_mask, graphdef=graphdef):
            losses, real = models.next_token_losses(nnx.merge(graphdef, state), input_ids, attention_mask)
            return jnp.sum(jnp.where(real, losses, 0.0)) / jnp.sum(real)

        row = {"SmolLM2": name, "bytes": nbytes(state)}
        for text, tokens in rows.items():
            row[f"loss on {text}"] = round(float(score(state, **models.pad_prompts(tokens, 0, length))), 4)
        print(json.dumps(row), flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    language_model()
    config = quickstart.Config(rounds=options.rounds, cohort=5, most_test=TEST_ROWS)
    rows: dict[str, list[dict]] = {name: [] for name in FORMATS}
    for seed in range(options.seeds):
        data = quickstart.data(config, seed, "final")
        for name, (dtype, frozen) in FORMATS.items():
            arm = over(config, data, seed, dtype, frozen)
            rows[name].append(run(config, arm, seed))
            print(
                json.dumps({"arm": name, "seed": seed, "bytes": nbytes(arm.adapted.backbone), **rows[name][-1]}),
                flush=True,
            )
    pairs = {
        name: paired_seeds(*(np.array([row["accuracy"] for row in rows[n]]) for n in (name, "f32")))
        for name in FORMATS
        if name != "f32"
    }
    compared = holm(pairs)
    for name in FORMATS:
        loss, reference = (np.array([row["loss"] for row in rows[n]]) for n in (name, "f32"))
        distance = np.abs(loss - reference) / reference
        accuracy = np.array([row["accuracy"] for row in rows[name]])
        against = f"; against f32: {compared[name]}" if name in compared else ""
        print(
            f"{name}: distance of the loss: largest {distance.max():.2%}, mean {distance.mean():.2%}, last round "
            f"{distance[:, -1].mean():.2%}; test loss {np.mean([row['test loss'] for row in rows[name]]):.4f}; "
            f"accuracy {accuracy.mean():.4f}{against}"
        )


if __name__ == "__main__":
    main()
