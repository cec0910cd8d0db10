"""The two processes of `link`: a server that sends a model, and a client that trains it.

    python -m fedjax_fm.experiments.bench.link_side server|client SETTINGS

Messages are the arrays' own bytes behind their number. The server prints one JSON line
for each round: the seconds from its first byte until the upload is there.
"""

import json
import socket
import struct
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm.experiments.bench.namespaces import SERVER_ADDRESS

PORT = 45555
HEAD = struct.Struct("!Q")
ECHOES = 20
CALIBRATIONS = 3


class Setup(NamedTuple):
    """Sizes of the rounds.

    Attributes:
      rounds: that are timed.
      width: of both layers, which decides bytes and work.
      steps: local steps of a round.
      batch: examples of a step.
    """

    rounds: int
    width: int
    steps: int
    batch: int


def simulator_of(setup: Setup) -> tuple[ffm.Simulator, Any]:
    """One client with a network of two square layers.

    Args:
      setup: sizes.

    Returns:
      (simulator, first delta).
    """
    rng = np.random.default_rng(0)
    d, n = setup.width, 4 * setup.batch

    def loss(delta, backbone, batch, key):
        hidden = jax.nn.relu(batch["x"] @ delta["a"])
        return ((hidden @ delta["b"] - batch["x"]) ** 2).mean(axis=1), {}

    client = {"x": rng.normal(size=(n, d)).astype(np.float32)}
    delta = {
        name: (rng.normal(size=(d, d)) / d**0.5).astype(np.float32) for name in "ab"
    }
    method = ffm.fedavg(
        ffm.Task(loss),
        optax.sgd(1e-3),
        local_steps=setup.steps,
        batch_size=setup.batch,
    )
    population = ffm.Population.from_clients([client])
    return ffm.Simulator(method, population, cohort_size=1, devices=1), delta


def server(setup: Setup) -> None:
    """Sends the model and adds the update, round after round.

    Args:
      setup: sizes.
    """
    _, delta = simulator_of(setup)
    with socket.create_server((SERVER_ADDRESS, PORT)) as listening:
        line, _ = listening.accept()
    with line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        calibrated = json.loads(_received(line))
        waits = []
        for _ in range(ECHOES):
            started = time.perf_counter()
            _send(line, b"x")
            _received(line)
            waits.append(time.perf_counter() - started)
        print(json.dumps(calibrated | {"round_trip": float(np.median(waits))}))
        for _ in range(setup.rounds):
            message = _packed(delta)
            started = time.perf_counter()
            _send(line, message)
            upload = _received(line)
            seconds = time.perf_counter() - started
            update = _unpacked(upload, delta)
            delta = {name: delta[name] - update[name] for name in delta}
            row = {"seconds": seconds, "down": len(message), "up": len(upload)}
            print(json.dumps(row), flush=True)


def client(setup: Setup) -> None:
    """Trains what it is sent, and sends the change.

    Args:
      setup: sizes.
    """
    simulator, delta = simulator_of(setup)

    def trained(delta: Any) -> Any:
        state, _ = simulator.run(simulator.init(delta), 1)
        return jax.device_get(state.delta)

    trained(delta)  # compiles
    times = []
    for _ in range(CALIBRATIONS):
        started = time.perf_counter()
        trained(delta)
        times.append(time.perf_counter() - started)
    up, down = simulator.bytes_per_client(simulator.init(delta))
    known = {
        "seconds_per_step": float(np.median(times)) / setup.steps,
        "billed_up": up,
        "billed_down": down,
    }
    with _connected() as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _send(line, json.dumps(known).encode())
        for _ in range(ECHOES):
            _send(line, _received(line))
        for _ in range(setup.rounds):
            start = _unpacked(_received(line), delta)
            end = trained(start)
            update = {name: start[name] - end[name] for name in start}
            _send(line, _packed(update))


def _connected(patience: float = 60.0) -> socket.socket:
    """The line to the server, which may begin later."""
    until = time.monotonic() + patience
    while True:
        try:
            return socket.create_connection((SERVER_ADDRESS, PORT), timeout=patience)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _packed(tree: dict[str, np.ndarray]) -> bytes:
    return b"".join(np.asarray(tree[name]).tobytes() for name in sorted(tree))


def _unpacked(message: bytes, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a message, in the shapes of others."""
    found, start = {}, 0
    for name in sorted(like):
        size = like[name].nbytes
        part = np.frombuffer(message[start : start + size], like[name].dtype)
        found[name] = part.reshape(like[name].shape)
        start += size
    return found


def _send(line: socket.socket, message: bytes) -> None:
    line.sendall(HEAD.pack(len(message)) + message)


def _received(line: socket.socket) -> bytes:
    (size,) = HEAD.unpack(_exactly(line, HEAD.size))
    return _exactly(line, size)


def _exactly(line: socket.socket, size: int) -> bytes:
    """So many bytes, or an error if the line ends before."""
    parts = bytearray()
    while len(parts) < size:
        part = line.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise ConnectionError(f"the line ended {size - len(parts)} bytes too early")
        parts += part
    return bytes(parts)


if __name__ == "__main__":
    side, settings = sys.argv[1:]
    {"server": server, "client": client}[side](Setup(**json.loads(settings)))
