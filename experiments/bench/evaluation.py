"""The share of a run that goes into evaluating between rounds, on a small Llama.

    python -m fedjax_fm.experiments.bench.evaluation [--size 135m] [--rounds 4] [--every 5]

LoRA of rank 8 on queries and values; random weights and tokens: what is measured is
time. One JSON line: seconds of a round, of a look at the test set, and the share
look / (every * round + look), all medians after everything was compiled. The test set
has as many rows as a round trains on, unless `--rows` says otherwise.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import callbacks, models, peft, tasks

# Sizes of SmolLM2-135M, and of a model that takes a second a round.
SIZES: dict[str, dict[str, Any]] = {
    "135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


class Share(NamedTuple):
    """What was measured.

    Attributes:
      round_seconds: of a round without a look.
      look_seconds: of one look at the test set.
      share: of the whole time, in [0, 1].
    """

    round_seconds: float
    look_seconds: float
    share: float


def share_of_evaluation(
    round_: Callable[[], Any], look: Callable[[], Any], *, every: int, repeats: int
) -> Share:
    """Times rounds and looks in turn; the first call of each compiles and is left out.

    Args:
      round_: computes one round, and returns what has to be waited for.
      look: evaluates once, and returns when it is done.
      every: rounds between two looks.
      repeats: of both; medians are reported.

    Example:
      >>> found = share_of_evaluation(
      ...     lambda: time.sleep(0.02), lambda: time.sleep(0.02), every=3, repeats=3
      ... )
      >>> 0 < found.share < 0.6
      True
    """
    rounds, looks = [], []
    for _ in range(repeats + 1):
        for call, times in ((round_, rounds), (look, looks)):
            start = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - start)
    a, b = statistics.median(rounds[1:]), statistics.median(looks[1:])
    return Share(a, b, b / (every * a + b))


def measure(
    size: str,
    *,
    clients: int,
    steps: int,
    batch: int,
    length: int,
    rows: int,
    every: int,
    repeats: int,
) -> Share:
    """The share for a Llama of one of `SIZES`.

    Args:
      size: one of `SIZES`.
      clients: in a round.
      steps: of each.
      batch: rows of a step.
      length: tokens of a row.
      rows: of the test set.
      every: rounds between two looks.
      repeats: of both.
    """
    config = models.LlamaConfig(**SIZES[size], tie_word_embeddings=True)
    model = models.LlamaForCausalLM(config, nnx.Rngs(0))
    adapted = peft.apply(model, peft.lora(8, targets=["q_proj", "v_proj"]))
    task = tasks.language_modeling(adapted)
    rng = np.random.default_rng(0)

    def texts(n: int) -> dict[str, np.ndarray]:
        ids = rng.integers(0, config.vocab_size, (n, length)).astype(np.int32)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}

    people = ffm.Population.from_clients([texts(steps * batch) for _ in range(clients)])
    algorithm = ffm.fedavg(task, optax.sgd(0.01), local_steps=steps, batch_size=batch)
    simulator = ffm.Simulator(
        algorithm, people, backbone=adapted.backbone, cohort_size=clients
    )
    state = simulator.init(adapted.delta)
    look = callbacks.evaluate(task, texts(rows), batch_size=batch)
    look.begin(simulator, state, {}, repeats)

    def round_() -> Any:
        nonlocal state
        state, metrics = simulator.run(state, 1)
        return metrics

    def looked() -> Any:
        return look(state.round, state, {})

    return share_of_evaluation(round_, looked, every=every, repeats=repeats)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="135m")
    sizes = {"clients": 2, "steps": 4, "batch": 4, "length": 64, "every": 5}
    for name, value in {**sizes, "rounds": 4, "rows": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args())
    repeats, size = options.pop("rounds"), options.pop("size")
    trained = options["clients"] * options["steps"] * options["batch"]
    options["rows"] = options["rows"] or trained
    found = measure(size, repeats=repeats, **options)
    print(json.dumps({"size": size, **options, **found._asdict()}))


if __name__ == "__main__":
    main()
