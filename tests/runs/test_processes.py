"""Joining processes: what is found, what is refused; the rest is in engine/test_hosts.py."""

import pytest

from fedjax_fm.runs import processes
from fedjax_fm.runs.errors import UsageError


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "8"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "host0:1234"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "host0"}, True),
    ],
)
def test_launchers(environment, several):
    assert processes.is_one_of_several(environment) == several


def test_some_of_the_three_are_not_enough():
    with pytest.raises(UsageError, match="together, got host:1, 2, None"):
        processes.join("host:1", processes=2)


def test_alone_everything_is_done_here(monkeypatch):
    monkeypatch.setattr(processes.os, "environ", {})
    processes.join()
    assert processes.is_first()
    done = []
    processes.first_does(lambda: done.append(1))
    assert done == [1]
    assert processes.as_first_sees(False) is False


def test_nobody_answers(monkeypatch):
    """One line; the runtime would end the process by a crash."""
    monkeypatch.setattr(processes, "SECONDS", 0.1)
    with pytest.raises(UsageError, match="nobody answers at 127"):
        processes.join("127.0.0.1:9", processes=2, process=1)
    with pytest.raises(UsageError, match="HOST:PORT, got 'host0'"):
        processes.join("host0", processes=2, process=1)


def test_what_process_0_does_alone_waits_for_nobody(monkeypatch):
    """A function of its own that others would wait for, inside of such a one."""
    met = []
    monkeypatch.setattr(processes, "are_several", lambda: True)
    monkeypatch.setattr(processes, "is_first", lambda: True)
    from fedjax_fm.engine import hosts

    monkeypatch.setattr(hosts, "first_says", lambda value: met.append(value) or value)
    done = []

    def outer():
        processes.first_does(lambda: done.append("inner"))
        assert processes.as_first_sees(True) is True

    processes.first_does(outer)
    assert done == ["inner"]
    assert met == [0]  # once, that nothing failed
