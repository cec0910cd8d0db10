"""The arms of the study of prompts: a part of a model of one size."""

from typing import Any

import jax
import optax

import fedjax_fm as ffm
from fedjax_fm import peft, study, tasks
from fedjax_fm.experiments.prompts.texts import decoder

TOKENS = 16
METHODS = {
    "lora": peft.lora(8, 16.0, targets="q_proj|v_proj"),
    "prompt": peft.prompt_tuning(TOKENS),
    "prefix": peft.prefix_tuning(TOKENS),
    "p_tuning": peft.p_tuning(TOKENS, hidden=144),
}
HOW: dict[str, Any] = {"batch_size": 8, "bucket": 32}  # of evaluations


def tuned(
    run: study.Run, kind: str, size: str, shuffle: bool = False
) -> dict[str, float]:
    """One part of one size."""
    config, data = run.config, run.data
    whole = decoder(config.model, size)
    adapted = peft.apply(whole, METHODS[kind], jax.random.key(run.seed))
    clip = optax.clip_by_global_norm(1.0)
    optimizer = optax.chain(clip, optax.adam(run["learning_rate"]))
    walk = study.walk(config)
    task = tasks.language_modeling(adapted)
    rounds = config.tuning_rounds if run.is_tuning else config.rounds
    found = run.simulate(
        ffm.fedavg(task, optimizer, **walk),
        data.shuffled if shuffle else data.clients,
        adapted.delta,
        rounds,
        backbone=adapted.backbone,
        cohort_size=data.clients.n_clients,
        task=task,
        test=data.test,
        every=rounds,
        **HOW,
    )
    return {"loss": found.scores["loss"]}


def untuned(run: study.Run, size: str) -> dict[str, float]:
    """The model as it is."""
    adapted = peft.apply(decoder(run.config.model, size), METHODS["lora"])
    task = tasks.language_modeling(adapted)
    parts = (adapted.delta, adapted.backbone)
    found = ffm.evaluate(task, *parts, run.data.test, **HOW)
    return {"loss": float(ffm.evaluation.means(found)["loss"])}
