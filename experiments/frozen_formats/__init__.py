"""What does LoRA lose over a frozen model of bf16, int8 or NF4?

MiniLM (22.7 million weights), LoRA of rank 8 on query and value and a head. 64 clients, 16 of
each of four domains of rated sentences, 80 training sentences each; FedAvg, 5 clients a round, 4
Adam steps of 8 sentences, 10 rounds. All but the format of the frozen weights is the same by
seed: head, factors, cohorts, batches, rate. bf16 is weights and activations; the other formats
hold the layers' matrices, while embeddings, norms, biases and pooler are f32 (or bf16 where
said), and activations too.

Score: accuracy on 12 sentences of each client, of documents that no client trains on. Beside it:
test loss; how far the training loss of a round is from that over f32, as a share of it, at most,
in the mean and in the last round; bytes. SmolLM2-135M, whose weights come from a file of 4-bit
blocks, is read only: nats a token on speeches of Shakespeare and on rated sentences.

Controls: f32 on shuffled labels; and f32 with the values of every array in other places: if it is
not worse, the frozen weights do not matter, and nor does their format.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import datasets, models, peft, study, tasks, trees
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.shared.sentences import (
    Arrays,
    deal,
    of_split,
    sentences,
    shuffled_labels,
)


@dataclass(frozen=True)
class Config:
    """Settings."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    decoder: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    decoder_rows: int = 16  # of each kind of text; 0 leaves the decoder out
    decoder_length: int = 64
    max_length: int = 40
    rank: int = 8
    per_domain: int = 16  # clients
    train: int = 80  # sentences of a client
    test: int = 12
    cohort: int = 5
    rounds: int = 10
    local_steps: int = 4
    batch_size: int = 8
    grid: tuple[float, ...] = (2.5e-3, 5e-3, 1e-2)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works; without the decoder."""
        return dataclasses.replace(
            self,
            decoder_rows=0,
            max_length=12,
            per_domain=2,
            train=16,
            test=8,
            rounds=2,
            grid=(5e-3,),
            seeds=(0, 1),
        )


class Data(NamedTuple):
    """The clients' sentences."""

    train: list[Arrays]
    test: Arrays  # of all clients


def data(config: Config, seed: int, split: str) -> Data:
    """Deals the split's documents to clients."""
    found = sentences(config.model, config.max_length)
    how = {"train": config.train, "test": config.test, "per_domain": config.per_domain}
    clients = deal(found, of_split(found, split, 0.4), seed, **how)
    tests = np.concatenate([client.test for client in clients])
    return Data([found.take(client.train) for client in clients], found.take(tests))


class Format(NamedTuple):
    """How frozen weights are held: arguments of `from_pretrained`."""

    dtype: str = "float32"
    frozen: str = "dense"


F32 = Format()


def adapted(run: study.Run, form: Format, permute: bool = False) -> peft.Adapted:
    """MiniLM with LoRA and a head, whose initial values are the same in every format."""
    config, how = run.config, form._asdict()
    model = models.from_pretrained(
        config.model, num_labels=2, pooling="mean", seed=run.seed, **how
    )
    method = peft.lora(config.rank, 2.0 * config.rank, targets=r"query|value")
    found = peft.apply(model, method, jax.random.key(run.seed))
    if not permute:
        return found
    random = np.random.default_rng(run.seed)

    def elsewhere(leaf: jax.Array) -> np.ndarray:
        flat = random.permutation(np.ravel(leaf))
        return flat.reshape(leaf.shape)

    return found._replace(backbone=jax.tree.map(elsewhere, found.backbone))


