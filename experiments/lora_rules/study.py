"""Runs every rule until the next round would exceed the budget of bytes, and compares them over seeds."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from fedjax_fm import models
from fedjax_fm.evaluation import holm, paired_seeds, plus_minus
from fedjax_fm.experiments.lora_rules.arms import RULES, Arm, base_model, make_arm
from fedjax_fm.experiments.lora_rules.config import Config
from fedjax_fm.experiments.lora_rules.data import TUNING_SEED, Sentences, deal, load
from fedjax_fm.runs.provenance import environment

LOOKS = (0.25, 0.5, 1.0)  # shares of the budget at which the test sentences are scored


class Run(NamedTuple):
    """One rule, one seed."""

    accuracy: list[float]  # at the looks, before the round that would exceed them
    start: float  # of the random head
    rounds: int
    bytes: int  # both ways, all clients
    seconds: float


def spend(arm: Arm, budget: float, most_rounds: int) -> Run:
    """Rounds one at a time until the next would cost more than is left."""
    started = time.perf_counter()
    state = arm.simulator.init(arm.delta)
    start, accuracy = float(arm.correct(state).mean()), []
    spent, rounds = arm.setup_bytes, 0
    scored = start
    while rounds < most_rounds:
        after, metrics = arm.simulator.run(state, 1)
        total = spent + int(metrics["uplink_bytes"][0] + metrics["downlink_bytes"][0])
        if rounds and any(spent <= look * budget < total for look in LOOKS):
            scored = float(arm.correct(state).mean())
        while len(accuracy) < len(LOOKS) and total > LOOKS[len(accuracy)] * budget:
            accuracy.append(scored)
        if total > budget:
            break
        state, spent, rounds = after, total, rounds + 1
    if len(accuracy) < len(LOOKS):
        scored = float(arm.correct(state).mean())
    accuracy += [scored] * (len(LOOKS) - len(accuracy))
    return Run(accuracy, start, rounds, spent, time.perf_counter() - started)


def bytes_of_fedit(config: Config, pool: Sentences, rounds: int) -> int:
    """What FedIT sends, both ways, in so many rounds."""
    arm = make_arm("fedit", config, deal(pool, config, TUNING_SEED), 1e-3, 0)
    _, metrics = arm.simulator.run(arm.simulator.init(arm.delta), 1)
    return rounds * int(metrics["uplink_bytes"][0] + metrics["downlink_bytes"][0])


def run(config: Config, place: Path, console: Console) -> dict[str, Any]:
    """Tunes, runs all arms and seeds, and writes `results.json` and `table.md` into `place`."""
    started = time.perf_counter()
    pool = load(config, base_model(config, 0))
    console.print(f"hidden states of {len(pool.domain)} sentences, {time.perf_counter() - started:.0f} s")
    one_round = bytes_of_fedit(config, pool, 1)
    rates, tuning = {}, {}
    dealt = deal(pool, config, TUNING_SEED)
    for name in RULES:
        scores = {}
        for rate in config.grid:
            arm = make_arm(name, config, dealt, rate, TUNING_SEED)
            scores[rate] = spend(arm, config.tuning_rounds * one_round, config.most_rounds // 2).accuracy[-1]
        tuning[name], rates[name] = scores, max(scores, key=scores.__getitem__)
        console.print(f"tuning {name}: " + ", ".join(f"{r:g} {100 * s:.1f} %" for r, s in scores.items()))
    runs: dict[str, list[Run]] = {name: [] for name in RULES}
    for seed in config.seeds:
        dealt = deal(pool, config, seed)
        for name in RULES:
            arm = make_arm(name, config, dealt, rates[name], seed)
            found = spend(arm, config.budget_rounds * one_round, config.most_rounds)
            runs[name].append(found)
            console.print(f"seed {seed} {name}: {found}", highlight=False)
    seconds = time.perf_counter() - started
    results = {
        "environment": environment(),
        "weights": models.provenance(config.model),
        "config": config.__dict__,
        "budget_bytes": config.budget_rounds * one_round,
        "tuning": tuning,
        "runs": {name: [one._asdict() for one in found] for name, found in runs.items()},
        "seconds": seconds,
    }
    place.mkdir(parents=True, exist_ok=True)
    (place / "results.json").write_text(json.dumps(results, indent=1, default=str), encoding="utf-8")
    (place / "table.md").write_text(table(results), encoding="utf-8")
    console.print(table(results), f"{seconds:.0f} s", highlight=False)
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown, from `results.json` alone: accuracy in % at shares of the budget, and FedIT's distance at all of it."""
    lines = [
        "| rule | learning rate | rounds | MB, both ways | at 1/4 of the budget | at 1/2 | at all of it | against FedIT |",
        "|---|---|---|---|---|---|---|---|",
    ]
    runs = results["runs"]
    last = {name: np.array([one["accuracy"][-1] for one in found]) for name, found in runs.items()}
    compared = holm({name: paired_seeds(last[name], last["fedit"]) for name in runs if name != "fedit"})
    for name, found in runs.items():
        by_look = np.array([one["accuracy"] for one in found])
        cells = [plus_minus(accuracies, scale=100) for accuracies in by_look.T]
        scores = results["tuning"][name]
        rate = max(scores, key=scores.__getitem__)
        edge = " (edge)" if rate in (min(scores, key=float), max(scores, key=float)) and len(scores) > 1 else ""
        counts = sorted({one["rounds"] for one in found})
        versus = ""
        if c := compared.get(name):
            versus = f"{100 * c.difference:+.1f} [{100 * c.low:+.1f}, {100 * c.high:+.1f}]: {c.verdict}"
        mean_bytes = np.mean([one["bytes"] for one in found]) / 1e6
        cells = [
            RULES[name][0],
            f"{float(rate):g}{edge}",
            " to ".join(map(str, counts)),
            f"{mean_bytes:.2f}",
            *cells,
            versus,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    start = np.array([one["start"] for one in runs["fedit"]])
    lines.append(f"| control: random head, untrained | | 0 | 0 | | | {plus_minus(start, scale=100)} | |")
    lines.append("")
    lines.append(
        f"Verdicts are Holm's over {len(compared)} comparisons; each interval is that of its comparison alone."
    )
    return "\n".join(lines) + "\n"
