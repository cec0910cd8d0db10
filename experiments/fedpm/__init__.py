"""What is a network worth whose weights nobody trained, and what do its masks cost on the wire?

The 1797 handwritten digits of scikit-learn (Alpaydin and Kaynak, 1998). A quarter is
for tuning; of the rest, dealt anew for every seed, 300 are the test and 20 clients have
the others, by a Dirichlet partition over the label (alpha 0.3). A multi-layer
perceptron without biases, 84,480 weights; 10 clients a round, 3 epochs each, 50 rounds.
The clients' rate (Adam on scores, SGD for FedAvg) is chosen for FedPM, for its sparse
start and for FedAvg.

Score: accuracy of the mean probabilities of three drawn networks, as the authors test.
Besides: that of theta > 1/2, the mean of single draws, and what the uploads of one more
round would cost in bits a parameter, with the model of the coder: by entropy and by an
arithmetic coder, one law for all or one for each layer, or the law that both ends know,
theta.

Controls: FedPM that never learns, FedPM on shuffled labels, the largest class.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import study, tasks
from fedjax_fm.algorithms.fedpm import (
    fedpm,
    masked,
    sample_masks,
    signed_constants,
    threshold_masks,
)
from fedjax_fm.channels import identity
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.fedpm.bits import bits_of
from fedjax_fm.experiments.shared.digits import Arrays, Digits, deal
from fedjax_fm.experiments.shared.sentences import shuffled_labels
from fedjax_fm.types import Channel, Tree

CODED_CLIENTS = 3  # whose uploads are written by the arithmetic coder


@dataclass(frozen=True)
class Config:
    """Settings."""

    clients: int = 20
    alpha: float = 0.3
    test: int = 300
    width: int = 256
    rounds: int = 50
    epochs: int = 3
    batch_size: int = 16
    grid: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)  # the clients' learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """Does it work?"""
        return dataclasses.replace(self, width=64, rounds=3, grid=(0.3,), seeds=(0, 1))

    @property
    def shapes(self) -> dict[str, Any]:
        """Of the weights."""
        sizes = {
            "w0": (64, self.width),
            "w1": (self.width, self.width),
            "w2": (self.width, 10),
        }
        return {
            name: jax.ShapeDtypeStruct(size, jnp.float32)
            for name, size in sizes.items()
        }


def data(config: Config, seed: int, split: str) -> Digits:
    """Deals the split's images."""
    return deal(
        seed, split, clients=config.clients, alpha=config.alpha, test=config.test
    )


def logits(
    weights: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any
) -> jax.Array:
    """f32[n, 10]."""
    hidden = jax.nn.relu(jax.nn.relu(batch["x"] @ weights["w0"]) @ weights["w1"])
    return hidden @ weights["w2"]


def of_several(
    networks: list[Tree], backbone: Tree, batch: dict[str, jax.Array], key: Any
) -> jax.Array:
    """The logarithm of the mean of their probabilities."""
    each = jnp.stack(
        [
            jax.nn.log_softmax(logits(weights, backbone, batch, key))
            for weights in networks
        ]
    )
    return jax.nn.logsumexp(each, axis=0) - math.log(len(networks))


TASK, SEVERAL = tasks.from_logits(logits), tasks.from_logits(of_several)


def accuracy(networks: list[Tree], test: Arrays) -> float:
    """Of the networks' mean probabilities."""
    return means(ffm.evaluate(SEVERAL, networks, (), test))["accuracy"]


def remembering() -> Channel:
    """The channel that changes nothing, with each client's last upload kept in the
    store of channel states.
    """
    plain = identity()
    return Channel(
        init=lambda shapes: jax.tree.map(
            lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes
        ),
        encode=lambda state, tree, key: (plain.encode((), tree, key)[0], tree),
        decode=plain.decode,
        bits=plain.bits,
    )


def bits_of_next_round(done: study.Simulated) -> dict[str, float]:
    """What those who come in one more round send; means over a few of them."""
    theta = jax.tree.map(np.array, done.state.delta)
    old = jax.tree.map(np.array, done.state.carry.uplinks[0])
    after, _ = done.simulator.run(done.state, 1)
    new = jax.tree.map(np.array, after.carry.uplinks[0])
    changed = [
        (old[name] != new[name]).reshape(len(new[name]), -1).any(axis=1) for name in new
    ]
    came = np.flatnonzero(np.any(changed, axis=0))[:CODED_CLIENTS]
    found = [
        bits_of({name: leaf[k] for name, leaf in new.items()}, theta) for k in came
    ]
    return {name: float(np.mean([bits[name] for bits in found])) for name in found[0]}


