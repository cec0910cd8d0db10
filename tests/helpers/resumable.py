"""A run with every kind of state, in processes that end by a real SIGKILL at a chosen moment.

    python resumable.py FOLDER DATA STATES          speaks JSON lines: a moment in, what
    became of that session out

State: a server optimizer, private adapters and residuals of error feedback (on the
device or spilled), a downlink with a state of its own, a sampler with a state,
drop-outs, data on the device or streamed. Each session is a process of its own, forked
before JAX has started a backend, so that it need not import everything again."""

import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from mlp_problem import make_clients, make_trees, mlp_loss
from rich.console import Console
from run_folder import run_rounds

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms.local import train
from fedjax_fm.experiments.reliability.fuse import Fuse, Moment, watch
from fedjax_fm.runs import RunFolder, identity

ROUNDS = 3
N_CLIENTS = 8


def algorithm(fuse: Fuse) -> ffm.Algorithm:
    """FedAvg with momentum at the server; each client also trains a delta of its own,
    which it keeps.
    """

    def ticking(delta, backbone, batch, key):
        jax.debug.callback(lambda: fuse("work"))
        return mlp_loss(delta, backbone, batch, key)

    # A program with a callback cannot be kept on disk. A session that dies at work
    # leaves nothing behind that it computed, so its program need not be that of the
    # others.
    dies_at_work = fuse.moment is not None and fuse.moment.event == "work"
    task, optimizer = (
        ffm.Task(ticking if dies_at_work else mlp_loss),
        optax.sgd(0.05, momentum=0.9),
    )
    plain = ffm.fedavg(
        task, optimizer, optax.sgd(0.7, momentum=0.5), local_steps=2, batch_size=4
    )
    (exchange,) = plain.exchanges

    def client(backbone, message):
        shared = exchange.client(backbone, message)

        def one(message, mine, data, key):
            output = shared(message, (), data, key)
            mine, _ = train(ffm.Task(mlp_loss), optimizer, mine, backbone, data, key)
            return output._replace(state=mine)

        return one

    return plain._replace(
        exchanges=(exchange._replace(client=client),),
        client_init=lambda delta, key: delta,
    )


def in_turn() -> ffm.Sampler:
    """Three clients after those of the round before, with a number as its state."""

    def draw(state, key):
        ids = (state + jnp.arange(3) + jax.random.randint(key, (), 0, 2)) % N_CLIENTS
        return ids.astype(jnp.int32), jnp.int32(3), (state + 3) % N_CLIENTS

    return ffm.Sampler(init=lambda: jnp.int32(0), draw=draw, capacity=3)


def session(folder: Path, data: str, states: str, moment: dict | None) -> None:
    """Begins or continues the run in `folder`."""
    fuse = Fuse(None if moment is None else Moment(**moment))
    watch(fuse)
    delta, backbone = make_trees()
    lossy = channels.chain(channels.top_k(0.3), channels.quantize(4))
    simulator = ffm.Simulator(
        algorithm(fuse),
        ffm.Population.from_clients(make_clients()),
        backbone=backbone,
        cohort_size=3,
        seed=5,
        devices=2,
        uplink=channels.error_feedback(lossy),
        downlink=channels.anchored(channels.identity(), lossy, every=3),
        sampler=in_turn(),
        data=data,
        states=states,
        behaviour=ffm.Behaviour(
            drops=lambda client, round, key: jax.random.bernoulli(key, 0.2)
        ),
    )
    path = Path(folder)
    run = (
        RunFolder.open(path)
        if (path / "config.json").exists()
        else RunFolder.create(path, {}, "resumable")
    )
    if moment is not None and moment["event"] == "work":
        # the program with a callback in it is another one
        identity.FILE = "identity-with-callback.json"

    def evaluate(state):
        return {"eval_norm": float(jnp.linalg.norm(state.delta["w"]))}

    quiet = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    run_rounds(
        simulator,
        delta,
        ROUNDS,
        run,
        label="run",
        console=quiet,
        evaluate=evaluate,
        evaluate_every=1,
    )


def main() -> None:
    """One forked session for each line that comes in; answers with how it ended."""
    folder, data, states = sys.argv[1:]
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                session(Path(folder) / request["run"], data, states, request["moment"])
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
