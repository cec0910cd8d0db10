"""Can scalars alone tune all 22.7 million parameters of a pretrained model?

FedKSeed: a client sends 8 bytes a step for any size of the model. MiniLM with a new head, all of
it trained; 32 clients, 8 of each of four domains of rated sentences, 120 training sentences each;
10 rounds of 4 clients with 5 steps of 32 sentences. `--set text=shakespeare --set cohort=2 --set
rounds=4 --set local_steps=2 --set batch_size=2 --set grid=1e-6,3e-6,1e-5` does the same with all
134.5 million of SmolLM2-135M on 32 roles of Shakespeare, judged on plays that no client has.

Score: loss on sentences of documents that no client trains on. Beside it, XLA's numbers for
compiled programs: the memory of a client at work beyond its arguments, its results and a model
of its own, and that of a forward pass, of a perturbed model where the method has one. FedAvg
with SGD shows what gradients reach in as many steps.

Controls: a server that applies the same scalars along other directions; and no training.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import datasets, models, peft, study, tasks, trees
from fedjax_fm.algorithms.fedkseed import fedkseed
from fedjax_fm.directions import perturb
from fedjax_fm.engine.billing import unwrapped
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.shared.sentences import Arrays, deal, of_split, sentences
from fedjax_fm.models.perturbed import read_by_rows
from fedjax_fm.types import ClientData, Setting

EPSILON = 1e-3


@dataclass(frozen=True)
class Config:
    """Settings."""

    text: Literal["sentiment", "shakespeare"] = "sentiment"
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    decoder: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    max_length: int = 32
    decoder_length: int = 64
    per_domain: int = 8  # clients
    train: int = 120  # sentences of a client
    test: int = 16
    plays: int = 16  # of the roles that train, at most two thirds of the split's
    roles: int = 32  # that train, and half as many that test
    cohort: int = 4
    rounds: int = 10
    tuning_rounds: int = 5
    local_steps: int = 5
    batch_size: int = 32
    grid: tuple[float, ...] = (1e-3, 3e-3, 1e-2)  # of FedKSeed
    sgd_grid: tuple[float, ...] = (1e-2, 3e-2, 1e-1)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        return dataclasses.replace(
            self,
            max_length=12,
            per_domain=1,
            train=16,
            test=8,
            rounds=2,
            tuning_rounds=1,
            local_steps=2,
            batch_size=8,
            grid=(3e-3,),
            sgd_grid=(3e-2,),
            seeds=(0, 1),
        )


class Data(NamedTuple):
    """Text dealt to clients, and a model of which everything is trained."""

    train: list[Arrays]
    test: Arrays
    adapted: peft.Adapted
    task: ffm.Task


def data(config: Config, seed: int, split: str) -> Data:
    """Clients with sentences of a domain, or roles of some plays."""
    read = sentiment if config.text == "sentiment" else shakespeare
    return read(config, seed, split)


def sentiment(config: Config, seed: int, split: str) -> Data:
    """Each client has sentences of one domain."""
    found = sentences(config.encoder, config.max_length)
    how = {"train": config.train, "test": config.test, "per_domain": config.per_domain}
    clients = deal(found, of_split(found, split, 0.4), seed, **how)
    tests = np.concatenate([client.test for client in clients])
    model = models.from_pretrained(
        config.encoder, num_labels=2, pooling="mean", seed=seed
    )
    adapted = peft.apply(read_by_rows(model), peft.full())
    return Data(
        train=[found.take(client.train) for client in clients],
        test=found.take(tests),
        adapted=adapted,
        task=tasks.classification(adapted),
    )


def shakespeare(config: Config, seed: int, split: str) -> Data:
    """Each client has the rows of one role; tests and tuning have other plays."""
    table = datasets.load_shakespeare()
    tokenizer = models.load_tokenizer(config.decoder)
    names = np.unique(table["play"])
    plays = np.random.default_rng(0).permutation(names)
    mine = plays[: len(plays) // 3] if split == "tuning" else plays[len(plays) // 3 :]
    mine = np.random.default_rng(seed).permutation(mine)
    n = min(config.plays, 2 * len(mine) // 3)

    def rows_of(role: str) -> Arrays:
        speeches = [str(text) for text in table["speech"][table["client"] == role]]
        encoded = tokenizer.encode("\n\n".join(speeches))
        ids, length = np.array(encoded.ids, np.int32), config.decoder_length
        ids = ids[: len(ids) // length * length].reshape(-1, length)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}

    def largest(plays: np.ndarray, n: int) -> list[Arrays]:
        inside = np.isin(table["play"], plays)
        roles, counts = np.unique(table["client"][inside], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [rows_of(role) for role in roles[order[:n]]]

    strangers = largest(mine[n:], config.roles // 2)
    test = {
        name: np.concatenate([rows[name][:2] for rows in strangers])
        for name in strangers[0]
    }
    model = read_by_rows(models.from_pretrained(config.decoder))
    adapted = peft.apply(model, peft.full())
    return Data(
        train=largest(mine[:n], config.roles),
        test=test,
        adapted=adapted,
        task=tasks.language_modeling(Tied(adapted)),
    )


class TiedHead(NamedTuple):
    """A decoder whose head draws its rows in blocks."""

    hidden: Callable
    head: Callable


class Tied(NamedTuple):
    """An adapted decoder with such a head."""

    adapted: peft.Adapted

    def model(self, *parts: Any) -> TiedHead:
        """The model of some parts, as `Adapted.model`.

        Args:
          *parts: delta and backbone.
        """
        decoder = self.adapted.model(*parts)
        return TiedHead(decoder.hidden, decoder.model.embed_tokens.attend)


def zero_order(run: study.Run, pro: bool) -> ffm.Algorithm:
    """FedKSeed, without a perturbed copy of the model at any time."""
    config, rate = run.config, run["learning_rate"]
    steps = {"local_steps": config.local_steps, "batch_size": config.batch_size}
    return fedkseed(run.data.task, rate, epsilon=EPSILON, pro=pro, lazy=True, **steps)


def kseed(pro: bool = False, confuse: bool = False) -> Callable:
    """An arm: FedKSeed, or FedKSeed-Pro."""

    def arm(run: study.Run) -> dict[str, float]:
        algorithm = zero_order(run, pro)
        algorithm = confused(algorithm) if confuse else algorithm
        return {**trained(run, algorithm), "forward": forward(run, perturbed=True)}

    return arm


def confused(algorithm: ffm.Algorithm) -> ffm.Algorithm:
    """The same, but the server applies the scalars along other directions."""
    (exchange,) = algorithm.exchanges

    def server(state, aggregate, key):
        other = state._replace(master=state.master + 1)
        after, metrics = exchange.server(other, aggregate, key)
        return after._replace(master=state.master), metrics

    return algorithm._replace(exchanges=(exchange._replace(server=server),))


def fedavg(run: study.Run) -> dict[str, float]:
    """Gradients, in as many steps."""
    config, optimizer = run.config, optax.sgd(run["learning_rate"])
    steps = {"local_steps": config.local_steps, "batch_size": config.batch_size}
    return trained(run, ffm.fedavg(run.data.task, optimizer, **steps))


def trained(run: study.Run, algorithm: ffm.Algorithm) -> dict[str, float]:
    """Loss (and accuracy) on the test set, and the memory of a client at work."""
    config, own = run.config, run.data
    rounds = config.tuning_rounds if run.is_tuning else config.rounds
    found = run.simulate(
        algorithm,
        ffm.Population.from_clients(own.train),
        own.adapted.delta,
        rounds,
        backbone=own.adapted.backbone,
        cohort_size=config.cohort,
        task=own.task,
        test=own.test,
        every=max(1, rounds // 4),
        batch_size=32,
        devices=1,
        block_size=1,
    )
    return {**found.scores, "client": at_work(run, algorithm)}


def untrained(run: study.Run) -> dict[str, float]:
    """The model before training."""
    own, adapted = run.data, run.data.adapted
    scores = ffm.evaluate(
        own.task, adapted.delta, adapted.backbone, own.test, batch_size=32
    )
    return {**means(scores), "forward": forward(run)}


def scratch(f: Callable, *arguments: Any) -> int:
    """Bytes that a compiled function needs beyond its arguments and its result.

    Args:
      f: is compiled, not run.
      *arguments: of the function.

    Raises:
      ValueError: the backend does not tell.
    """
    compiled = jax.jit(f).lower(*arguments).compile()
    found = compiled.memory_analysis()
    if found is None:
        raise ValueError(
            "this backend does not tell what memory a compiled function needs"
        )
    return found.temp_size_in_bytes


def batch_of(run: study.Run) -> dict[str, jax.Array]:
    """One client's first batch."""
    size, first = run.config.batch_size, run.data.train[0]
    return {name: jnp.asarray(rows[:size]) for name, rows in first.items()}


