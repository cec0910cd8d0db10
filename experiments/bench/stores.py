"""What states and examples cost that are more than a device can hold.

    python -m fedjax_fm.experiments.bench.stores stateful [--clients 10000]
    python -m fedjax_fm.experiments.bench.stores resume [--clients 10000] [--rank 8]
    python -m fedjax_fm.experiments.bench.stores disk [--examples 10000000]

`stateful` (MiniLM's shapes, 6 GB of states): every client keeps a private LoRA adapter
(rank 8 on query and value) and a residual of error feedback; the store lies on the
devices, each with its part, and then in host memory. There is one JSON line for each
cohort size, and both must agree. `resume`: the same with its states in host memory,
cut after three rounds and begun again from its checkpoint. `disk`: a population of
memory-mapped files is streamed; the line says how much memory the process took beyond
its start. The models are random: what is measured is the engine.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm.algorithms.local import train
from fedjax_fm.engine.state import HostStore
from fedjax_fm.models import BertConfig, BertForSequenceClassification

MINILM = BertConfig(
    hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
)


def private_and_shared(task: ffm.Task, learning_rate: float) -> ffm.Algorithm:
    """FedAvg of a shared adapter, beside a private one of each client.

    A client trains both, one after the other, and sends the shared one alone.

    Args:
      task: of either adapter.
      learning_rate: of SGD.
    """
    optimizer = optax.sgd(learning_rate)
    plain = ffm.fedavg(task, optimizer, local_steps=1, batch_size=2)
    (exchange,) = plain.exchanges

    def client(backbone, message):
        shared = exchange.client(backbone, message)

        def one(message, mine, data, key):
            output = shared(message, (), data, key)
            mine, _ = train(task, optimizer, mine, backbone, data=data, key=key)
            return output._replace(state=mine)

        return one

    return plain._replace(
        exchanges=(exchange._replace(client=client),),
        client_init=lambda delta, key: delta,
    )


def stateful(
    n_clients: int, cohorts: tuple[int, ...], config: BertConfig, rounds: int = 2
) -> Iterator[dict[str, Any]]:
    """One row for each store and cohort size, and one for the difference of both stores.

    Args:
      n_clients: in the population.
      cohorts: sizes.
      config: of the model.
      rounds: that are timed, after one that compiles.
    """
    task, population, delta, backbone = _problem(n_clients, config)
    channel = ffm.channels.error_feedback(ffm.channels.top_k(0.1))
    for cohort in cohorts:
        ends = {}
        for where in ("device", "host"):
            simulator = ffm.Simulator(
                private_and_shared(task, 0.1),
                population,
                backbone=backbone,
                cohort_size=cohort,
                uplink=channel,
                states=where,
                memory=1 << 40,
            )
            state, seconds = _timed(simulator, delta, rounds)
            sums, seen = _sums_of_states(state)
            ends[where] = (jax.device_get(state.delta), sums)
            yield {
                "name": "stateful",
                "clients": n_clients,
                "cohort": cohort,
                "states": where,
                "seconds": seconds,
                "bytes_of_states": simulator.shapes.bytes_of_states,
                "peak_rss_bytes": _peak(),
            }
            del state, simulator
        apart = jax.tree.map(_distance, *ends.values())
        yield {
            "name": "stateful",
            "cohort": cohort,
            "clients_seen": seen,
            "largest_difference": max(jax.tree.leaves(apart)),
        }


def resumed(
    n_clients: int, config: BertConfig, folder: Path, rank: int, rounds: int = 3
) -> dict[str, Any]:
    """A run that is cut in the middle and goes on from its checkpoint, beside a whole one.

    Args:
      n_clients: in the population.
      config: of the model.
      folder: of the checkpoint.
      rank: of the adapters.
      rounds: before the cut, and after it.
    """
    task, population, delta, backbone = _problem(n_clients, config, rank)

    def simulator() -> ffm.Simulator:
        return ffm.Simulator(
            private_and_shared(task, 0.1),
            population,
            backbone=backbone,
            cohort_size=64,
            uplink=ffm.channels.error_feedback(ffm.channels.top_k(0.1)),
            states="host",
        )

    ends, seconds = {}, {}
    for name, parts in {"whole": (2 * rounds,), "cut": (rounds, 2 * rounds)}.items():
        looks = [ffm.callbacks.checkpoint(folder / name)]
        for last in parts:
            fresh, started = simulator(), time.perf_counter()
            state, _ = fresh.run(fresh.init(delta), last, every=rounds, callbacks=looks)
            seconds[f"{name}_{last}"] = time.perf_counter() - started
        sums, seen = _sums_of_states(state)
        ends[name] = (jax.device_get(state.delta), sums)
        del state
        shutil.rmtree(folder / name)
    apart = jax.tree.map(_distance, *ends.values())
    return {
        "name": "resume",
        "clients": n_clients,
        "rank": rank,
        "bytes_of_states": fresh.shapes.bytes_of_states,
        "clients_seen": seen,
        "largest_difference": max(jax.tree.leaves(apart)),
        "seconds": seconds,
        "peak_rss_bytes": _peak(),
    }


def _problem(n_clients: int, config: BertConfig, rank: int = 8) -> tuple:
    """(task, population, delta, backbone): two random sentences a client."""
    model = BertForSequenceClassification(config, 2, "mean", nnx.Rngs(0))
    method = ffm.peft.lora(rank=rank, alpha=16, targets=r"query|value")
    graphdef, delta, backbone = ffm.peft.apply(model, method)

    def small(x):
        return 0.01 * jax.random.normal(jax.random.key(0), x.shape)

    def loss(delta, backbone, batch, key):
        model, ids = nnx.merge(graphdef, delta, backbone), batch["ids"]
        logits, labels = model(ids, jnp.ones_like(ids)), batch["label"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels), {}

    delta = jax.tree.map(small, delta)
    rng, n = np.random.default_rng(0), 2 * n_clients
    ids = rng.integers(0, config.vocab_size, (n, 16))
    labels = rng.integers(0, 2, n)
    arrays = {"ids": ids.astype(np.int32), "label": labels.astype(np.int32)}
    population = ffm.Population.from_arrays(arrays, 2 * np.arange(n_clients + 1))
    return ffm.Task(loss), population, delta, backbone


def _distance(a: Any, b: Any) -> float:
    return float(np.max(np.abs(a - b)))


def _timed(
    simulator: ffm.Simulator, delta: Any, rounds: int
) -> tuple[ffm.SimulationState, float]:
    """The state after some rounds, and the seconds of a round after the first."""
    state, _ = simulator.run(simulator.init(delta), 1, donate=True)
    started = time.perf_counter()
    state, _ = simulator.run(state, rounds, donate=True)
    jax.block_until_ready(state.delta)
    return state, (time.perf_counter() - started) / rounds


def _sums_of_states(state: ffm.SimulationState) -> tuple[Any, int]:
    """Sums of private adapters and residuals, and of how many clients.

    Clients that were in no cohort are left out.
    """
    store = state.carry.clients
    rows = store.rows if isinstance(store, HostStore) else (store, state.carry.uplinks)
    changed = []
    for leaf in jax.tree.leaves(rows[1]):  # residuals
        is_used = leaf.reshape(len(leaf), -1) != 0
        changed.append(np.asarray(is_used.any(axis=1)))
    (who,) = np.nonzero(np.any(changed, axis=0))

    def total(x: Any) -> np.ndarray:
        return np.asarray(x[who]).sum(axis=0)

    return jax.tree.map(total, rows), len(who)


def disk(
    n_examples: int, folder: Path, features: int = 32, a_client: int = 100
) -> dict[str, Any]:
    """Streams a few rounds from files.

    Args:
      n_examples: rows of the files.
      folder: of the files, which are written.
      features: of an example.
      a_client: examples of a client.

    Returns:
      Seconds a round, and memory before and after.
    """
    _write_population(n_examples, folder, features, a_client)
    before = _peak()
    population = ffm.Population.open(folder)

    def loss(delta, backbone, batch, key):
        return (batch["x"] @ delta["w"] - batch["y"]) ** 2, {}

    algorithm = ffm.fedavg(ffm.Task(loss), optax.sgd(0.01), epochs=1, batch_size=20)
    cohort = min(1000, population.n_clients)
    simulator = ffm.Simulator(algorithm, population, cohort_size=cohort, data="host")
    first = {"w": jnp.zeros(features)}
    state, _ = simulator.run(simulator.init(first), 1)
    started = time.perf_counter()
    simulator.run(state, 5)
    return {
        "name": "disk",
        "examples": n_examples,
        "clients": population.n_clients,
        "cohort": simulator.setting.cohort_size,
        "bytes_on_disk": sum(array.nbytes for array in population.arrays.values()),
        "seconds": (time.perf_counter() - started) / 5,
        "rss_before": before,
        "peak_rss_bytes": _peak(),
    }


def _write_population(
    n_examples: int, folder: Path, features: int, a_client: int
) -> None:
    """Writes random examples chunk by chunk, as `Population.open` reads them."""
    folder.mkdir(parents=True)
    chunk = 100_000
    for name, shape in (("x", (features,)), ("y", ())):
        whole = np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", np.float32, (n_examples, *shape)
        )
        for start in range(0, n_examples, chunk):
            n, random = min(chunk, n_examples - start), np.random.default_rng(start)
            whole[start : start + n] = random.normal(size=(n, *shape))
        whole.flush()
        del whole
    offsets = np.append(np.arange(0, n_examples, a_client), n_examples)
    np.save(folder / "offsets.npy", offsets)


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Prints JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("stateful", "resume", "disk"))
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--examples", type=int, default=10_000_000)
    options = parser.parse_args()
    if options.what == "stateful":
        for row in stateful(options.clients, (8, 16, 32, 64), MINILM):
            print(json.dumps(row), flush=True)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.what == "resume":
            row = resumed(options.clients, MINILM, folder, options.rank)
        else:
            row = disk(options.examples, folder / "population")
        print(json.dumps(row))


if __name__ == "__main__":
    main()
