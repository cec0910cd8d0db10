"""A study of a second, for tests of the command: linear regression by FedAvg with error feedback."""

import dataclasses
import time
from dataclasses import dataclass

import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.runs import Experiment, run_rounds


@dataclass(frozen=True)
class Config:
    """Settings."""

    clients: int = 6
    rounds: int = 6
    rate: float = 0.1
    shuffle: bool = False
    width: int | None = None
    pause: float = 0.0  # seconds after a round, so that a signal can come in between
    poison: int = -1  # a client whose data hold NaN
    seed: int = 0

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"expected rounds >= 1, got rounds={self.rounds}")

    def smoke(self) -> "Config":
        return dataclasses.replace(self, rounds=2)

    def full(self) -> "Config":
        return dataclasses.replace(self, rounds=8)


def loss(delta, backbone, batch, key):
    return (batch["x"] @ delta["w"] - batch["y"]) ** 2, {}


def run(config, folder, console):
    rng = np.random.default_rng(config.seed)
    clients = [
        {"x": rng.normal(size=(4, 3)).astype(np.float32), "y": np.ones(4, np.float32)} for _ in range(config.clients)
    ]
    if config.poison >= 0:
        clients[config.poison]["x"][:] = np.nan
    algorithm = ffm.fedavg(ffm.Task(loss), optax.sgd(config.rate), optax.adam(0.1), local_steps=2, batch_size=2)
    simulator = ffm.Simulator(
        algorithm, ffm.Population.from_clients(clients), cohort_size=3, seed=config.seed,
        uplink=channels.error_feedback(channels.chain(channels.top_k(0.5), channels.quantize(4))),
    )  # fmt: skip

    def evaluate(state):
        time.sleep(config.pause)
        return {"eval_loss": float((state.delta["w"] ** 2).sum())}

    delta = {"w": np.zeros(3, np.float32)}
    state = run_rounds(
        simulator, delta, config.rounds, folder, label="tiny", console=console, evaluate=evaluate, evaluate_every=2
    )
    folder.write_json("results.json", {"comparisons": {"weights": str(np.asarray(state.delta["w"]).tolist())}})
    report(folder)


def report(folder):
    return folder.write_text("report.html", f"<p>{folder.read_json('results.json')['comparisons']['weights']}</p>")


EXPERIMENT = Experiment("tiny", "a study of a second", Config, run, report)
