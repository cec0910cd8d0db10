"""The study behind `fedjax-fm finetune`: the method and the standing baselines."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import callbacks, peft, study
from fedjax_fm.algorithms import local_only
from fedjax_fm.callbacks.looks import worst_decile
from fedjax_fm.engine import hosts
from fedjax_fm.evaluation.agreement import AGREEMENTS
from fedjax_fm.finetune import data as of_data
from fedjax_fm.finetune import looks, methods, preferred
from fedjax_fm.finetune.answers import answered
from fedjax_fm.finetune.data import Data, Prepared, length, sizes
from fedjax_fm.finetune.expressions import names_in
from fedjax_fm.finetune.outputs import save
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.study.judged import joined, judged
from fedjax_fm.study.shape import Arm, Control, Score, Study

BUCKET = 32  # tokens
AGREED = {"MCC": "Matthews correlation", "F1": "F1"}


def make(settings: Settings, ready: Prepared, place: Path) -> Study:
    """The study of a run.

    Args:
      settings: of the run.
      ready: has the examples, and the benchmark's scores.
      place: of its folder, where the trained model is saved.

    Returns:
      The method, and the baselines unless they are left out.
    """
    (method, *_) = names_in(settings.method)
    grid = {"learning_rate": "learning_rate"}
    federated = functools.partial(trained, place=place)
    arms = [Arm("federated", federated, f"{method}, {settings.peft}", grid)]
    if settings.baselines:
        arms += [
            Arm("centralised", centralised, "centralised, equal examples", grid),
            Arm("local", alone, "local only, some clients alone", grid),
        ]
    arms.append(Arm("zero_shot", zero_shot, "before training"))
    controls = [Control("zero_shot", "federated", "training brought nothing")]
    if ready.examples.kind == "pairs":
        arms.append(Arm("longer", preferred.longer, "the longer answer"))
        controls.append(Control("longer", "federated", "length alone says as much"))
    primary = _primary(settings, ready)
    return Study(
        question=f"What does {method} bring on {Path(settings.data).name}?",
        expected="the model before training is worse than the federated one",
        config=Settings,
        data=of_data.load,
        primary=primary,
        arms=arms,
        comparisons=study.against("federated", arms),
        controls=controls,
        scores=[*_others(settings, primary), *_more(settings, ready, primary)],
    )


def _primary(settings: Settings, ready: Prepared) -> Score:
    """The score that decides, on unseen clients if there are any.

    Of a benchmark it is its authors' first one, where that is known here.
    """
    where = "unseen clients" if settings.holdout_clients else "own examples"
    if ready.examples.kind == "pairs":
        title = f"pair accuracy, {where}"
        return Score(preferred.ACCURACY, title, unit="%", scale=100.0)
    if ready.examples.kind != "classes":
        return Score("perplexity", f"perplexity, {where}", highest=False, digits=2)
    names = of_data.agreements_of(ready)
    if names and ready.source.metrics[0] == names[0]:
        return Score(names[0], f"{AGREED[names[0]]}, {where}", digits=3)
    return Score("accuracy", f"accuracy, {where}", unit="%", scale=100.0)


def _more(settings: Settings, ready: Prepared, primary: Score) -> list[Score]:
    """The authors' further scores of a benchmark, and accuracy beside another first."""
    where = "unseen clients" if settings.holdout_clients else "own examples"
    if ready.examples.kind == "pairs":
        return [Score("margin", f"margin of log-odds, {where}", digits=3)]
    names = of_data.agreements_of(ready)
    found = [
        Score(name, f"{AGREED[name]}, {where}", digits=3)
        for name in names
        if name != primary.name
    ]
    if names and primary.name != "accuracy":
        found.append(Score("accuracy", f"accuracy, {where}", unit="%", scale=100.0))
    return found


def _others(settings: Settings, primary: Score) -> list[Score]:
    """The worst tenth of clients, and the clients' own examples."""
    shape = {
        "unit": primary.unit,
        "scale": primary.scale,
        "highest": primary.highest,
        "digits": primary.digits,
    }
    found = [Score("worst", "worst tenth of these clients", **shape)]
    if settings.holdout_clients and settings.holdout_examples:
        found.append(Score("own", "clients that train, own examples", **shape))
        found.append(Score("own_worst", "worst tenth of those", **shape))
    return found


def trained(run: study.Run, place: Path) -> dict[str, float]:
    """The federated method, whose model is saved."""
    settings, data = run.config, run.data
    algorithm = methods.algorithm_of(settings, data, run["learning_rate"])
    task = data.task
    if methods.has_two_adapters(settings):
        assert data.personal_task is not None  # `algorithm_of` has seen to that
        task = data.personal_task
    found = simulate(
        run,
        algorithm,
        data.train,
        task=task,
        rounds=settings.rounds,
        cohort_size=min(settings.cohort, len(data.train)),
        sampler=methods.sampler_of(settings, len(data.train)),
        uplink=methods.channel_of(settings.uplink),
        downlink=methods.channel_of(settings.downlink),
        keep=True,
        looks=_trackers(run, place),
    )
    scores = scores_of(run, found, task)
    if not run.is_tuning:
        run.notes |= _notes(run, found)
        save(run, found, place)
    return scores


