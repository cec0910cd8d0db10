"""How pairs are learned from: by all, alone, in one place, or not at all."""

from typing import Any

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import preferences, study, tasks, trees
from fedjax_fm.algorithms import local_only
from fedjax_fm.experiments.preferences.answers import answer_scores
from fedjax_fm.study.judged import joined
from fedjax_fm.systems import Preparation, prepared
from fedjax_fm.types import Tree

Rows = dict[str, np.ndarray]
HOW: dict[str, Any] = {"batch_size": 8}  # of evaluations


def with_pairs(
    run: study.Run, alone: bool = False, drawn: bool = False
) -> dict[str, float]:
    """The first stage, then DPO of all clients together, or of each alone."""
    start = first_stage(run)
    clients = referred(run, start, drawn)
    method = local_only if alone else ffm.fedavg
    algorithm = method(_dpo(run), _adam(run["learning_rate"]), **study.walk(run.config))
    found = _simulated(run, algorithm, clients, start)
    if not alone:
        return scores(run, [found.model()[0]], start)
    own = range(min(run.config.own_models, len(clients)))
    return scores(run, [found.model(k)[0] for k in own], start)


def in_one_place(run: study.Run) -> dict[str, float]:
    """The first stage, then DPO with all pairs shuffled together: as many pairs a step."""
    start, config = first_stage(run), run.config
    clients = referred(run, start)
    algorithm = ffm.fedavg(
        _dpo(run),
        optax.sgd(1.0),
        _adam(run["learning_rate"]),
        local_steps=1,
        batch_size=config.batch_size * len(clients),
    )
    rounds = run.rounds * config.local_steps
    how = {"rounds": rounds, "travels": False}
    found = _simulated(run, algorithm, [joined(clients)], start, **how)
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


def referred(run: study.Run, start: Tree, drawn: bool = False) -> list[Rows]:
    """Pairs of each client with what the first stage gives their answers.

    They are computed once for all arms of a seed, as no round changes them.

    Args:
      run: has the pairs.
      start: delta after the first stage, DPO's reference.
      drawn: whether the order of each pair is drawn, for a control.
    """
    data = run.data
    clients = data.drawn if drawn else data.train

    def store() -> list[Rows]:
        return [
            preferences.store_reference(data.adapted, rows, start, **HOW)
            for rows in clients
        ]

    found = run.once(("referred", run.split, drawn), store)
    run.computed(_reading(run, found, start))
    return found


def _reading(run: study.Run, clients: list[Rows], start: Tree) -> Preparation:
    """What it takes that clients read their pairs once by the reference."""
    one = {name: column[:1] for name, column in clients[0].items()}
    backbone, task = run.data.adapted.backbone, _dpo(run)

    def read(delta: Tree, frozen: Tree, batch: dict[str, jax.Array]) -> jax.Array:
        return task.loss(delta, frozen, batch, None)[0]

    return prepared(
        read,
        start,
        backbone,
        one,
        rows=sum(len(rows["chosen_labels"]) for rows in clients),
        batch_size=1,
        model_bytes=trees.nbytes(backbone),
    )


def held_out(run: study.Run) -> Rows:
    """The held-out pairs with what the model gives them before any tuning.

    Args:
      run: has the pairs.
    """
    data = run.data

    def store() -> Rows:
        return preferences.store_reference(data.adapted, data.held_out, **HOW)

    return run.once(("held out", run.split), store)


def scores(run: study.Run, deltas: list[Tree], start: Tree) -> dict[str, float]:
    """Held-out pairs, and answers beside those of the first stage.

    Args:
      run: has the held-out pairs.
      deltas: of the models that are scored; the mean over them is the score.
      start: delta after the first stage.
    """
    each = [pair_accuracy(run, delta) for delta in deltas]
    run.clients = each
    found = {"accuracy": float(np.mean(each))}
    if run.is_tuning:
        return found
    answered = [answer_scores(run, delta, start) for delta in deltas]
    run.notes["win_rates"] = [said for _, said in answered]
    names = answered[0][0]
    return found | {n: float(np.mean([one[n] for one, _ in answered])) for n in names}


def pair_accuracy(run: study.Run, delta: Tree) -> float:
    """The share of held-out pairs whose chosen answer gained more.

    Args:
      run: has the pairs.
      delta: of the model.
    """
    backbone = run.data.adapted.backbone
    found = ffm.evaluate(_dpo(run), delta, backbone, held_out(run), **HOW)
    return float(found["pair_accuracy"].mean())


def _dpo(run: study.Run) -> ffm.Task:
    """DPO against the reference that is stored with the pairs."""
    return preferences.dpo(run.data.adapted, beta=run.config.beta, stored=True)


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


def _chosen(pairs: Rows) -> Rows:
    """The chosen answers as rows of a language model."""
    names = ("input_ids", "attention_mask", "labels")
    return {name: pairs[f"chosen_{name}"] for name in names}


def _adam(rate: float) -> optax.GradientTransformation:
    """Adam behind a clip."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
