"""One of two processes is killed: the other ends soon, names it, and the run goes on."""

import socket
import time

import pytest

WITHIN = 60  # seconds


@pytest.fixture
def two(process, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ("--set", "rounds=2000", "keep=true", "pause=0.05", "grid=0.1")
    joined = ("--coordinator", f"127.0.0.1:{port}", "--processes", 2, "--process")
    pair = [
        process("run", "tiny", *settings, "--out", "a", *joined, number)
        for number in range(2)
    ]
    rows, end = tmp_path / "a", time.monotonic() + 200
    while not list(rows.rglob("metrics.jsonl")) and time.monotonic() < end:
        assert [one.poll() for one in pair] == [None, None]
        time.sleep(0.5)
    return pair


@pytest.mark.parametrize(
    ("victim", "named"),
    [
        (1, "tasks are unhealthy (stopped sending heartbeats):\n1"),
        (0, "coordination service"),  # lay in that process
    ],
)
def test_the_others_end_and_name_it(two, victim, named):
    two[victim].kill()
    begin = time.monotonic()
    _, error = two[1 - victim].communicate(timeout=4 * WITHIN)
    assert time.monotonic() - begin < WITHIN
    assert two[1 - victim].returncode != 0
    assert named in error


def test_the_run_goes_on_with_the_process_that_is_left(two, process, tmp_path):
    two[1].kill()
    two[0].communicate(timeout=4 * WITHIN)
    again = process("run", "--resume", "a", JAX_NUM_CPU_DEVICES="4")
    files, end = list((tmp_path / "a").rglob("metrics.jsonl")), time.monotonic() + 200
    before = sum(len(path.read_text().splitlines()) for path in files)

    def rows():
        return sum(len(path.read_text().splitlines()) for path in files)

    while rows() <= before and time.monotonic() < end:
        assert again.poll() is None, again.communicate()[1]
        time.sleep(0.5)
    assert rows() > before
