"""How well seconds of a round are predicted: two processes over a throttled line.

    python -m fedjax_fm.experiments.bench.link [--down 20 --up 10] [--rounds 5]

A server and a client run in two network namespaces of this machine. Before the rounds the
client times its local steps alone, and an echo gives the latency; from these and from the
line's rate `systems.client_seconds` predicts a round, which is then measured. There is one
JSON line for each round, and one with the error of the prediction in per cent.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedjax_fm import systems
from fedjax_fm.experiments.bench.link_side import Setup
from fedjax_fm.experiments.bench.namespaces import PAYLOAD_SHARE, throttled, why_not

SUMMARY = "Seconds of a round, predicted and then measured over a throttled line."
PATIENCE = 600  # seconds for all rounds


def measured(setup: Setup, down: float, up: float) -> Iterator[dict[str, Any]]:
    """Runs the rounds.

    Args:
      setup: sizes.
      down: Mbit a second towards the client.
      up: Mbit a second from the client.

    Yields:
      A row for each round, then the summary.

    Raises:
      RuntimeError: one of the processes failed; says what it printed.
    """
    module = "fedjax_fm.experiments.bench.link_side"
    words = [sys.executable, "-m", module]
    with throttled(down * 1e6, up * 1e6) as line:
        sides = {
            "server": [*line.server, *words, "server", json.dumps(setup._asdict())],
            "client": [*line.client, *words, "client", json.dumps(setup._asdict())],
        }
        running = {name: _started(command) for name, command in sides.items()}
        try:
            said = {
                name: one.communicate(timeout=PATIENCE)
                for name, one in reversed(running.items())
            }
        finally:
            for one in running.values():
                one.kill()
    for name, one in running.items():
        if one.returncode:
            raise RuntimeError(f"the {name} failed: {said[name][1][-2000:]}")
    known, *rows = (json.loads(row) for row in said["server"][0].splitlines())
    yield from _compared(known, rows, setup, (down, up))


def _started(command: Sequence[str]) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def _compared(
    known: dict[str, Any],
    rows: list[dict[str, Any]],
    setup: Setup,
    rates: tuple[float, float],
) -> Iterator[dict[str, Any]]:
    """Each round beside its prediction, and all of them."""
    down, up = (rate * 1e6 / 8 * PAYLOAD_SHARE for rate in rates)
    profile = systems.Profile(
        seconds_per_step=np.array([known["seconds_per_step"]]),
        down=np.array([down]),
        up=np.array([up]),
        latency=np.array([known["round_trip"] / 2]),
    ).checked()
    n_steps = np.array([setup.steps])
    (predicted,) = systems.client_seconds(
        profile, n_steps, known["billed_down"], known["billed_up"]
    )
    errors = []
    for row in rows:
        assert (row["down"], row["up"]) == (known["billed_down"], known["billed_up"])
        errors.append(100 * (predicted / row["seconds"] - 1))
        yield row | {"predicted": float(predicted), "error_percent": errors[-1]}
    compute = setup.steps * known["seconds_per_step"]
    yield {
        "rounds": len(rows),
        "measured_median": float(np.median([row["seconds"] for row in rows])),
        "predicted": float(predicted),
        "of_it_computation": compute,
        "granularity": systems.granularity(compute, float(predicted) - compute),
        "round_trip": known["round_trip"],
        "median_error_percent": float(np.median(errors)),
        "largest_error_percent": float(max(errors, key=abs)),
    }


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=SUMMARY)
    parser.add_argument("--down", type=float, default=20.0, help="Mbit/s to the client")
    parser.add_argument("--up", type=float, default=10.0, help="Mbit/s from the client")
    for name, value in {"rounds": 5, "width": 512, "steps": 50, "batch": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    if why := why_not():
        sys.exit(f"no network namespaces here: {why}")
    sizes = {name: getattr(given, name) for name in Setup._fields}
    for row in measured(Setup(**sizes), given.down, given.up):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
