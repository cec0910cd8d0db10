"""FedBERT on Shakespeare: what does split learning lose against one model on all texts, and what does it gain over none?

    python -m fedjax_fm.experiments.fedbert            (three seeds; 11 minutes of CPU time on a busy machine)
    python -m fedjax_fm.experiments.fedbert --tune     (learning rates, on validation speeches and a seed used for nothing else)

The eight roles that speak most (Hamlet, Iago, Henry V, ...), a client each; a fifth of each role's speeches is held out. A
WordPiece vocabulary of 1000, made of all other roles' text. BERT of 2 layers, d = 64, from random weights; rows of 32 tokens;
Adam with warm-up and cosine decay. Every arm reads as many rows, 19,200, six passes: 600 steps of 8 clients with 4 rows each, in
60 rounds; in turn, 120 turns of 10 steps with 16 rows. Seeds change held-out speeches, initial weights, batches and masks.
Rates: 2e-3, for clients in turn 1e-3. Of 1e-3 and 2e-3, tried with 800 steps on validation speeches, 2e-3 was better for
centralised training (302 against 326); rates of the other arms were not tuned (parallel at 1e-3, with 800 steps: 348). Sizes,
steps and the number of roles (16, then 8) were chosen on those speeches too; nothing was changed after the test figures.

Found (perplexity of masked tokens on held-out speeches of all roles, seeds 0, 1, 2; mean and 95 % interval):

| arm | seed 0 | seed 1 | seed 2 | mean |
|---|---|---|---|---|
| word frequencies of all roles | 360.3 | 363.3 | 356.1 | 359.9 +- 9.0 |
| centralised | 335.1 | 349.5 | 325.4 | 336.7 +- 30.2 |
| FedBERT, parallel | 335.0 | 363.9 | 343.6 | 347.5 +- 36.8 |
| FedBERT, in turn | 331.5 | 352.8 | 330.8 | 338.4 +- 31.1 |
| local only, each role on its own speeches | 374.6 | 396.3 | 360.4 | 377.1 +- 44.9 |
| the same, a quarter of the steps | 416.0 | 433.0 | 400.6 | 416.5 +- 40.3 |
| local only, each role on everybody's | 422.1 | 445.0 | 418.9 | 428.7 +- 35.3 |
| control: parallel, words shuffled inside each role | 347.6 | 363.4 | 347.3 | 352.8 +- 23.0 |

Ratios of perplexity, paired by seed: parallel against local 0.922 [0.851, 0.998], against centralised 1.032 [0.962, 1.107]; in
turn against local 0.898 [0.855, 0.942], against centralised 1.005 [0.970, 1.041], against parallel 0.974 [0.940, 1.009]. Each
interval is that of its comparison alone; corrected by Holm for the thirteen of the command, no difference is seen. Means lie
between local and centralised training.

- Parallel: 452 MB up and as many down, 0.94 MB a client and round, 70 % of it what passes the cuts. In turn: 349 MB, as client
  parts travel less often.
- All this is the beginning of pre-training: no arm is far below word frequencies, and parallel FedBERT is not reliably below
  them (0.965 [0.880, 1.058]), nor below its control, which never trained on a word in its context (0.985 [0.938, 1.033]):
  what it may have over local training at this size is mostly word frequencies of more text. In turn, with twice as many
  updates of the body, its interval lies below the control (0.959 [0.934, 0.985]).
- Local models are worse than everybody's word frequencies, with a quarter of the steps still more: undertrained, not overfitted.
"""

import argparse
import collections
import functools
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import fedjax_fm as ffm
from fedjax_fm.algorithms import local_only
from fedjax_fm.algorithms.fedbert import fedbert
from fedjax_fm.evaluation import holm, paired_seeds, plus_minus
from fedjax_fm.models import BertConfig
from fedjax_fm.models.masked_lm import bert_split
from fedjax_fm.population import samplers
from fedjax_fm.runs.terminal import never_fails
from fedjax_fm.split import Split, unsplit
from fedjax_fm.types import Tree

CLIENTS, LENGTH, VOCABULARY = 8, 32, 1000
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONFIG = BertConfig(
    vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
    max_position_embeddings=LENGTH, hidden_act="gelu_new",
)  # fmt: skip
STEPS, TURN = 10, 10  # of a round in parallel, of a client's turn
BATCH, TURN_BATCH = 4, 16  # rows a client and step
DRAWS, HELD_OUT, TUNING_SEED = 3, 0.2, 1000
PARALLEL_RATE, SEQUENTIAL_RATE, LOCAL_RATE = 2e-3, 1e-3, 2e-3


class Role(NamedTuple):
    """A client's rows {"input_ids", "attention_mask"} i32[n, LENGTH]."""

    train: dict
    test: dict


