"""The arms of the table of parts: FedAvg or its private form, and the score at LoRA's bytes."""

import jax
import optax

import fedjax_fm as ffm
from fedjax_fm import peft, privacy, study, trees
from fedjax_fm.algorithms import dp_fedavg
from fedjax_fm.experiments.peft_table.methods import METHODS, OF_PICTURES, lora
from fedjax_fm.experiments.shared.budgets import at_most


def adapted_by(run: study.Run, kind: str) -> peft.Adapted:
    """The model with what is trained of it."""
    methods = OF_PICTURES if run.config.task == "emoji" else METHODS
    method = methods[kind](run.config.rank)
    return peft.apply(run.data.whole, method, jax.random.key(run.seed))


def algorithm_of(run: study.Run, task: ffm.Task) -> ffm.Algorithm:
    """FedAvg, with noise if it is asked for."""
    config, adam = run.config, optax.adam(run["learning_rate"])
    walk = study.walk(config)
    if not config.noise:
        return ffm.fedavg(task, adam, **walk)
    noise = {"noise": privacy.independent(), "noise_multiplier": config.noise}
    return dp_fedavg(task, adam, clip_norm=config.clip_norm, **noise, **walk)


def tuned(run: study.Run, kind: str, shuffle: bool = False) -> dict[str, float]:
    """One part of the model, over all rounds."""
    config, data, adapted = run.config, run.data, adapted_by(run, kind)
    task = data.task(adapted)
    clients = data.with_shuffled_labels(run.seed) if shuffle else data.clients
    found = run.simulate(
        algorithm_of(run, task),
        clients,
        adapted.delta,
        config.rounds,
        backbone=adapted.backbone,
        cohort_size=clients.n_clients,
        task=task,
        test=data.test,
        every=max(1, config.rounds // 4),
        **data.scoring,
    )
    of_lora = peft.apply(data.whole, lora(config.rank)).delta
    budget = 2 * config.rounds * clients.n_clients * trees.nbytes(of_lora)
    start = untrained(run)["accuracy"]
    at_bytes = at_most(run.curve, budget, "eval_accuracy", start)
    return {"accuracy": found.scores["accuracy"], "at_bytes": at_bytes}


def untrained(run: study.Run) -> dict[str, float]:
    """The model with a random head."""
    adapted, data = adapted_by(run, "head"), run.data
    found = ffm.evaluate(
        data.task(adapted), adapted.delta, adapted.backbone, data.test, **data.scoring
    )
    return {"accuracy": float(ffm.evaluation.means(found)["accuracy"])}
