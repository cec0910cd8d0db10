"""Our methods under other frameworks: the same round, its messages carried by others.

A `Federation` is what both sides know; `run_round` is the server's half of a round and
`answer` the client's, functions of arrays. `flower` carries them by Flower, an option.
`flare` and `openfedllm` are formats: adapters and clients' rows of these frameworks.
"""

from fedjax_fm.bridges.client import answer, first_states
from fedjax_fm.bridges.federation import Federation, Reply, Request, ServerState
from fedjax_fm.bridges.server import run_round, start

__all__ = [
    "Federation",
    "Reply",
    "Request",
    "ServerState",
    "answer",
    "first_states",
    "run_round",
    "start",
]
