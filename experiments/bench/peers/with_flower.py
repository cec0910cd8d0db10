"""Flower: its simulation on Ray, a ClientApp of one CPU and PyTorch, FedAvg without evaluation.

The server's function waits on the protocol between rounds, so that actors stay warm.
"""

import functools
import os
import sys

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import flower_client
import protocol
from flwr.app import ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


def build(grid, data_path, workload, data):
    """See protocol.serve."""
    arrays = flower_client.record(workload, data.start)
    strategy = FedAvg(fraction_evaluate=0.0)

    def run(rounds):
        nonlocal arrays
        config = ConfigRecord({"workload": workload, "data": data_path})
        result = strategy.start(grid, arrays, num_rounds=rounds, train_config=config)
        arrays = result.arrays

    return run, lambda: flower_client.named(arrays, data.start)


def main():
    """Starts the simulation; its server app is the protocol."""
    data_path = sys.argv[2]
    server = ServerApp()
    server.main()(
        lambda grid, context: protocol.serve(functools.partial(build, grid, data_path))
    )
    run_simulation(
        server_app=server,
        client_app=flower_client.app,
        num_supernodes=protocol.Data.load(data_path).n_clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    main()