def forward(run: study.Run, perturbed: bool = False) -> float:
    """Scratch of a forward pass, MB.

    Args:
      run: of the arm.
      perturbed: whether weights are perturbed as they are read.
    """
    delta, backbone = run.data.adapted.delta, run.data.adapted.backbone

    def loss(delta, batch, scale):
        delta = perturb(delta, jax.random.key(0), scale) if perturbed else delta
        each, _ = run.data.task.loss(delta, backbone, batch, None)
        return each.mean()

    def megabytes() -> float:
        return scratch(loss, delta, batch_of(run), jnp.float32(EPSILON)) / 1e6

    return run.once(("forward", perturbed), megabytes)


def at_work(run: study.Run, algorithm: ffm.Algorithm) -> float:
    """Scratch of a client's work without a model of its own, MB."""
    own, batch, size = run.data.adapted, batch_of(run), run.config.batch_size
    (exchange,) = algorithm.exchanges
    setting = Setting(n_clients=1, cohort_size=1)
    state = algorithm.init(own.delta, jax.random.key(0), setting)

    def work(message, batch, n_steps):
        zero, real = jnp.int32(0), jnp.ones(size, bool)
        some = ClientData(
            id=zero,
            round=zero,
            n_examples=jnp.int32(size),
            n_steps=n_steps,
            batch=lambda i: (batch, real),
            repeat=zero,
        )
        one = exchange.client(own.backbone, message)
        return one(message, (), some, jax.random.key(1)).upload

    message = unwrapped(exchange.broadcast(state))
    needed = scratch(work, message, batch, jnp.int32(1))
    return (needed - trees.nbytes(own.delta)) / 1e6


GRID = {"learning_rate": "grid"}
STUDY = study.Study(
    question="Can scalars alone tune all 22.7 million parameters of a pretrained model?",
    expected="Pro a little better than FedKSeed, both better than no training, FedAvg far better",
    config=Config,
    data=data,
    primary=study.LOSS,
    scores=(
        study.ACCURACY,
        study.Score("client", "a client at work", "MB", highest=False),
        study.Score("forward", "a forward pass", "MB", highest=False),
    ),
    arms=(
        study.Arm("fedkseed", kseed(), "FedKSeed", GRID),
        study.Arm("pro", kseed(pro=True), "FedKSeed-Pro", GRID),
        study.Arm(
            "fedavg", fedavg, "FedAvg, SGD on everything", {"learning_rate": "sgd_grid"}
        ),
        study.Arm(
            "confused",
            kseed(confuse=True),
            "FedKSeed, other directions",
            like="fedkseed",
        ),
        study.Arm("untrained", untrained, "no training"),
    ),
    comparisons=[("pro", "fedkseed"), ("fedkseed", "fedavg")],
    controls=(
        study.Control(
            "confused", "fedkseed", "The scalars say nothing of the directions."
        ),
        study.Control("untrained", "fedkseed"),
    ),
)
