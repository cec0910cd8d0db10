"""The process that times kernels on one core.

`python -m fedjax_fm.experiments.bench.kernels_side REQUEST`, where REQUEST is JSON:
{"names", "repeats", "torch", "part"}. It answers one JSON line for each case and peer.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

ON_TORCH = "topk-"  # the cases that torch has a kernel for


def use_one_core() -> None:
    """One core, one device, one thread; called before jax or torch start theirs."""
    if hasattr(os, "sched_setaffinity"):
        last = max(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {last})
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"


def in_turn(calls: list[Callable[[], Any]], repeats: int) -> list[float]:
    """The median seconds of each call, all of which are made in turn.

    The first calls, which compile, are not timed.

    Args:
      calls: return arrays.
      repeats: of each call.
    """
    import jax

    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        jax.block_until_ready(call())
    for _ in range(repeats):
        for call, own in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in seconds]


def answers(
    names: list[str], repeats: int, torch: bool, part: int
) -> Iterator[dict[str, Any]]:
    """One row for each case and peer.

    A peer that is missing or gives another result has `peer_error`.

    Args:
      names: of the cases.
      repeats: of each call.
      torch: whether torch is a peer.
      part: how many times smaller the arrays are.
    """
    missing = None
    if torch:
        try:
            import torch as library

            library.set_num_threads(1)
        except ImportError as failure:
            missing = f"torch cannot be imported: {failure}"
    from fedjax_fm.experiments.bench.kernels_cases import CASES

    for name in names:
        case = CASES[name](part, torch and missing is None)
        ours = case.ours()
        known: dict[str, Any] = {}
        for peer in case.peers:
            known = {"name": name, "peer": peer.title}
            if peer.agrees is not None and not peer.agrees(ours, peer.call()):
                yield known | {"peer_error": "gives another result"}
                continue
            mine, theirs, floor = in_turn([case.ours, peer.call, case.floor], repeats)
            yield known | {
                "seconds": mine,
                "peer_seconds": theirs,
                "ratio": theirs / mine,
                "floor_seconds": floor,
            }
        if torch and missing and name.startswith(ON_TORCH):
            yield {"name": name, "peer": "torch.topk", "peer_error": missing}


def main() -> None:
    """Reads the request, prints the answers."""
    use_one_core()
    for row in answers(**json.loads(sys.argv[1])):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
