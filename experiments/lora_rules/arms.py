"""The arms: all learning rates of a rule side by side, then a run with the best."""

import jax

import fedjax_fm as ffm
from fedjax_fm import peft, study, tasks, trees
from fedjax_fm.callbacks.looks import client_scores
from fedjax_fm.experiments.lora_rules.rules import accuracy, made, method, ranks_of
from fedjax_fm.experiments.shared.budgets import at_most
from fedjax_fm.experiments.shared.controls import as_it_begins
from fedjax_fm.experiments.shared.side_by_side import finite, scores_by_rate
from fedjax_fm.experiments.shared.words import with_shuffled_labels
from fedjax_fm.study.judged import joined


def trained(run: study.Run, rule: str, shuffle: bool = False) -> dict[str, float]:
    """One rule, or the "head"; while tuning at all learning rates at once.

    Args:
      run: of the arm.
      rule: its name.
      shuffle: permutes the labels of the clients' words.
    """
    if run.is_tuning:
        swept = run.once(("sweep", rule), lambda: sweep(run, rule))
        return {"accuracy": finite(swept[run["learning_rate"]])}
    config, data = run.config, run.data
    ready = made(run, rule)
    clients = with_shuffled_labels(data.train, run.seed) if shuffle else data.train
    found = run.simulate(
        ready.algorithm(run["learning_rate"]),
        clients,
        ready.delta,
        backbone=ready.backbone,
        cohort_size=min(config.cohort, config.clients),
        task=ready.task,
        test=data.own,
        every=1,
    )
    each = run.score_clients(found, ready.task, data.own, "accuracy")
    start = as_it_begins(ready.task, ready.delta, ready.backbone, joined(data.own))
    within = at_most(run.curve, of_fedit(run), "eval_accuracy", start)
    return {"accuracy": float(each.mean()), "at_bytes": within}


def sweep(run: study.Run, rule: str) -> dict[float, float]:
    """{learning rate: accuracy} of a rule, all rates as one program.

    Args:
      run: of the arm.
      rule: its name.

    Returns:
      NaN at a rate at which training was not finite.
    """
    config, ready = run.config, made(run, rule)
    judged = ffm.Population.from_clients(run.data.own)

    def of_clients(simulator: ffm.Simulator, state: ffm.SimulationState) -> float:
        return accuracy(client_scores(simulator, state, ready.task, judged))

    return scores_by_rate(
        run,
        ready.algorithm,
        config.rates,
        ready.delta,
        config.rounds,
        score=of_clients,
        backbone=ready.backbone,
        cohort_size=min(config.cohort, config.clients),
    )


def of_fedit(run: study.Run) -> int:
    """Bytes that FedIT sends in all rounds, both ways, with whole cohorts.

    Args:
      run: of the arm.
    """
    adapted = peft.apply(run.data.model, method(run, "fedit"))
    whole, ranks = trees.nbytes(adapted.delta), ranks_of(run.config)
    head = trees.nbytes(peft.apply(run.data.model, peft.head()).delta)
    mean = head + (whole - head) * ranks.mean() / ranks.max()
    cohort = min(run.config.cohort, run.config.clients)
    return round(2 * run.config.rounds * cohort * mean)


def untrained(run: study.Run) -> dict[str, float]:
    """The random head."""
    adapted = peft.apply(run.data.model, peft.head(), jax.random.key(run.seed))
    task, own = tasks.token_classification(adapted), joined(run.data.own)
    return {"accuracy": as_it_begins(task, adapted.delta, adapted.backbone, own)}