def _trackers(run: study.Run, place: Path) -> list[Any]:
    """A callback for the trackers that are asked for, one run a seed."""
    to = run.config.track
    if not to or run.is_tuning:
        return []
    return [callbacks.track(place / f"tracked-seed-{run.seed}", to=to)]


def _notes(run: study.Run, found: study.Simulated) -> dict[str, Any]:
    """Answers of the first seed, and what was spent of privacy."""
    data, settings = run.data, run.config
    notes: dict[str, Any] = {"leaks": data.leaks}
    if "epsilon" in found.metrics:
        notes["epsilon"] = float(found.metrics["epsilon"][-1])
    is_first = run.seed == settings.seeds[0]
    if is_first and data.prompts and not found.simulator.is_personal:
        before = (data.adapted.delta, data.adapted.backbone)
        after = hosts.here(found.model())
        notes["answers"] = answered(data, settings, before, after)
    return notes


def centralised(run: study.Run) -> dict[str, float]:
    """One place has all examples.

    A round is one step on as many examples as a cohort reads in a step, so that it
    reads as many as the federated run.
    """
    settings, data = run.config, run.data
    steps = settings.rounds * steps_a_round(settings, data)
    cohort = min(settings.cohort, len(data.train))
    schedule = optax.constant_schedule(run["learning_rate"])
    if settings.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(run["learning_rate"], steps, alpha=0.1)
    server = methods.optimizer_of(settings, schedule)
    everything = joined(data.train)
    algorithm = ffm.fedavg(
        data.task,
        optax.sgd(1.0),
        server,
        local_steps=1,
        batch_size=min(cohort * settings.batch_size, length(everything)),
    )
    found = simulate(
        run,
        algorithm,
        [everything],
        rounds=steps,
        cohort_size=1,
        rows_a_round=cohort * settings.batch_size,
        travels=False,
    )
    return scores_of(run, found)


def alone(run: study.Run) -> dict[str, float]:
    """Some clients by themselves, as many rounds as one takes part in on average."""
    settings, data = run.config, run.data
    random = np.random.default_rng(run.seed)
    # Without unseen clients each is scored on its own examples, and has to have some.
    able = [k for k, own in enumerate(data.own) if data.unseen or length(own)]
    chosen = random.permutation(able)[: settings.local_clients]
    train = [data.train[k] for k in np.sort(chosen)]
    share = min(1.0, settings.cohort / len(data.train))
    rounds = max(1, round(settings.rounds * share))
    algorithm = local_only(
        data.task,
        methods.client_optimizer(settings, run["learning_rate"], rounds),
        **settings.steps,
        batch_size=settings.batch_size,
    )
    found = simulate(
        run, algorithm, train, rounds=rounds, cohort_size=len(train), test=None
    )
    return scores_of(run, found, own=[data.own[k] for k in np.sort(chosen)])


def zero_shot(run: study.Run) -> dict[str, float]:
    """The model before training: a new adapter changes nothing, a new head guesses."""
    algorithm = ffm.fedavg(run.data.task, optax.sgd(0.1), local_steps=1, batch_size=1)
    found = simulate(
        run, algorithm, run.data.train[:1], rounds=0, cohort_size=1, test=None
    )
    return scores_of(run, found)


def steps_a_round(settings: Settings, data: Data) -> int:
    """Local steps of a client a round; of epochs, those of a client of mean size.

    Args:
      settings: have steps or epochs.
      data: has the clients.
    """
    steps = settings.steps
    if "local_steps" in steps:
        return steps["local_steps"]
    mean = float(sizes(data.train).mean())
    return steps["epochs"] * max(1, math.ceil(mean / settings.batch_size))


def simulate(
    run: study.Run,
    algorithm: ffm.Algorithm,
    train: list[Any],
    *,
    rounds: int,
    cohort_size: int,
    rows_a_round: float | None = None,
    **how: Any,
) -> study.Simulated:
    """A run over these clients, whose curve is the score on held-out examples."""
    data, settings = run.data, run.config
    if rows_a_round is None:
        rows_a_round = looks.rows_a_round(settings, data)
    every = looks.planned(settings, data, rounds, rows_a_round).every
    more = {"every": every, "test": joined(data.judged), "task": data.task}
    more |= {**_scoring(data), **how}
    found = run.simulate(
        algorithm,
        ffm.Population.from_clients(train),
        data.adapted.delta,
        rounds,
        backbone=data.adapted.backbone,
        cohort_size=cohort_size,
        **more,
    )
    if data.prepared.examples.kind not in ("classes", "pairs"):
        for row in run.curve:
            if "eval_loss" in row:
                row["eval_perplexity"] = float(np.exp(row["eval_loss"]))
    return found