def masks(
    start: float = 0.0, rate: float | None = None, shuffle: bool = False, **how: Any
) -> Any:
    """An arm: FedPM whose masks start at sigmoid(N(start, 1)), with the tuned rate if
    none is given.
    """

    def arm(run: study.Run) -> dict[str, float]:
        config, found, key = run.config, run.data, jax.random.key(run.seed)
        weights = signed_constants(config.shapes, key)
        keys = [jax.random.fold_in(key, 100 + i) for i in range(len(weights))]
        scores = {
            name: start + jax.random.normal(own, leaf.shape)
            for own, (name, leaf) in zip(keys, weights.items(), strict=True)
        }
        algorithm = fedpm(
            TASK,
            optax.adam(run["learning_rate"] if rate is None else rate),
            epochs=config.epochs,
            batch_size=config.batch_size,
            **{"softening": 1e-3, "reset_every": 1, **how},
        )
        done = simulate(
            run,
            algorithm,
            jax.tree.map(jax.nn.sigmoid, scores),
            shuffle,
            weights,
            uplink=remembering(),
        )
        theta = done.state.delta
        networks = [
            masked(weights, sample_masks(theta, jax.random.key(i))) for i in range(3)
        ]
        return {
            "accuracy": accuracy(networks, found.test),
            "threshold": accuracy(
                [masked(weights, threshold_masks(theta))], found.test
            ),
            "one draw": float(
                np.mean([accuracy([network], found.test) for network in networks])
            ),
            "ones": float(done.metrics["density"][-1]),
            "all rounds": float(done.metrics["bits_per_parameter"].mean()),
            **({} if run.is_tuning else bits_of_next_round(done)),
        }

    return arm


def trained(run: study.Run) -> dict[str, float]:
    """The same network, trained in full precision from weights of He's scale."""
    config = run.config
    start = signed_constants(config.shapes, jax.random.key(run.seed), gain=math.sqrt(2))
    sgd = optax.sgd(run["learning_rate"])
    algorithm = ffm.fedavg(
        TASK, sgd, epochs=config.epochs, batch_size=config.batch_size
    )
    done = simulate(run, algorithm, start)
    return {"accuracy": accuracy([done.state.delta], run.data.test)}


def simulate(
    run: study.Run,
    algorithm: Any,
    delta: Tree,
    shuffle: bool = False,
    backbone: Tree = (),
    **how: Any,
) -> study.Simulated:
    """Half of the clients each round."""
    clients = run.data.clients
    if shuffle:
        clients = ffm.Population.from_arrays(
            shuffled_labels(clients.arrays, run.seed), clients.offsets
        )
    return run.simulate(
        algorithm,
        clients,
        delta,
        run.config.rounds,
        backbone=backbone,
        cohort_size=clients.n_clients // 2,
        task=TASK,
        test=run.data.test,
        **how,
    )


def largest_class(run: study.Run) -> dict[str, float]:
    """One answer for all images."""
    return {
        "accuracy": float(
            np.bincount(run.data.test["label"]).max() / len(run.data.test["label"])
        )
    }


GRID = {"learning_rate": "grid"}
VARIANTS = (
    study.Arm("sparse", masks(start=-2.0), "FedPM, sparse start", GRID),
    study.Arm(
        "softening",
        masks(softening=0.01),
        "FedPM, softening 0.01 (authors' code)",
        like="fedpm",
    ),
    study.Arm(
        "reset", masks(reset_every=2), "FedPM, prior reset every 2 rounds", like="fedpm"
    ),
)
METHODS = (study.Arm("fedpm", masks(), "FedPM", GRID), *VARIANTS)
CONTROLS = (
    study.Arm("never_learns", masks(rate=0.0), "FedPM that never learns"),
    study.Arm("shuffled", masks(shuffle=True), "FedPM, shuffled labels", like="fedpm"),
    study.Arm("largest_class", largest_class, "the largest class"),
)

STUDY = study.Study(
    question="What is a network worth whose weights nobody trained, and what do its masks "
    "cost on the wire?",
    expected="FedPM near FedAvg at less than one bit a parameter; better with its prior "
    "reset every 2 rounds, as half of the clients take part; theta > 1/2 below "
    "the drawn networks",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(*METHODS, study.Arm("fedavg", trained, "FedAvg, 32 bits", GRID), *CONTROLS),
    comparisons=[*study.against("fedpm", VARIANTS), *study.against("fedavg", METHODS)],
    controls=tuple(study.Control(control.name, "fedpm") for control in CONTROLS),
    scores=(
        study.Score("threshold", "theta > 1/2", unit="%", scale=100.0),
        study.Score("one draw", "single draws", unit="%", scale=100.0),
        study.Score("ones", "share of ones", digits=2),
        *(
            study.Score(name, label, unit="bits", highest=False, digits=3)
            for name, label in {
                "entropy": "",
                "coded": "",
                "entropy by layer": "",
                "coded by layer": "",
                "coded given theta": "",
                "all rounds": "entropy, all rounds",
            }.items()
        ),
    ),
)
