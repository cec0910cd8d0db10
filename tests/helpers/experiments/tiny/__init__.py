"""Does momentum at the server pay? A study of a second, for tests of the command.

Linear regression by FedAvg, with and without momentum. Control: shuffled targets.
"""

import dataclasses
import time
from dataclasses import dataclass

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import channels, study


@dataclass(frozen=True)
class Config:
    """Settings."""

    clients: int = 6
    rounds: int = 6
    grid: tuple[float, ...] = (0.05, 0.1)
    rate: float = 0.5  # of the server
    shuffle: bool = False
    width: int | None = None
    pause: float = 0.0  # seconds after a look, so that a signal can come in between
    poison: int = -1  # a client whose data hold NaN
    keep: bool = False  # checkpoints
    planted: bool = (
        False  # the control learns from the true targets, so that it does not fail
    )
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"expected rounds >= 1, got rounds={self.rounds}")

    def smoke(self) -> "Config":
        return dataclasses.replace(self, rounds=2, grid=(0.1,), seeds=(0, 1))

    def full(self) -> "Config":
        return dataclasses.replace(self, rounds=8)


def data(config, seed, split):
    rng = np.random.default_rng([seed, split == "tuning"])
    xs = [rng.normal(size=(8, 3)).astype(np.float32) for _ in range(config.clients + 1)]
    clients = [{"x": x, "y": x @ np.array([1, -2, 3], np.float32)} for x in xs]
    if config.poison >= 0:
        clients[config.poison]["x"][:] = np.nan
    return clients[:-1], clients[-1]


def loss(delta, backbone, batch, key):
    return (batch["x"] @ delta["w"] - batch["y"]) ** 2, {}


def arm(momentum, shuffled=False):
    def run(run):
        config, (clients, test) = run.config, run.data
        if shuffled and not config.planted:
            clients = [{**client, "y": np.roll(client["y"], 3)} for client in clients]
        task, server = ffm.Task(loss), optax.sgd(config.rate, momentum=momentum)
        algorithm = ffm.fedavg(
            task, optax.sgd(run["rate"]), server, local_steps=2, batch_size=4
        )
        time.sleep(config.pause)
        found = run.simulate(
            algorithm,
            ffm.Population.from_clients(clients),
            {"w": np.zeros(3, np.float32)},
            config.rounds,
            cohort_size=3,
            task=task,
            test=test,
            every=2,
            keep=config.keep,
            uplink=channels.quantize(4),
        )
        run.score_clients(found, task, ffm.Population.from_clients(clients), "loss")
        return {"loss": found.scores["loss"]}

    return run


STUDY = study.Study(
    question="Does momentum at the server pay?",
    expected="momentum is better",
    config=Config,
    data=data,
    primary=study.LOSS,
    arms=(
        study.Arm("plain", arm(0.0), "FedAvg", {"rate": "grid"}),
        study.Arm("momentum", arm(0.5), "FedAvg, momentum", {"rate": "grid"}),
        study.Arm(
            "shuffled",
            arm(0.0, shuffled=True),
            "FedAvg, shuffled targets",
            like="plain",
        ),
    ),
    comparisons=(("momentum", "plain"),),
    controls=(study.Control("shuffled", "plain", "There is nothing to learn."),),
)
