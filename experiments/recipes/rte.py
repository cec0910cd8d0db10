"""RTE as FRLoRA and FedPETuning tune it; needs roberta-base and GLUE from a hub.

    python -m fedjax_fm.experiments.recipes.rte --paper frlora --method frlora

Writes one JSON object a look: round, accuracy, bytes; the first line says what was run
on which rows. With `--stand-in` the rows are made up, and the numbers say nothing.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

import fedjax_fm as ffm
from fedjax_fm import datasets, models, peft, tasks
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.datasets import NamedData

LENGTH = 128  # tokens, where the paper's code says none
RATES = {"full": 5e-5}  # of FedPETuning; the others take the paper's for LoRA


class Recipe(NamedTuple):
    """A run, ready to begin.

    Attributes:
      simulator: with the clients.
      delta: where it starts.
      task: classification.
      test: arrays of the rows that are held out.
      rounds: of the paper, or as asked for.
    """

    simulator: ffm.Simulator
    delta: Any
    task: ffm.Task
    test: dict[str, Any]
    rounds: int


def _lora(settings: Any) -> peft.Method:
    """LoRA on query and value with the paper's rank."""
    alpha = settings.alpha or 2.0 * settings.rank
    dropout = settings.dropout or 0.0
    return peft.lora(settings.rank, alpha, targets="query|value", dropout=dropout)


METHODS: dict[str, Callable[[Any], peft.Method]] = {
    "frlora": _lora,
    "fedavg": _lora,
    "lora": _lora,
    "adapter": lambda settings: peft.houlsby(16),
    "prefix": lambda settings: peft.prefix_tuning(16, hidden=512),
    "bitfit": lambda settings: peft.bitfit(),
    "full": lambda settings: peft.full(),
}


def prepared(
    data: NamedData,
    model: str,
    method: str,
    *,
    rounds: int | None = None,
    seed: int = 0,
) -> Recipe:
    """The run of one method with the paper's settings.

    Args:
      data: of `datasets.load("glue/PAPER/rte")`.
      model: "roberta-base", or a folder with a model and its tokenizer.
      method: a key of `METHODS`.
      rounds: None: the paper's.
      seed: of the head, the adapter, cohorts and batches.
    """
    settings: Any = data.benchmark.settings  # RTE's, of which nothing is missing
    whole = models.from_pretrained(model, num_labels=2, seed=seed)
    adapted = peft.apply(whole, METHODS[method](settings), jax.random.key(seed))
    task = tasks.classification(adapted)
    walk = {"local_steps": settings.local_steps, "epochs": settings.local_epochs}
    how = {**walk, "batch_size": settings.batch_size}
    rate: Any = RATES.get(method, settings.lr)
    optimizer = optax.adamw(rate)
    delta, backbone = adapted.delta, adapted.backbone
    if method == "frlora":
        alpha = settings.alpha or 2.0 * settings.rank
        scaling = alpha / settings.rank
        delta, backbone = lora_rules.principal_start(delta, backbone, scaling=scaling)
        algorithm = lora_rules.frlora(task, optimizer, scaling=scaling, **how)
    else:
        algorithm = ffm.fedavg(task, optimizer, **how)
    tokenizer = models.load_tokenizer(model)
    length = settings.length or LENGTH

    def encoded(table: Any) -> dict[str, Any]:
        texts, pairs = list(table["text"]), list(table["text_pair"])
        tokens = models.tokenize(tokenizer, texts, length, pairs=pairs)
        return {**tokens, "label": table["label"].astype("int32")}

    columns = {**encoded(data.train), "client": data.client}
    names = [name for name in columns if name != "client"]
    population = ffm.Population.from_table(columns, by=data.partitioner, columns=names)
    return Recipe(
        simulator=ffm.Simulator(
            algorithm,
            population,
            backbone=backbone,
            cohort_size=min(settings.cohort, population.n_clients),
            seed=seed,
        ),
        delta=delta,
        task=task,
        test=encoded(data.test),
        rounds=settings.rounds if rounds is None else rounds,
    )


def followed(recipe: Recipe, every: int) -> list[dict[str, float]]:
    """Runs a recipe, and looks at the server's model now and then.

    Args:
      recipe: of `prepared`.
      every: rounds between two looks.

    Returns:
      Round, accuracy and bytes so far of every look; the first one is before round 1.
    """
    simulator, state = recipe.simulator, recipe.simulator.init(recipe.delta)
    up = down = done = 0
    looks = []
    while True:
        scores = ffm.evaluate(recipe.task, *simulator.model(state), recipe.test)
        accuracy = float(scores["accuracy"].mean())
        look = {"round": done, "accuracy": accuracy, "bytes_up": up, "bytes_down": down}
        looks.append(look)
        if done >= recipe.rounds:
            return looks
        step = min(every, recipe.rounds - done)
        state, metrics = simulator.run(state, step)
        up += int(metrics["uplink_bytes"].sum())
        down += int(metrics["downlink_bytes"].sum())
        done += step


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one method and writes its looks.

    Args:
      arguments: of the command line; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="RTE as two papers tune it.")
    parser.add_argument("--paper", choices=("frlora", "fedpetuning"), required=True)
    parser.add_argument("--method", choices=sorted(METHODS), required=True)
    parser.add_argument("--model", default="roberta-base")
    parser.add_argument("--rounds", type=int, help="default: the paper's")
    parser.add_argument("--every", type=int, default=5, help="rounds between looks")
    parser.add_argument("--limit", type=int, help="rows of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stand-in", action="store_true", help="rows that are made up")
    parser.add_argument("--out", type=Path, help="default: standard output")
    given = parser.parse_args(arguments)
    source = "stand-in" if given.stand_in else "auto"
    name = f"glue/{given.paper}/rte"
    data = datasets.load(name, source=source, limit=given.limit, seed=given.seed)
    recipe = prepared(
        data, given.model, given.method, rounds=given.rounds, seed=given.seed
    )
    head = {"recipe": name, "method": given.method, "model": given.model}
    head |= {"rows": data.provenance["kind"], "seed": given.seed}
    lines = [head, *followed(recipe, given.every)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if given.out is None:
        sys.stdout.write(text)
    else:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
