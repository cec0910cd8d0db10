"""Runs the arms of the generative study; an arm that is done is never computed again."""

import resource
import time

import jax
import numpy as np
import optax
from rich.console import Console

from fedjax_fm import Population, Simulator, channels, fedavg
from fedjax_fm.algorithms import local_only
from fedjax_fm.evaluation import TokenLosses
from fedjax_fm.experiments.generate.config import Config
from fedjax_fm.experiments.generate.data import Rows
from fedjax_fm.experiments.generate.report import write_report
from fedjax_fm.experiments.generate.scores import answers, as_arrays, perplexities
from fedjax_fm.experiments.generate.setup import Setup, clipped_adam, joined, make_setup, provenance
from fedjax_fm.runs import RunFolder, run_rounds
from fedjax_fm.runs.arms import Outcome, compute_once
from fedjax_fm.runs.seeds import each_seed


def run(config: Config, folder: RunFolder, console: Console) -> None:
    """The whole study in `folder`; with several seeds each has a run folder of its own inside it."""
    for one, place in each_seed(config, folder, console):
        run_seed(one, place, console)
    console.print(f"\nreport: {write_report(folder)}", highlight=False, soft_wrap=True)


def run_seed(config: Config, folder: RunFolder, console: Console) -> None:
    """All arms for one seed."""
    with console.status("loading text and weights …"):
        setup = make_setup(config)
    if not folder.has("provenance.json"):
        folder.write_json("provenance.json", provenance(setup))
    for name, arm in ARMS.items():
        _, arrays = compute_once(folder, name, lambda arm=arm: arm(setup, folder, console), console)
        unseen = TokenLosses(arrays["unseen_nll"], arrays["unseen_tokens"])
        console.print(f"{name}: perplexity {unseen.perplexity:.2f} on unseen clients", highlight=False, soft_wrap=True)


def federated(setup: Setup, learning_rate: float) -> Simulator:
    """FedAvg of the adapter with quantised uploads."""
    config = setup.config
    optimizer = clipped_adam(config, learning_rate, config.rounds)
    algorithm = fedavg(setup.task, optimizer, local_steps=config.local_steps, batch_size=config.batch_size)
    return Simulator(
        algorithm, setup.data.population(), backbone=setup.backbone, cohort_size=config.cohort,
        uplink=channels.quantize(config.bits), seed=config.seed,
    )  # fmt: skip


def centralised(setup: Setup, learning_rate: float) -> tuple[Simulator, int]:
    """(simulator, rounds): one client with all texts; a round is one step of clipped Adam on the rows that a cohort
    reads in one step, so that the whole run reads as many tokens as the federated one."""
    config = setup.config
    rounds = config.rounds * config.local_steps
    schedule = optax.cosine_decay_schedule(learning_rate, rounds, alpha=0.1)
    server = optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(schedule))
    batch = config.cohort * config.batch_size
    algorithm = fedavg(setup.task, optax.sgd(1.0), server, local_steps=1, batch_size=batch)
    population = Population.from_clients([joined(setup.data.train)])
    return Simulator(algorithm, population, backbone=setup.backbone, cohort_size=1, seed=config.seed), rounds


def alone(setup: Setup, learning_rate: float, clients: list[Rows]) -> tuple[Simulator, int]:
    """(simulator, rounds): each client by itself, for as many rounds as one takes part in on average."""
    config = setup.config
    rounds = max(1, round(config.rounds * config.cohort / config.clients))
    optimizer = clipped_adam(config, learning_rate, rounds)
    algorithm = local_only(setup.task, optimizer, local_steps=config.local_steps, batch_size=config.batch_size)
    population = Population.from_clients(clients)
    return Simulator(algorithm, population, backbone=setup.backbone, cohort_size=len(clients), seed=config.seed), rounds


def _train(
    setup: Setup, simulator: Simulator, rounds: int, label: str, place: RunFolder, console: Console,
    clients: int | None = None, **how,
):  # fmt: skip
    """(end state, numbers); `clients` is who trains for a row of metrics, by default a cohort."""

    def watch(state):
        losses = setup.perplexity((state.delta, simulator.backbone), joined(setup.data.seen[:8]))
        return {"eval_perplexity": losses.perplexity}

    how = {"evaluate": watch, "evaluate_every": setup.config.eval_every} | how
    started = time.perf_counter()
    state = run_rounds(simulator, setup.delta, rounds, place, label=label, console=console, **how)
    rows = place.metrics()
    config = setup.config
    tokens = (clients or config.cohort) * config.local_steps * config.batch_size * config.row_length
    steady = float(np.median(list(place.seconds().values())))
    return state, {
        "rounds": rounds,
        "uplink_bytes": rows[-1]["uplink_bytes_total"],
        "downlink_bytes": rows[-1]["downlink_bytes_total"],
        "seconds_a_round": steady,
        "trained_tokens_per_second": tokens / steady,
        "training_seconds": time.perf_counter() - started,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,  # of this process so far
    }


def _zero_shot(setup: Setup, folder: RunFolder, console: Console) -> Outcome:
    params = (setup.delta, setup.backbone)  # B = 0: the base model
    console.print("zero shot: scoring the base model …", highlight=False)
    numbers, arrays = answers(setup, params)
    return numbers, {**perplexities(setup, params), **arrays}


def _federated(setup: Setup, folder: RunFolder, console: Console) -> Outcome:
    config = setup.config
    simulator = federated(setup, config.learning_rate)
    state, numbers = _train(setup, simulator, config.rounds, "federated", folder, console)
    params = (state.delta, simulator.backbone)
    written, arrays = answers(setup, params)
    return {**numbers, **written}, {**perplexities(setup, params), **arrays}


def _centralised(setup: Setup, folder: RunFolder, console: Console) -> Outcome:
    config = setup.config
    simulator, rounds = centralised(setup, config.centralised_learning_rate)
    state, numbers = _train(
        setup, simulator, rounds, "centralised", folder.below("arms/centralised"), console,
        evaluate_every=config.eval_every * config.local_steps,
    )  # fmt: skip
    params = (state.delta, simulator.backbone)
    written, arrays = answers(setup, params)
    return numbers | written | {"uplink_bytes": 0, "downlink_bytes": 0}, {**perplexities(setup, params), **arrays}


def _local_only(setup: Setup, folder: RunFolder, console: Console) -> Outcome:
    """Some clients by themselves; each is scored on its own last texts, and on the unseen clients, which are dealt out
    among them."""
    config, data = setup.config, setup.data
    n = config.local_only_clients
    simulator, rounds = alone(setup, config.local_learning_rate, data.train[:n])
    place = folder.below("arms/local_only")
    state, numbers = _train(
        setup, simulator, rounds, "local only", place, console, n, evaluate=None, evaluate_every=1
    )  # fmt: skip
    own, unseen = [], []
    for k in range(n):
        params = (jax.tree.map(lambda x, k=k: x[k], state.rounds.clients), simulator.backbone)
        own.append(setup.perplexity(params, data.seen[k]))
        unseen += [setup.perplexity(params, part) for part in data.unseen[k::n]]
    arrays = {}
    for name, parts in (("own", own), ("unseen", unseen)):
        nll, tokens = (np.concatenate([getattr(part, field) for part in parts]) for field in ("nll", "tokens"))
        arrays |= as_arrays(name, TokenLosses(nll, tokens))
    return numbers, arrays


ARMS = {"zero_shot": _zero_shot, "federated": _federated, "centralised": _centralised, "local_only": _local_only}