def simulated(
    run: study.Run, own: peft.Adapted, train: list[Arrays]
) -> study.Simulated:
    """FedAvg, evaluated on the test set half-way and at the end."""
    config, task = run.config, tasks.classification(own)
    steps = {"local_steps": config.local_steps, "batch_size": config.batch_size}
    algorithm = ffm.fedavg(task, optax.adam(run["learning_rate"]), **steps)
    return run.simulate(
        algorithm,
        ffm.Population.from_clients(train),
        own.delta,
        config.rounds,
        backbone=own.backbone,
        cohort_size=config.cohort,
        task=task,
        test=run.data.test,
        every=max(1, config.rounds // 2),
    )


def over(form: Format, shuffle: bool = False, permute: bool = False) -> Callable:
    """An arm: LoRA over frozen weights of a format."""

    def arm(run: study.Run) -> dict[str, float]:
        own, train = adapted(run, form, permute), run.data.train
        if shuffle:
            train = [shuffled_labels(client, run.seed) for client in train]
        found = simulated(run, own, train)
        scores = {"megabytes": trees.nbytes(own.backbone) / 1e6, **found.scores}
        if shuffle or permute or run.is_tuning:
            return scores
        return {**scores, **distances(run, found.metrics["loss"]), **decoder(run, form)}

    return arm


def distances(run: study.Run, loss: np.ndarray) -> dict[str, float]:
    """How far the training losses of all rounds are from those over f32.

    Args:
      run: of the arm.
      loss: f64[rounds].
    """

    def reference() -> np.ndarray:
        found = simulated(run, adapted(run, F32), run.data.train)
        return found.metrics["loss"]

    f32 = run.once("f32", reference)
    share = np.abs(loss - f32) / f32
    return {"largest": share.max(), "mean": share.mean(), "last": share[-1]}


def decoder(run: study.Run, form: Format) -> dict[str, float]:
    """Nats a token of the decoder, untrained, on both kinds of text, and its size."""
    config = run.config
    if not config.decoder_rows:
        return {}
    model: Any = models.from_pretrained(config.decoder, **form._asdict())
    no_effect = peft.lora(1, targets="q_proj")  # before training
    own = peft.apply(model, no_effect)
    task = tasks.language_modeling(own)
    found = {"decoder_megabytes": trees.nbytes(own.backbone) / 1e6}
    of_both = run.once("texts", lambda: texts(config, run.seed))
    for name, rows in of_both.items():
        scores = ffm.evaluate(task, own.delta, own.backbone, rows, batch_size=8)
        found[name] = means(scores)["loss"]
    return found


def texts(config: Config, seed: int) -> dict[str, Arrays]:
    """Rows of both kinds of text, of at least 16 tokens."""
    tokenizer = models.load_tokenizer(config.decoder)
    lines = {
        "shakespeare": datasets.load_shakespeare()["speech"],
        "sentences": datasets.load_sentiment()["text"],
    }
    found = {}
    for name, some in lines.items():
        long, random = [], np.random.default_rng(seed)
        for i in random.permutation(len(some)):
            if len(long) == config.decoder_rows:
                break
            ids = tokenizer.encode(str(some[i])).ids[: config.decoder_length]
            if len(ids) >= 16:
                long.append(ids)
        rows = models.pad_prompts(long, 0, config.decoder_length)
        found[name] = {**rows, "labels": rows["input_ids"]}
    return found


FORMATS = (
    study.Arm("f32", over(F32), grid={"learning_rate": "grid"}),
    study.Arm("bf16", over(Format("bfloat16")), like="f32"),
    study.Arm("int8", over(Format(frozen="int8")), like="f32"),
    study.Arm("nf4", over(Format(frozen="nf4")), "NF4", like="f32"),
    study.Arm(
        "nf4_double",
        over(Format("bfloat16", "nf4_double")),
        "NF4 double, rest bf16",
        like="f32",
    ),
)
CONTROLS = (
    study.Arm("shuffled", over(F32, shuffle=True), "f32, shuffled labels", like="f32"),
    study.Arm("permuted", over(F32, permute=True), "f32, weights permuted", like="f32"),
)


def percent(name: str, label: str) -> study.Score:
    """A distance of the training loss, as a score."""
    return study.Score(name, label, "%", 100.0, highest=False)


STUDY = study.Study(
    question="What does LoRA lose over a frozen model of bf16, int8 or NF4?",
    expected="nothing that is seen; NF4 furthest from f32 in its losses, then bf16, int8 nearest",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    scores=(
        study.LOSS,
        percent("largest", "loss curve from f32: largest"),
        percent("mean", "mean"),
        percent("last", "last round"),
        study.Score("megabytes", "frozen weights", "MB", highest=False),
        study.Score("decoder_megabytes", "SmolLM2", "MB", highest=False),
        study.Score(
            "shakespeare", "SmolLM2 on Shakespeare", "nats", highest=False, digits=3
        ),
        study.Score("sentences", "on sentences", "nats", highest=False, digits=3),
    ),
    arms=(*FORMATS, *CONTROLS),
    comparisons=study.against("f32", FORMATS),
    controls=(
        study.Control("shuffled", "f32"),
        study.Control(
            "permuted",
            "f32",
            "The frozen weights do not matter, and nor does their format.",
        ),
    ),
)
