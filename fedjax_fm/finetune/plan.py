"""What a run will do, before it does it."""

import time
from typing import Any

import numpy as np

import fedjax_fm as ffm
from fedjax_fm import trees
from fedjax_fm.engine.billing import in_units
from fedjax_fm.finetune import data as of_data
from fedjax_fm.finetune import looks, methods
from fedjax_fm.finetune.data import Data, sizes
from fedjax_fm.finetune.outputs import sources
from fedjax_fm.finetune.planted import canaries_of
from fedjax_fm.finetune.settings import Settings

MOST_SHOWN = 20  # classes


def facts(settings: Settings, data: Data) -> dict[str, Any]:
    """Data, clients and parameters, for pages and the terminal.

    Args:
      settings: of the run.
      data: of its first seed.

    Returns:
      {"plan": {what: text}, "counts": {what: how many}, "subject": {...}}, which JSON
      can hold.
    """
    ready = data.prepared
    origin = sources(settings, ready.source.sha256)
    columns = ", ".join(f"{role} {name}" for role, name in ready.roles.columns.items())
    guessed = ", found by their usual names" if ready.roles.guessed else ""
    examples = sizes(data.train)
    unseen = (
        f"{len(data.unseen)} clients that never train"
        if data.unseen
        else "none held out"
    )
    own = int(sizes(data.own).sum())
    trained, frozen = trees.size(data.adapted.delta), trees.size(data.adapted.backbone)
    delta = settings.dp_delta or len(data.train) ** -1.1
    plan = {
        "source": f"{ready.source.name} ({ready.source.kind}), "
        f"{len(ready.examples.rows):,} examples",
        "columns": f"{columns}{guessed}",
        "clients": f"{len(data.train)} train on {examples.min()} to {examples.max()} "
        f"examples (median {np.median(examples):.0f}); {unseen}; {own} own examples and "
        f"{int(sizes(data.unseen).sum()) if data.unseen else 0} of unseen clients scored",
        "parameters": f"{trained:,} trained, {frozen:,} frozen",
        "dp": f"delta {delta:.3g}",
        "notes": list(ready.source.notes),
        **{name: value for name, value in origin.items() if name != "data"},
    }
    if ready.examples.classes:
        plan["classes"] = _shown(ready.examples.classes)
    counts = dict(ready.counts)
    if data.leaks:
        counts["scored examples left out, as a client trains on them"] = data.leaks
    if settings.canaries:
        chat, n, seed = ready.chat, len(data.train), settings.seeds[0]
        coins = canaries_of(settings, chat, n, seed).is_planted
        counts["canaries planted, for an audit"] = int(coins.sum())
    return {"plan": plan, "counts": counts, "subject": ready.subject._asdict()}


def _shown(classes: tuple[str, ...]) -> str:
    """Numbers and names of classes, the first of them."""
    named = [f"{number} {name}" for number, name in enumerate(classes)]
    more = f" and {len(named) - MOST_SHOWN} more" if len(named) > MOST_SHOWN else ""
    return ", ".join(named[:MOST_SHOWN]) + more


def simulator_of(settings: Settings, data: Data) -> ffm.Simulator:
    """The simulator of the federated arm, at its first learning rate.

    Args:
      settings: of the run.
      data: of its first seed.
    """
    n = len(data.train)
    algorithm = methods.algorithm_of(settings, data, settings.learning_rate[0])
    return ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(data.train),
        backbone=data.adapted.backbone,
        cohort_size=min(settings.cohort, n),
        sampler=methods.sampler_of(settings, n),
        uplink=methods.channel_of(settings.uplink),
        downlink=methods.channel_of(settings.downlink),
    )


def dry_run(settings: Settings) -> list[str]:
    """The plan of a run: clients, parameters, bytes, memory, seconds of one round.

    Args:
      settings: of the run.

    Returns:
      Lines. Two rounds are computed, the second of which is timed.
    """
    from fedjax_fm.finetune.report import told

    data = of_data.load(settings, settings.seeds[0], "final")
    simulator = simulator_of(settings, data)
    state = simulator.init(data.adapted.delta)
    found = [*told(facts(settings, data)), "", *str(simulator).split("\n")]
    started = time.perf_counter()
    state, metrics = simulator.run(state, 1)
    compiled = time.perf_counter()
    if settings.rounds > 1:
        simulator.run(state, 1)
    seconds = time.perf_counter() - (compiled if settings.rounds > 1 else started)
    up, down = (int(metrics[f"{way}link_bytes"][0]) for way in ("up", "down"))
    total = seconds * settings.rounds
    rows = looks.rows_a_round(settings, data)
    planned = looks.planned(settings, data, settings.rounds, rows)
    return [
        *found,
        "",
        looks.told(planned),
        f"first round: {compiled - started:.1f} s with compilation; {in_units(up)} up, "
        f"{in_units(down)} down",
        f"a round: {seconds:.2f} s on this machine; {settings.rounds} rounds "
        f"{_minutes(total)} a seed, without evaluation and baselines",
    ]


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
