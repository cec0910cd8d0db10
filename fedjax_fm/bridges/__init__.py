"""Our methods under other frameworks: the same round, its messages carried by others.

`remote` has the two halves of a round as functions of arrays; `flower` carries them by
Flower, which is an option.
"""

from fedjax_fm.bridges.remote import (
    Federation,
    Reply,
    Request,
    ServerState,
    answer,
    first_states,
    run_round,
    start,
)

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