@functools.cache
def texts() -> tuple[dict[str, list[str]], Tokenizer]:
    """(speeches of the roles that speak most, a WordPiece tokenizer of all other roles' speeches)."""
    table = ffm.datasets.load_shakespeare()
    speeches = collections.defaultdict(list)
    for client, speech in zip(table["client"], table["speech"], strict=True):
        speeches[str(client)].append(str(speech))
    by_size = sorted(speeches, key=lambda name: -sum(len(speech.split()) for speech in speeches[name]))
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator((text for name in by_size[CLIENTS:] for text in speeches[name]), trainer)
    return {name: speeches[name] for name in by_size[:CLIENTS]}, tokenizer


def rows(speeches: list[str]) -> dict[str, np.ndarray]:
    """Each speech by itself: [CLS], at most LENGTH - 1 tokens a row."""
    tokenizer, pieces = texts()[1], []
    for encoding in tokenizer.encode_batch(speeches):
        pieces += [encoding.ids[i : i + LENGTH - 1] for i in range(0, len(encoding.ids), LENGTH - 1)]
    ids = np.zeros((len(pieces), LENGTH), np.int32)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece) + 1] = [SPECIAL.index("[CLS]"), *piece]
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int32)}


def deal(seed: int, validation: bool = False) -> list[Role]:
    """Whole speeches are held out; for tuning, speeches that are training data otherwise."""
    found = []
    for number, speeches in enumerate(texts()[0].values()):
        order = np.random.default_rng([seed, number]).permutation(len(speeches))
        n = round(HELD_OUT * len(order))
        test, train = (order[n : 2 * n], order[2 * n :]) if validation else (order[:n], order[n:])
        found.append(Role(*(rows([speeches[i] for i in some]) for some in (train, test))))
    return found


def pooled(parts: list[dict]) -> dict:
    """All rows in one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def shuffled(part: dict, rng: np.random.Generator) -> dict:
    """The same words, dealt anew to the places of all rows: contexts say nothing."""
    ids = part["input_ids"].copy()
    words = ids >= len(SPECIAL)
    ids[words] = rng.permutation(ids[words])
    return {**part, "input_ids": ids}


def adam(rate: float, steps: int) -> optax.GradientTransformation:
    """A tenth of the steps of warm-up, then a cosine to zero."""
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps))


# Scores ---------------------------------------------------------------------------------------------------------------


@functools.cache
def model(seed: int) -> tuple[Split, dict]:
    """(split, random initial delta)."""
    return bert_split(CONFIG, LENGTH, mask_id=SPECIAL.index("[MASK]"), words=(len(SPECIAL), VOCABULARY), seed=seed)


@functools.cache
def scorer() -> Callable:
    """`(delta, rows, key) -> (nats, tokens)` under the masks of the key."""
    task = unsplit(model(0)[0])

    def scored(delta, part, key):
        weights = task.weight(part)  # type: ignore[misc]
        return jnp.sum(task.loss(delta, (), part, key)[0] * weights), jnp.sum(weights)

    return jax.jit(scored)


def perplexity(pairs: list[tuple[Tree, dict]]) -> float:
    """Of masked tokens, over all (model, rows): exp(nats / tokens)."""
    found = [scorer()(delta, part, jax.random.key(draw)) for delta, part in pairs for draw in range(DRAWS)]
    nats, tokens = (sum(map(float, column)) for column in zip(*found, strict=True))
    return math.exp(nats / tokens)


def unigram(train: dict, test: dict) -> float:
    """Perplexity of word frequencies, one added to each count."""
    words = lambda part: part["input_ids"][part["input_ids"] >= len(SPECIAL)]
    counts = 1.0 + np.bincount(words(train), minlength=VOCABULARY)[len(SPECIAL) :]
    return math.exp(-np.mean(np.log(counts / counts.sum())[words(test) - len(SPECIAL)]))


# Arms -----------------------------------------------------------------------------------------------------------------


def simulate(algorithm, clients: list[dict], seed: int, rounds: int, **how):
    """(state, {"up": MB, "down": MB})."""
    options: dict[str, Any] = {"cohort_size": len(clients), "seed": seed, "devices": 1} | how
    simulator = ffm.Simulator(algorithm, ffm.Population.from_clients(clients), **options)
    state, metrics = simulator.run(simulator.init(model(seed)[1]), rounds)
    return state, {way: float(metrics[f"{way}link_bytes"].sum()) / 1e6 for way in ("up", "down")}


def centralised(seed: int, steps: int, roles: list[Role], rate: float) -> dict:
    """One model on all texts, as many rows a step as the clients have together."""
    task = unsplit(model(seed)[0])
    algorithm = ffm.fedavg(task, adam(rate, steps), local_steps=steps, batch_size=BATCH * len(roles))
    state, _ = simulate(algorithm, [pooled([role.train for role in roles])], seed, 1)
    return {"perplexity": perplexity([(state.delta, pooled([role.test for role in roles]))])}


def local(seed: int, steps: int, roles: list[Role], rate: float) -> dict:
    """Each role its own model, on its own held-out speeches and on everybody's."""
    algorithm = local_only(unsplit(model(seed)[0]), adam(rate, steps), local_steps=steps, batch_size=BATCH)
    state, _ = simulate(algorithm, [role.train for role in roles], seed, 1)
    mine = lambda k: jax.tree.map(lambda x: x[k], state.rounds.clients)
    everything = pooled([role.test for role in roles])
    return {
        "perplexity": perplexity([(mine(k), role.test) for k, role in enumerate(roles)]),
        "on all roles": perplexity([(mine(k), everything) for k in range(len(roles))]),
    }


