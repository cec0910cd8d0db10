"""How pairs are learned from: by all, alone, in one place, or not at all."""

from typing import Any

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import preferences, study, tasks
from fedjax_fm.algorithms import local_only
from fedjax_fm.experiments.preferences.answers import answer_scores
from fedjax_fm.study.judged import joined
from fedjax_fm.types import Tree

HOW: dict[str, Any] = {"batch_size": 8}  # of evaluations


def with_pairs(
    run: study.Run, alone: bool = False, drawn: bool = False
) -> dict[str, float]:
    """The first stage, then DPO of all clients together, or of each alone."""
    data, start = run.data, first_stage(run)
    task = preferences.dpo(data.adapted, beta=run.config.beta, reference=start)
    method = local_only if alone else ffm.fedavg
    algorithm = method(task, _adam(run["learning_rate"]), **study.walk(run.config))
    found = _simulated(run, algorithm, data.drawn if drawn else data.train, start)
    if not alone:
        return scores(run, [found.model()[0]], start)
    own = range(min(run.config.own_models, len(data.train)))
    return scores(run, [found.model(k)[0] for k in own], start)


def in_one_place(run: study.Run) -> dict[str, float]:
    """The first stage, then DPO with all pairs shuffled together: as many pairs a step."""
    data, start, config = run.data, first_stage(run), run.config
    task = preferences.dpo(data.adapted, beta=config.beta, reference=start)
    algorithm = ffm.fedavg(
        task,
        optax.sgd(1.0),
        _adam(run["learning_rate"]),
        local_steps=1,
        batch_size=config.batch_size * len(data.train),
    )
    rounds = run.rounds * config.local_steps
    how = {"rounds": rounds, "travels": False}
    found = _simulated(run, algorithm, [joined(data.train)], start, **how)
    return scores(run, [found.model()[0]], start)


def tuned_only(run: study.Run) -> dict[str, float]:
    """The first stage, and as many rounds again of the same tuning on chosen answers."""
    data, start = run.data, first_stage(run)
    algorithm = ffm.fedavg(
        tasks.language_modeling(data.adapted),
        _adam(run["learning_rate"]),
        **study.walk(run.config),
    )
    found = _simulated(run, algorithm, [_chosen(rows) for rows in data.train], start)
    return scores(run, [found.model()[0]], start)


def longer_is_better(run: study.Run) -> dict[str, float]:
    """No model: the answer with more tokens is the chosen one."""
    held = run.data.held_out
    lengths = [
        (held[f"{side}_labels"] != -100).sum(1) for side in ("chosen", "rejected")
    ]
    longer = np.sign(np.subtract(*[n.astype(np.int64) for n in lengths]))
    return {"accuracy": float(((1 + longer) / 2).mean())}


def first_stage(run: study.Run) -> Tree:
    """Federated tuning on the chosen answers, once for all arms of a seed."""
    data, config = run.data, run.config
    algorithm = ffm.fedavg(
        tasks.language_modeling(data.adapted),
        _adam(config.first_rate),
        **study.walk(config),
    )
    clients = [_chosen(rows) for rows in data.train]

    def start() -> study.Simulated:
        how = {"rounds": config.first_rounds}
        return _simulated(run, algorithm, clients, data.adapted.delta, **how)

    return run.simulate_once(("first", run.split), start).model()[0]


def scores(run: study.Run, deltas: list[Tree], start: Tree) -> dict[str, float]:
    """Held-out pairs, and answers beside those of the first stage.

    Args:
      run: has the held-out pairs.
      deltas: of the models that are scored; the mean over them is the score.
      start: delta after the first stage.
    """
    data = run.data
    task = preferences.dpo(data.adapted, beta=run.config.beta)
    backbone = data.adapted.backbone
    each = [
        float(
            ffm.evaluate(task, delta, backbone, data.held_out, **HOW)[
                "pair_accuracy"
            ].mean()
        )
        for delta in deltas
    ]
    run.clients = each
    found = {"accuracy": float(np.mean(each))}
    if run.is_tuning:
        return found
    answered = [answer_scores(run, delta, start) for delta in deltas]
    run.notes["win_rates"] = [said for _, said in answered]
    names = answered[0][0]
    return found | {n: float(np.mean([one[n] for one, _ in answered])) for n in names}


def _simulated(
    run: study.Run,
    algorithm: ffm.Algorithm,
    clients: list[Any],
    delta: Tree,
    **how: Any,
) -> study.Simulated:
    """A run of all clients in every round."""
    population = ffm.Population.from_clients(clients)
    backbone = run.data.adapted.backbone
    return run.simulate(algorithm, population, delta, backbone=backbone, **how)


def _chosen(pairs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The chosen answers as rows of a language model."""
    names = ("input_ids", "attention_mask", "labels")
    return {name: pairs[f"chosen_{name}"] for name in names}


def _adam(rate: float) -> optax.GradientTransformation:
    """Adam behind a clip."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