def _scoring(data: Data) -> dict[str, Any]:
    """How held-out examples are scored: short texts cost less."""
    is_text = (
        "attention_mask" in data.train[0] and data.prepared.subject.model_type != "t5"
    )
    return {"batch_size": 16, "bucket": BUCKET if is_text else None}


def scores_of(
    run: study.Run,
    found: study.Simulated,
    task: ffm.Task | None = None,
    *,
    own: list[Any] | None = None,
) -> dict[str, float]:
    """The scores of a model, on unseen clients and on the clients' own examples."""
    data, is_personal = run.data, found.simulator.is_personal
    shown, name = _exponential, "loss"
    if data.prepared.examples.kind == "classes":
        shown, name = _same, "accuracy"
    if data.prepared.examples.kind == "pairs":
        shown, name = _same, preferred.ACCURACY
    primary = "perplexity" if name == "loss" else name
    how = _scoring(data)
    own_task = data.task if task is None else task
    mine = data.own if own is None else own
    groups = [(k, rows) for k, rows in enumerate(mine) if length(rows)]

    def of(name: str) -> tuple[np.ndarray, np.ndarray]:
        if is_personal and not data.unseen:
            return _personal(found, own_task, groups, name, how)
        return judged(found, own_task, data.judged, name, **how)

    means, weights = of(name)
    run.clients = shown(means).tolist()
    scores = {
        primary: _mean(shown, means, weights),
        "worst": worst_decile(shown(means), name.removeprefix("pair_")),
    }
    if name == preferred.ACCURACY:
        margins, _ = of("margin")
        scores["margin"] = float(np.average(margins, weights=weights))
        run.notes["over_clients"] = preferred.over_clients(means, margins)
    if data.unseen and groups and not run.is_tuning:
        if is_personal:
            own_means, own_weights = _personal(found, own_task, groups, name, how)
        else:
            rows = [one for _, one in groups]
            own_means, own_weights = judged(found, own_task, rows, name, **how)
        scores["own"] = _mean(shown, own_means, own_weights)
        scores["own_worst"] = worst_decile(shown(own_means), name.removeprefix("pair_"))
    if data.agreements:
        scores |= _agreements(run, found, own_task is data.personal_task, groups)
    return scores


def _agreements(
    run: study.Run, found: study.Simulated, is_beside: bool, own: list[tuple[int, Any]]
) -> dict[str, float]:
    """Scores of all examples together that are no means over them.

    Where one of them decides, the clients' scores and the worst tenths are of it, too.
    """
    data = run.data
    model = peft.beside(data.adapted) if is_beside else data.adapted
    task = of_data.task_of(data.prepared.subject, model, predictions=True)
    unseen = list(enumerate(data.judged))
    is_own = found.simulator.is_personal and not data.unseen
    each = _predicted(found, task, own if is_own else unseen, _scoring(data))
    scores = {name: _together(name, each) for name in data.agreements}
    first = data.agreements[0]
    if data.prepared.source.metrics[0] != first:
        return scores
    run.clients = [AGREEMENTS[first](*one) for one in each]
    scores["worst"] = _worst(run.clients)
    if data.unseen and own and not run.is_tuning:
        of_own = _predicted(found, task, own, _scoring(data))
        scores["own"] = _together(first, of_own)
        scores["own_worst"] = _worst([AGREEMENTS[first](*one) for one in of_own])
    return scores


def _predicted(
    found: study.Simulated, task: ffm.Task, groups: list[tuple[int, Any]], how: Any
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(predicted, true) classes of each group, by the models that `judged` takes."""
    is_personal = found.simulator.is_personal
    n_models = found.simulator.population.n_clients if is_personal else 1
    pairs = []
    for k, rows in groups:
        scores = ffm.evaluate(task, *found.model(k % n_models), rows, **how)
        pairs.append((scores["predicted"].astype(np.int64), np.asarray(rows["label"])))
    return pairs


def _together(name: str, each: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """A score of all groups' rows together."""
    predicted, true = (np.concatenate(side) for side in zip(*each, strict=True))
    return AGREEMENTS[name](predicted, true)


def _worst(values: list[float]) -> float:
    return worst_decile(np.array(values), higher_is_better=True)


def _personal(
    found: study.Simulated,
    task: ffm.Task,
    groups: list[tuple[int, Any]],
    name: str,
    how: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """(means, weights) of each client's own model on its own examples."""
    means, weights = [], []
    for k, rows in groups:
        scores = ffm.evaluate(task, *found.model(k), rows, **how)
        weight = scores.get("weight", np.ones_like(scores["loss"])).astype(np.float64)
        means.append(np.average(scores[name], weights=weight))
        weights.append(weight.sum())
    return np.array(means), np.array(weights)


def _mean(
    shown: Callable[[np.ndarray], np.ndarray], means: np.ndarray, weights: np.ndarray
) -> float:
    """The mean over all examples or tokens, as it is shown."""
    mean = np.array([np.average(means, weights=weights)])
    return float(shown(mean)[0])


def _exponential(values: np.ndarray) -> np.ndarray:
    return np.exp(values)


def _same(values: np.ndarray) -> np.ndarray:
    return values
