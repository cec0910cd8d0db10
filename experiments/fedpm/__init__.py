"""What are masks over random weights worth, and what do they cost on the wire?

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
        """A small version, to see that it works."""
        return dataclasses.replace(self, width=64, rounds=3, grid=(0.3,), seeds=(0, 1))

    @property
    def shapes(self) -> dict[str, Any]:
        """Shapes of the weights."""
        n = self.width
        sizes = {"w0": (64, n), "w1": (n, n), "w2": (n, 10)}
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
    """The perceptron's logits, f32[n, 10]."""
    hidden = jax.nn.relu(batch["x"] @ weights["w0"])
    hidden = jax.nn.relu(hidden @ weights["w1"])
    return hidden @ weights["w2"]


def of_several(
    networks: list[Tree], backbone: Tree, batch: dict[str, jax.Array], key: Any
) -> jax.Array:
    """The logarithm of the mean probabilities of several networks, f32[n, 10]."""
    each = [logits(weights, backbone, batch, key) for weights in networks]
    logs = jnp.stack([jax.nn.log_softmax(one) for one in each])
    return jax.nn.logsumexp(logs, axis=0) - math.log(len(networks))


TASK, SEVERAL = tasks.from_logits(logits), tasks.from_logits(of_several)


def accuracy(networks: list[Tree], test: Arrays) -> float:
    """Accuracy of the networks' mean probabilities.

    Args:
      networks: weights of each.
      test: images with labels.
    """
    scores = ffm.evaluate(SEVERAL, networks, (), test)
    return means(scores)["accuracy"]


def remembering() -> Channel:
    """The identity, whose state of a client is the client's last upload."""
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
    """Bits that clients send in one more round; means over a few of its cohort."""
    theta = jax.tree.map(np.array, done.state.delta)
    old = jax.tree.map(np.array, done.state.carry.uplinks[0])
    after, _ = done.simulator.run(done.state, 1)
    new = jax.tree.map(np.array, after.carry.uplinks[0])
    changed = []
    for name, leaf in new.items():
        differs = (old[name] != leaf).reshape(len(leaf), -1)
        changed.append(differs.any(axis=1))
    cohort = np.flatnonzero(np.any(changed, axis=0))
    found = []
    for k in cohort[:CODED_CLIENTS]:
        upload = {name: leaf[k] for name, leaf in new.items()}
        found.append(bits_of(upload, theta))
    return {name: float(np.mean([bits[name] for bits in found])) for name in found[0]}


def masks(
    start: float = 0.0, rate: float | None = None, shuffle: bool = False, **how: Any
) -> Any:
    """An arm: FedPM.

    Args:
      start: masks start at sigmoid(N(start, 1)).
      rate: of the clients; default: the tuned one.
      shuffle: whether labels are permuted.
      **how: more settings of `fedpm`.
    """

    def arm(run: study.Run) -> dict[str, float]:
        config, test, key = run.config, run.data.test, jax.random.key(run.seed)
        weights = signed_constants(config.shapes, key)
        probabilities = {}
        for i, (name, leaf) in enumerate(weights.items()):
            own = jax.random.fold_in(key, 100 + i)
            scores = start + jax.random.normal(own, leaf.shape)
            probabilities[name] = jax.nn.sigmoid(scores)
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
            probabilities,
            shuffle=shuffle,
            backbone=weights,
            uplink=remembering(),
        )
        theta = done.state.delta
        drawn = [sample_masks(theta, jax.random.key(i)) for i in range(3)]
        networks = [masked(weights, mask) for mask in drawn]
        certain = masked(weights, threshold_masks(theta))
        each = [accuracy([network], test) for network in networks]
        return {
            "accuracy": accuracy(networks, test),
            "threshold": accuracy([certain], test),
            "one draw": float(np.mean(each)),
            "ones": float(done.metrics["density"][-1]),
            "all rounds": float(done.metrics["bits_per_parameter"].mean()),
            **({} if run.is_tuning else bits_of_next_round(done)),
        }

    return arm


def trained(run: study.Run) -> dict[str, float]:
    """The same network, trained in full precision from weights of He's scale."""
    config = run.config
    key, gain = jax.random.key(run.seed), math.sqrt(2)
    start = signed_constants(config.shapes, key, gain=gain)
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
    """A run with half of the clients in each round."""
    clients = run.data.clients
    if shuffle:
        arrays = shuffled_labels(clients.arrays, run.seed)
        clients = ffm.Population.from_arrays(arrays, clients.offsets)
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
    labels = run.data.test["label"]
    largest = np.bincount(labels).max()
    return {"accuracy": float(largest / len(labels))}


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
