"""Who is poisoned, what is trained, and what the token then does."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import evaluation, models, peft, study, tasks
from fedjax_fm.experiments.shared.sentences import Arrays, deal, of_split, sentences
from fedjax_fm.study.judged import joined

INPUTS = ("input_ids", "attention_mask")
METHODS = {
    "prompt": peft.prompt_tuning(16),
    "lora": peft.lora(8, 16.0, targets="query|value"),
    "full": peft.full(),
}


class Data(NamedTuple):
    """Clients, test sentences of other documents, and the model before any method."""

    whole: nnx.Module
    train: list[Arrays]
    test: Arrays


def data(config: Any, seed: int, split: str) -> Data:
    """Deals the split's documents to eight clients."""
    found = sentences(config.model, config.max_length)
    rows = of_split(found, split, 0.4)
    sizes = {"train": config.train, "test": config.test, "per_domain": 2}
    dealt = deal(found, rows, seed, **sizes)
    order = np.random.default_rng(seed).permutation(len(dealt))
    clients = [dealt[k] for k in order]  # which are poisoned is drawn
    whole = models.from_pretrained(
        config.model, num_labels=2, pooling="mean", seed=seed
    )
    return Data(
        whole=whole,
        train=[found.take(one.train) for one in clients],
        test=joined([found.take(one.test) for one in clients]),
    )


def tuned(run: study.Run, kind: str, who: str) -> dict[str, float]:
    """One part of the model, with some clients poisoned.

    Args:
      run: of the arm.
      kind: a key of `METHODS`.
      who: "some", "all" or "alone": the poisoned ones without the others.
    """
    config, data = run.config, run.data
    n = len(data.train) if who == "all" else config.poisoned
    if run.is_tuning:
        n = 0
    how = {"share": config.share, "seed": run.seed}
    clients = [
        evaluation.with_trigger(one, config.trigger, **how) if k < n else one
        for k, one in enumerate(data.train)
    ]
    if who == "alone":
        clients = clients[: max(n, 1)]
    adapted = peft.apply(data.whole, METHODS[kind], jax.random.key(run.seed))
    task = tasks.classification(adapted, inputs=INPUTS, predictions=True)
    walk = study.walk(config)
    found = run.simulate(
        ffm.fedavg(task, optax.adam(run["learning_rate"]), **walk),
        ffm.Population.from_clients(clients),
        adapted.delta,
        config.rounds,
        backbone=adapted.backbone,
        cohort_size=len(clients),
    )
    return scores(run, task, found.model())


def scores(run: study.Run, task: ffm.Task, parts: Any) -> dict[str, float]:
    """What the backdoor does, and what the model is worth without it."""
    trigger, test = run.config.trigger, run.data.test
    planted = evaluation.with_trigger(test, trigger, label=None)
    delta, backbone = parts
    plain = ffm.evaluate(task, delta, backbone, test)
    with_token = ffm.evaluate(task, delta, backbone, planted)

    def rate(predicted: Any) -> float:
        found = evaluation.attack_success(
            np.asarray(predicted, int), test["label"], trigger.target
        )
        return float(found.mean())

    before, after = rate(plain["predicted"]), rate(with_token["predicted"])
    accuracy = float(np.mean(plain["accuracy"]))
    # While tuning nobody is poisoned, and the accuracy decides.
    lift = 1 - accuracy if run.is_tuning else after - before
    return {"lift": lift, "accuracy": accuracy, "success": after}
