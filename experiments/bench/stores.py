"""States and examples of more clients than a device should hold.

What they cost, and that nothing else changes.

    python -m fedjax_fm.experiments.bench.stores stateful [--clients 10000]   (MiniLM's
    shapes; 6 GB of states) python -m fedjax_fm.experiments.bench.stores disk
    [--examples 10000000]

`stateful`: every client keeps a private LoRA adapter (rank 8 on query and value) and a
residual of error feedback; the store lies on the devices, each with its part, and then
in host memory, one JSON line for each cohort size, and both must agree. `disk`: a
population of memory-mapped files is streamed; the line says how much memory the process
took beyond its start. The models are random: what is measured is the engine.
"""

import json
import resource
import sys
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
    """FedAvg of a shared adapter, beside which every client trains one of its own that
    it never sends: both are adapted one after the other, each from where it was.
    """
    optimizer = optax.sgd(learning_rate)
    plain = ffm.fedavg(task, optimizer, local_steps=1, batch_size=2)
    (exchange,) = plain.exchanges

    def client(backbone, message):
        shared = exchange.client(backbone, message)

        def one(message, mine, data, key):
            output = shared(message, (), data, key)
            mine, _ = train(task, optimizer, mine, backbone, data, key)
            return output._replace(state=mine)

        return one

    return plain._replace(
        exchanges=(exchange._replace(client=client),),
        client_init=lambda delta, key: delta,
    )


def stateful(
    n_clients: int, cohorts: tuple[int, ...], config: BertConfig, rounds: int = 2
) -> Iterator[dict[str, Any]]:
    """One row per store and cohort size.

    Seconds a round after compilation, bytes of all states, largest difference.
    """
    model = BertForSequenceClassification(config, 2, "mean", nnx.Rngs(0))
    graphdef, delta, backbone = ffm.peft.apply(
        model, ffm.peft.lora(rank=8, alpha=16, targets=r"query|value")
    )
    delta = jax.tree.map(
        lambda x: 0.01 * jax.random.normal(jax.random.key(0), x.shape), delta
    )

    def loss(delta, backbone, batch, key):
        logits = nnx.merge(graphdef, delta, backbone)(
            batch["ids"], jnp.ones_like(batch["ids"])
        )
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["label"]
        ), {}

    rng = np.random.default_rng(0)
    arrays = {
        "ids": rng.integers(0, config.vocab_size, (2 * n_clients, 16)).astype(np.int32),
        "label": rng.integers(0, 2, 2 * n_clients).astype(np.int32),
    }
    population = ffm.Population.from_arrays(arrays, 2 * np.arange(n_clients + 1))
    channel = ffm.channels.error_feedback(ffm.channels.top_k(0.1))
    for cohort in cohorts:
        ends = {}
        for where in ("device", "host"):
            simulator = ffm.Simulator(
                private_and_shared(ffm.Task(loss), 0.1),
                population,
                backbone=backbone,
                cohort_size=cohort,
                uplink=channel,
                states=where,
                memory=1 << 40,
            )
            state, _ = simulator.run(simulator.init(delta), 1, donate=True)
            started = time.perf_counter()
            state, _ = simulator.run(state, rounds, donate=True)
            jax.block_until_ready(state.delta)
            seconds = (time.perf_counter() - started) / rounds
            sums, seen = _sums_of_states(state)
            ends[where] = (jax.device_get(state.delta), sums)
            row = {
                "name": "stateful",
                "clients": n_clients,
                "cohort": cohort,
                "states": where,
                "seconds": seconds,
            }
            yield row | {
                "bytes_of_states": simulator.shapes.bytes_of_states,
                "peak_rss_bytes": _peak(),
            }
            del state, simulator
        apart = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), *ends.values())
        yield {
            "name": "stateful",
            "cohort": cohort,
            "clients_seen": seen,
            "largest_difference": max(jax.tree.leaves(apart)),
        }


def _sums_of_states(state: ffm.SimulationState) -> tuple[Any, int]:
    """(sums over those who took part of what they keep, private adapters and residuals.

    How many they are).
    """
    store = state.carry.clients
    rows = store.rows if isinstance(store, HostStore) else (store, state.carry.uplinks)
    residuals = jax.tree.leaves(rows[1])
    took_part = np.any(
        [
            np.asarray((leaf.reshape(len(leaf), -1) != 0).any(axis=1))
            for leaf in residuals
        ],
        axis=0,
    )
    (who,) = np.nonzero(took_part)
    return jax.tree.map(lambda x: np.asarray(x[who]).sum(axis=0), rows), len(who)


def disk(
    n_examples: int, folder: Path, features: int = 32, a_client: int = 100
) -> dict[str, Any]:
    """Streams a few rounds from files of `n_examples` rows.

    Memory beyond what the process held before.
    """
    names = {"x": (np.float32, (features,)), "y": (np.float32, ())}
    folder.mkdir(parents=True)
    chunk = 100_000
    for name, (dtype, shape) in names.items():
        whole = np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", dtype, (n_examples, *shape)
        )
        for start in range(0, n_examples, chunk):
            n = min(chunk, n_examples - start)
            whole[start : start + n] = np.random.default_rng(start).normal(
                size=(n, *shape)
            )
        whole.flush()
        del whole
    np.save(
        folder / "offsets.npy",
        np.append(np.arange(0, n_examples, a_client), n_examples),
    )
    before = _peak()
    population = ffm.Population.open(folder)
    task = ffm.Task(
        lambda delta, backbone, batch, key: (
            (batch["x"] @ delta["w"] - batch["y"]) ** 2,
            {},
        )
    )
    algorithm = ffm.fedavg(task, optax.sgd(0.01), epochs=1, batch_size=20)
    simulator = ffm.Simulator(
        algorithm, population, cohort_size=min(1000, population.n_clients), data="host"
    )
    state, _ = simulator.run(simulator.init({"w": jnp.zeros(features)}), 1)
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


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Prints JSON lines."""

    def value(flag, default):
        return int(sys.argv[sys.argv.index(flag) + 1]) if flag in sys.argv else default

    if sys.argv[1:2] == ["stateful"]:
        for row in stateful(value("--clients", 10_000), (8, 16, 32, 64), MINILM):
            print(json.dumps(row), flush=True)
    elif sys.argv[1:2] == ["disk"]:
        with tempfile.TemporaryDirectory() as folder:
            print(
                json.dumps(
                    disk(value("--examples", 10_000_000), Path(folder) / "population")
                )
            )
    else:
        sys.exit("expected `stateful` or `disk`")


if __name__ == "__main__":
    main()
