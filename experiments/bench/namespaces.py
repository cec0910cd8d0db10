"""Two network namespaces with one throttled line between them, on this machine alone.

The kernel's token bucket (`tc ... tbf`) holds each direction to its rate. It takes root
(or CAP_NET_ADMIN), `ip` and `tc`, as in Debian's package iproute2. Nothing outside of the
two namespaces is touched, and they are removed at the end.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

# Of a frame on an Ethernet: 1448 of its 1514 bytes are TCP's payload, with timestamps.
PAYLOAD_SHARE = 1448 / 1514
SERVER_ADDRESS, CLIENT_ADDRESS = "192.0.2.1", "192.0.2.2"  # of documentation, RFC 5737


class Line(NamedTuple):
    """Both ends of the line: how a command is begun there."""

    server: list[str]
    client: list[str]


def why_not() -> str:
    """What is missing for namespaces here; "" if nothing is."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (Debian's package iproute2 has it)"
    try:
        with throttled(1e6, 1e6):
            return ""
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip()
        return f"`{' '.join(error.cmd)}` says: {said or error.returncode}"


@contextmanager
def throttled(down: float, up: float) -> Iterator[Line]:
    """Two namespaces, joined by one line.

    Args:
      down: bits a second from the server to the client, whole frames.
      up: bits a second from the client to the server.

    Yields:
      Both ends.

    Raises:
      subprocess.CalledProcessError: a command of the kernel's was refused.
    """
    name = f"fm{os.getpid()}"
    ends = {
        "s": (f"{name}s", SERVER_ADDRESS, down),
        "c": (f"{name}c", CLIENT_ADDRESS, up),
    }
    made = []
    try:
        for space, _, _ in ends.values():
            _run("ip", "netns", "add", space)
            made.append(space)
        _run(
            *("ip", "link", "add", f"{name}vs", "netns", f"{name}s", "type", "veth"),
            *("peer", "name", f"{name}vc", "netns", f"{name}c"),
        )
        for letter, (space, address, rate) in ends.items():
            device = f"{name}v{letter}"
            inside = ("ip", "-n", space)
            _run(*inside, "addr", "add", f"{address}/30", "dev", device)
            _run(*inside, "link", "set", device, "up")
            bucket = ("rate", f"{rate:.0f}bit", "burst", "16kb", "latency", "400ms")
            place = ("tc", "-n", space, "qdisc", "add", "dev", device, "root")
            _run(*place, "tbf", *bucket)
        start = ["ip", "netns", "exec"]
        yield Line([*start, f"{name}s"], [*start, f"{name}c"])
    finally:
        for space in made:  # the line goes with them
            subprocess.run(["ip", "netns", "del", space], check=False)


def _run(*words: str) -> None:
    """Runs a command that must not fail."""
    subprocess.run(words, check=True, capture_output=True, text=True, encoding="utf-8")