def parallel(seed: int, steps: int, roles: list[Role], rate: float, control: bool = False) -> dict:
    """FedBERT, all roles side by side."""
    algorithm = fedbert(model(seed)[0], adam(rate, steps), adam(rate, steps), local_steps=STEPS, batch_size=BATCH)
    rng = np.random.default_rng(seed)
    clients = [shuffled(role.train, rng) if control else role.train for role in roles]
    state, megabytes = simulate(algorithm, clients, seed, steps // STEPS)
    return {"perplexity": perplexity([(state.delta, pooled([role.test for role in roles]))]), **megabytes}


def sequential(seed: int, steps: int, roles: list[Role], rate: float) -> dict:
    """FedBERT, the roles in turn, over as many rows in all."""
    turns = steps * BATCH * len(roles) // (TURN * TURN_BATCH)
    mine, body = adam(rate, turns * TURN // len(roles)), adam(rate, turns * TURN)
    algorithm = fedbert(model(seed)[0], mine, body, local_steps=TURN, batch_size=TURN_BATCH)
    clients, sampler = [role.train for role in roles], samplers.cyclic(len(roles), 1, shuffle=True)
    state, megabytes = simulate(algorithm, clients, seed, turns, cohort_size=1, sampler=sampler)
    return {"perplexity": perplexity([(state.delta, pooled([role.test for role in roles]))]), **megabytes}


ARMS: dict[str, Callable[[int, int, list[Role]], dict]] = {
    "centralised": functools.partial(centralised, rate=PARALLEL_RATE),
    "FedBERT, parallel": functools.partial(parallel, rate=PARALLEL_RATE),
    "FedBERT, sequential": functools.partial(sequential, rate=SEQUENTIAL_RATE),
    "local only": functools.partial(local, rate=LOCAL_RATE),
    "local only, a quarter of the steps": lambda seed, steps, roles: local(seed, steps // 4, roles, LOCAL_RATE),
    "control: parallel, words shuffled": functools.partial(parallel, rate=PARALLEL_RATE, control=True),
}


def tune(steps: int) -> None:
    """Prints perplexity on validation speeches by learning rate."""
    roles = deal(TUNING_SEED, validation=True)
    for run in (centralised, parallel, sequential, local):
        for rate in (1e-3, 2e-3):
            started = time.process_time()
            found = run(TUNING_SEED, steps, roles, rate)
            print(f"{run.__name__} {rate:g}: {found} {time.process_time() - started:.0f} s", flush=True)


def study(seeds: list[int], steps: int, arms: list[str]) -> dict[str, list[float]]:
    """{arm: perplexity by seed}; prints each run as JSON."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    for seed in seeds:
        roles = deal(seed)
        together = pooled([role.train for role in roles])
        everything = pooled([role.test for role in roles])
        row = {"arm": "word frequencies of all", "seed": seed, "perplexity": unigram(together, everything)}
        print(json.dumps(row), flush=True)
        found["word frequencies of all"].append(row["perplexity"])
        for name in arms:
            started = time.process_time()
            row = ARMS[name](seed, steps, roles)
            row |= {"cpu_seconds": round(time.process_time() - started, 1)}
            print(json.dumps({"arm": name, "seed": seed, **row}), flush=True)
            found[name].append(row["perplexity"])
            if "on all roles" in row:
                found[f"{name}, on all roles"].append(row["on all roles"])
    return found


def summary(found: dict[str, list[float]]) -> None:
    """Prints means with intervals over seeds, and ratios of perplexity against the two ends, paired."""
    logs = {name: np.log(values) for name, values in found.items()}
    for name, values in found.items():
        print(f"{name}: {plus_minus(values)}")
    pairs = {}
    for name, other in itertools.product(logs, logs):
        if name != other and name.startswith("FedBERT") and f"{other} / {name}" not in pairs:
            pairs[f"{name} / {other}"] = paired_seeds(logs[name], logs[other])
    words = {"better": "higher", "worse": "lower"}  # a higher perplexity is no better one
    for name, pair in holm(pairs).items():
        low, mean, high = (math.exp(x) for x in (pair.low, pair.difference, pair.high))
        verdict = words.get(pair.verdict, pair.verdict)
        print(
            f"{name}: {mean:.3f} [{low:.3f}, {high:.3f}] over {pair.pairs} paired seeds: {verdict} "
            f"(Holm, {pair.family} comparisons)"
        )


def main() -> None:
    """The command."""
    never_fails(sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="compare learning rates instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--steps", type=int, default=600, help="of the body in parallel training")
    options = parser.parse_args()
    if options.tune:
        tune(options.steps)
    else:
        summary(study(options.seeds, options.steps, options.arms))


if __name__ == "__main__":
    main()
