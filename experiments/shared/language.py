"""The study of a small decoder that natural clients tune together, on texts of choice."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import channels, study
from fedjax_fm.algorithms import local_only
from fedjax_fm.callbacks.looks import worst_decile
from fedjax_fm.evaluation import rouge_l
from fedjax_fm.experiments.shared.conversations import Rows, Source, Texts, load
from fedjax_fm.finetune.answers import answers as answers_of
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.study.judged import joined, judged

HOW = {"batch_size": 8, "bucket": 32}  # of evaluations
SHOWN = 3  # answers that are kept


@dataclass(frozen=True)
class Config:
    """Settings; those of texts are Shakespeare's."""

    # Population
    clients: int = 64  # that train
    min_texts: int = 20  # of a client
    max_texts: int = 200  # of a client that are used
    tuning_groups: int = 9  # a third of them unseen
    held_out_groups: int = 6  # all of whose clients stay unseen
    held_out_clients: int = 48  # of those, that are scored
    local_test_fraction: float = 0.2  # of a client's own texts, its last ones
    # Model
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    # chat: the model's own
    template: Literal["chat", "alpaca", "alpaca_short"] = "chat"
    dtype: Literal["float32", "bfloat16"] = "float32"
    frozen: Literal["dense", "q4_1"] = "dense"
    max_length: int = 128  # tokens of a prompt and its answer; longer ones are cut
    row_length: int = 256  # tokens of a training row, into which texts are packed
    rank: int = 8
    targets: str = r"q_proj|v_proj"
    # Training
    rounds: int = 8
    tuning_rounds: int = 8
    cohort: int = 8
    local_steps: int = 3
    batch_size: int = 1  # rows, of about three texts each
    # Adam's learning rates, which fall along a cosine over the rounds to a tenth.
    grid: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    clip_norm: float = 1.0  # of a batch's gradient
    bits: int = 8  # of the uplink's codes
    local_only_clients: int = 8  # clients that are trained alone
    # Evaluation
    every: int = 4  # rounds between evaluations on texts of eight unseen clients
    eval_rows: int = 3  # texts of a client that are scored
    forgetting_rows: int = 48  # modern sentences that no client has
    prompts: int = SHOWN  # of unseen clients that are answered
    new_tokens: int = 40
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works; about two minutes."""
        return dataclasses.replace(
            self,
            clients=8,
            held_out_clients=4,
            row_length=self.max_length,
            rounds=2,
            tuning_rounds=1,
            cohort=2,
            local_steps=1,
            grid=(1e-2,),
            local_only_clients=2,
            every=1,
            eval_rows=2,
            forgetting_rows=8,
            prompts=min(self.prompts, 4),
            new_tokens=8,
            seeds=(0,),
        )

    def full(self) -> "Config":
        """Twice as many rounds."""
        return dataclasses.replace(self, rounds=16)


def clipped_adam(
    config: Config, learning_rate: float, rounds: int
) -> Callable[[Any], optax.GradientTransformation]:
    """Clipped Adam whose learning rate falls along a cosine over the rounds.

    Args:
      config: has the norm at which gradients are clipped.
      learning_rate: of the first round.
      rounds: after which it is a tenth.

    Returns:
      A function of the round's number.
    """
    schedule = optax.cosine_decay_schedule(learning_rate, rounds, alpha=0.1)
    return lambda round: optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adam(jnp.asarray(schedule(round))),
    )


def averaging(
    config: Config, task: ffm.Task, learning_rate: float, rounds: int
) -> ffm.Algorithm:
    """FedAvg as the federated arm runs it.

    Args:
      config: of the study.
      task: of the adapted decoder.
      learning_rate: of the first round.
      rounds: over which it falls.
    """
    optimizer = clipped_adam(config, learning_rate, rounds)
    return ffm.fedavg(task, optimizer, **study.walk(config))


def federated(run: study.Run, shuffle: bool = False) -> dict[str, float]:
    """FedAvg of the adapter with quantised uploads."""
    config, data, rounds = run.config, run.data, run.rounds
    train = data.train
    if shuffle:
        train = [without_meaning(rows, run.seed + k) for k, rows in enumerate(train)]
    algorithm = averaging(config, data.task, run["learning_rate"], rounds)
    found = simulate(
        run,
        algorithm,
        train,
        rounds=rounds,
        cohort_size=min(config.cohort, len(train)),
        uplink=channels.quantize(config.bits),
    )
    return scores(run, found)


def centralised(run: study.Run) -> dict[str, float]:
    """One place has all texts.

    A round is a step of clipped Adam on the rows that a cohort reads in one step, so
    that the run reads as many tokens as the federated one.
    """
    config, data = run.config, run.data
    steps = run.rounds * config.local_steps
    schedule = optax.cosine_decay_schedule(run["learning_rate"], steps, alpha=0.1)
    clip = optax.clip_by_global_norm(config.clip_norm)
    algorithm = ffm.fedavg(
        data.task,
        optax.sgd(1.0),
        optax.chain(clip, optax.adam(schedule)),
        local_steps=1,
        batch_size=config.cohort * config.batch_size,
    )
    found = simulate(
        run,
        algorithm,
        [joined(data.train)],
        rounds=steps,
        every=config.every * config.local_steps,
        travels=False,
    )
    return scores(run, found)


def alone(run: study.Run) -> dict[str, float]:
    """Some clients by themselves, for as many rounds as one takes part in on average."""
    config, data = run.config, run.data
    train = data.train[: config.local_only_clients]
    share = min(1, config.cohort / len(data.train))
    rounds = max(1, round(run.rounds * share))
    optimizer = clipped_adam(config, run["learning_rate"], rounds)
    algorithm = local_only(data.task, optimizer, **study.walk(config))
    found = simulate(run, algorithm, train, rounds=rounds, test=None)
    return scores(run, found)


def zero_shot(run: study.Run) -> dict[str, float]:
    """The base model: an adapter that was not trained changes nothing."""
    algorithm = averaging(run.config, run.data.task, 1e-3, 1)
    found = simulate(run, algorithm, run.data.train, rounds=0, cohort_size=1, test=None)
    return scores(run, found)


def without_meaning(rows: Rows, seed: int) -> Rows:
    """The same rows with permuted answer tokens as labels, for a control.

    Args:
      rows: packed.
      seed: of the permutation.
    """
    labels = rows["labels"].copy()
    counts = labels != IGNORED
    labels[counts] = np.random.default_rng(seed).permutation(labels[counts])
    return {**rows, "labels": labels}


def simulate(
    run: study.Run,
    algorithm: ffm.Algorithm,
    train: list[Rows],
    *,
    rounds: int,
    **how: Any,
) -> study.Simulated:
    """A run over these clients, with the perplexity in its curve."""
    data, more = run.data, {"every": run.config.every, "keep": rounds > 0, **HOW}
    more |= {"task": data.task, "test": joined(data.unseen[:8]), **how}
    found = run.simulate(algorithm, train, data.adapted, rounds, **more)
    for row in run.curve:
        if "eval_loss" in row:
            row["eval_perplexity"] = float(np.exp(row["eval_loss"]))
    return found


def scores(run: study.Run, found: study.Simulated) -> dict[str, float]:
    """Perplexity on all groups of texts, token-weighted.

    That of unseen clients is shown one by one in the report.
    """
    data, is_personal = run.data, found.simulator.is_personal
    unseen, tokens = judged(found, data.task, data.unseen, "loss", **HOW)
    scores = {"perplexity": perplexity(unseen, tokens)}
    if run.is_tuning:
        return scores
    n_models = found.simulator.population.n_clients
    own = data.seen[:n_models] if is_personal else data.seen
    seen, seen_tokens = judged(found, data.task, own, "loss", **HOW)
    elsewhere, _ = judged(found, data.task, [data.elsewhere], "loss", **HOW)
    run.clients = np.exp(unseen).tolist()
    scores |= {
        "worst": worst_decile(np.exp(unseen), "perplexity"),
        "seen": perplexity(seen, seen_tokens),
        "seen_worst": worst_decile(np.exp(seen), "perplexity"),
        "elsewhere": float(np.exp(elsewhere[0])),
    }
    if not is_personal:
        written = answers(data, run.config, found)
        wanted = [str(prompt[-1]["content"]) for prompt in data.prompts]
        pairs = list(zip(written, wanted, strict=True))
        run.notes["answers"] = [[right, made] for made, right in pairs[:SHOWN]]
        each = [rouge_l(*pair) for pair in pairs]
        scores["rouge_l"] = float(np.mean(each))
    return scores


def perplexity(losses: np.ndarray, tokens: np.ndarray) -> float:
    """The perplexity of all tokens together.

    Args:
      losses: f64[groups], nats a token.
      tokens: f64[groups], of each group.
    """
    return float(np.exp(np.average(losses, weights=tokens)))


def answers(data: Texts, config: Config, found: study.Simulated) -> list[str]:
    """What the server's model answers to the prompts, greedily."""
    asked = [prompt[:-1] for prompt in data.prompts]
    how = (data.chat, asked, config.new_tokens)
    return answers_of(data.adapted, found.model(), *how)


