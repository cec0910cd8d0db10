"""How questions are learned from: by rewards, by their answers, or not at all."""

from typing import Any

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import evaluation, preferences, study, tasks
from fedjax_fm.datasets import reasoning
from fedjax_fm.experiments.verifiable.questions import prompt_of
from fedjax_fm.types import Tree

Rows = dict[str, np.ndarray]


def rewarded(run: study.Run, by: str) -> dict[str, float]:
    """GRPO at the clients.

    Args:
      run: of the study.
      by: what earns a reward: "answers", "others" (answers of other questions) or
        "length".
    """
    data, config, start = run.data, run.config, first_rounds(run)
    length = preferences.length_reward
    reward = length if by == "length" else preferences.exact_answer()
    how = preferences.writing(
        config.new_tokens,
        temperature=config.temperature,
        eos_token_id=data.chat.eos_token_id,
        pad_token_id=data.chat.pad_token_id,
    )
    objective = preferences.grpo(
        data.adapted, reward, how, group=config.group, kl=config.kl, reference=start
    )
    method = preferences.federated_policy(
        objective,
        _adam(run["learning_rate"]),
        inner_epochs=config.inner_epochs,
        **study.walk(config),
    )
    clients = data.own if by != "others" else [_turned(rows) for rows in data.own]
    found = _simulated(run, method, clients, start)
    per_step = config.batch_size * config.group * len(clients) * config.local_steps
    written = found.metrics["answer_tokens"] * per_step
    run.notes["answer_tokens"] = float(written.sum())
    run.notes["equal_rewards"] = found.metrics["equal_rewards"].tolist()
    run.notes["reward"] = found.metrics["reward"].tolist()
    return scores(run, found.model()[0])


def shown(run: study.Run) -> dict[str, float]:
    """Tuning on the answers, as many of them as GRPO's clients write."""
    data, config, start = run.data, run.config, first_rounds(run)
    method = ffm.fedavg(
        tasks.language_modeling(data.adapted),
        _adam(run["learning_rate"]),
        local_steps=config.local_steps,
        batch_size=config.batch_size * config.group,
    )
    found = _simulated(run, method, data.shown, start)
    n_tokens = np.mean([(rows["labels"] != -100).sum(1).mean() for rows in data.shown])
    per_step = config.batch_size * config.group * len(data.shown) * config.local_steps
    run.notes["answer_tokens"] = float(run.rounds * per_step * n_tokens)
    return scores(run, found.model()[0])


def as_it_begins(run: study.Run) -> dict[str, float]:
    """The model after the first rounds."""
    return scores(run, first_rounds(run))


def first_rounds(run: study.Run) -> Tree:
    """Tuning on the answers of some questions, once for all arms of a seed."""
    data, config = run.data, run.config
    method = ffm.fedavg(
        tasks.language_modeling(data.adapted),
        _adam(config.first_rate),
        **study.walk(config),
    )

    def start() -> study.Simulated:
        how = {"rounds": config.first_rounds}
        return _simulated(run, method, data.first, data.adapted.delta, **how)

    return run.simulate_once(("first", run.split), start).model()[0]


def scores(run: study.Run, delta: Tree) -> dict[str, float]:
    """What the exact checker says of greedy answers to new questions.

    Args:
      run: has the questions.
      delta: of the model that answers.
    """
    data, config = run.data, run.config
    answers = evaluation.generate_until(
        data.adapted.model(delta),
        [prompt_of(data.chat, str(text)) for text in data.test["prompt"]],
        data.chat.tokenizer,
        max_gen_toks=config.new_tokens,
        eos_token_id=data.chat.eos_token_id,
    )
    by_kind = reasoning.score(data.test, answers)
    run.notes["by_kind"] = {kind: dict(found) for kind, found in by_kind.items()}
    means = {
        name: float(np.mean([found[name] for found in by_kind.values()]))
        for name in ("right", "unparsable")
    }
    encode = data.chat.tokenizer.encode
    n_tokens = [len(encode(one, add_special_tokens=False).ids) for one in answers]
    return {
        "accuracy": means["right"],
        "unparsable": means["unparsable"],
        "tokens": float(np.mean(n_tokens)),
    }


def _turned(rows: Rows) -> Rows:
    """Every question with the answer of another one of the client."""
    return {**rows, "answer_ids": np.roll(rows["answer_ids"], 1, axis=0)}


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


def _adam(rate: float) -> optax.GradientTransformation:
    """Adam behind a clip."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
