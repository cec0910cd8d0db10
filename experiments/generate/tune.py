"""Chooses the arms' learning rates: one grid for all, judged on clients of validation groups, which no study uses.

    python -m fedjax_fm.experiments.generate.tune        (about 35 minutes on two cores)

The winners are the defaults of `Config`; the table stands in this folder's README.md.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from fedjax_fm.evaluation import TokenLosses
from fedjax_fm.experiments.generate.config import Config, DocstringsConfig
from fedjax_fm.experiments.generate.setup import Setup, joined, make_setup
from fedjax_fm.experiments.generate.study import alone, centralised, federated

GRID = (3e-4, 1e-3, 3e-3, 1e-2)
SEED = 1000


def score(setup: Setup, simulator, rounds: int) -> float:
    """Perplexity on the validation clients' texts."""
    state, _ = simulator.run(simulator.init(setup.delta), rounds)
    return setup.perplexity((state.delta, simulator.backbone), joined(setup.data.unseen)).perplexity


def score_alone(setup: Setup, simulator, rounds: int) -> float:
    """Perplexity of clients on their own last texts, each by its own model."""
    state, _ = simulator.run(simulator.init(setup.delta), rounds)
    parts = []
    for k in range(setup.config.local_only_clients):
        params = (jax.tree.map(lambda x, k=k: x[k], state.rounds.clients), simulator.backbone)
        parts.append(setup.perplexity(params, setup.data.seen[k]))
    return TokenLosses(np.concatenate([p.nll for p in parts]), np.concatenate([p.tokens for p in parts])).perplexity


def main() -> None:
    """Prints one row per arm and learning rate; `tune.py docstrings OUT.json` for the other data."""
    console = Console()
    config = DocstringsConfig() if "docstrings" in sys.argv else Config()
    scored = 32 if config.data == "shakespeare" else 4  # as many as the validation groups have
    changes = {"seed": SEED, "rounds": 8, "score": "validation", "held_out_clients": scored, "rouge_prompts": 0}
    setup = make_setup(dataclasses.replace(config, **changes))
    local_clients = setup.data.train[: config.local_only_clients]
    found = {}
    for learning_rate in GRID:
        rows = {
            "federated": lambda lr=learning_rate: score(setup, federated(setup, lr), setup.config.rounds),
            "centralised": lambda lr=learning_rate: score(setup, *centralised(setup, lr)),
            "local only": lambda lr=learning_rate: score_alone(setup, *alone(setup, lr, local_clients)),
        }
        for arm, measure in rows.items():
            found[f"{arm} {learning_rate:g}"] = perplexity = measure()
            console.print(f"{learning_rate:g}  {arm:12s}  {perplexity:.2f}", highlight=False)
    if sys.argv[-1].endswith(".json"):
        Path(sys.argv[-1]).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