GRID = {"learning_rate": "grid"}
SHUFFLED: dict[str, Any] = {"shuffle": True, "like": "federated"}
ARMS = (
    study.Arm("federated", federated, "federated LoRA, 8-bit uploads", GRID),
    study.Arm("centralised", centralised, "centralised LoRA, equal tokens", GRID),
    study.Arm("local", alone, "local only, some clients alone", GRID),
    study.Arm("zero_shot", zero_shot, "zero-shot, the base model"),
    study.arm_of("shuffled", federated, "federated, answers shuffled", **SHUFFLED),
)
SCORES = (
    study.Score("worst", "worst tenth of unseen clients", highest=False, digits=1),
    study.Score("seen", "seen clients", highest=False, digits=2),
    study.Score("seen_worst", "worst tenth of seen clients", highest=False, digits=1),
    study.Score("elsewhere", "editorials, of nobody", highest=False, digits=1),
    study.Score("rouge_l", "ROUGE-L, unseen", digits=3),
)


def make(
    source: Callable[[Any], Source], question: str, expected: str, config: type
) -> study.Study:
    """The study of some texts.

    Args:
      source: a function of the configuration that reads the texts.
      question: of the study.
      expected: before the first run.
      config: `Config`, or a class that is derived from it.
    """
    return study.Study(
        question=question,
        expected=expected,
        config=config,
        data=functools.partial(load, source),
        primary=study.PERPLEXITY,
        arms=ARMS,
        comparisons=[
            ("federated", name) for name in ("zero_shot", "local", "centralised")
        ],
        controls=(
            study.Control("zero_shot", "federated"),
            study.Control("shuffled", "federated"),
        ),
        scores=SCORES,
    )
