"""`fedjax-fm finetune` in two processes with one folder: the run of one process."""

import json
import socket

import numpy as np
import pytest
from commands import start_command
from small_checkpoints import LLAMA, TEMPLATE, chats, checkpoint, write_jsonl

DEVICES = 2
METHODS = {"shared": "fedit", "personal": "ditto(penalty=1.0)"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    place = tmp_path_factory.mktemp("inputs")
    checkpoint(place / "llama", LLAMA, TEMPLATE)
    write_jsonl(place / "chats.jsonl", chats())
    return place


def finetune(inputs, out, n_processes, method):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        *("finetune", "--model", inputs / "llama", "--data", inputs / "chats.jsonl"),
        *("--out", out, "--method", method, "--rounds", 2, "--cohort", 3),
        *("--batch-size", 2, "--local-steps", 1, "--max-length", 16, "--rank", 2),
        *(
            "--new-tokens",
            3,
            "--answers",
            2,
            "--no-baselines",
            "--merge",
            "safetensors",
        ),
    ]
    started = []
    for number in range(n_processes):
        joined = ["--coordinator", f"127.0.0.1:{port}"]
        joined += ["--processes", n_processes, "--process", number]
        more = joined if n_processes > 1 else []
        devices = str(DEVICES // n_processes)
        started.append(
            start_command(*words, *more, cwd=inputs, JAX_NUM_CPU_DEVICES=devices)
        )
    said = [one.communicate(timeout=400) for one in started]
    for one, (_, error) in zip(started, said, strict=True):
        assert one.returncode == 0, error[-3000:]
    return [out for out, _ in said]


def arrays(folder):
    with np.load(folder / "delta.npz") as found:
        return dict(found)


@pytest.mark.parametrize("kind", list(METHODS))
def test_two_processes_write_what_one_does(inputs, kind):
    method = METHODS[kind]
    alone, several = inputs / f"{kind}-alone", inputs / f"{kind}-several"
    finetune(inputs, alone, 1, method)
    first, second = finetune(inputs, several, 2, method)
    assert "report.html" in first
    ours = [line for line in second.splitlines() if not line.startswith("[Gloo]")]
    assert not ours  # the first process alone speaks
    files = {
        path.relative_to(alone).as_posix()
        for path in alone.rglob("*")
        if path.is_file() and "checkpoint" not in path.as_posix()
    }
    for name in files:
        assert (several / name).is_file(), name
    assert ("model/clients/0.npz" in files) == (kind == "personal")
    ours, theirs = arrays(several / "model"), arrays(alone / "model")
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-6)
    scores = [
        json.loads((place / "results.json").read_text())["arms"]["federated"]["runs"][0]
        for place in (several, alone)
    ]
    assert scores[0].get("answers") == scores[1].get("answers")
    assert scores[0]["scores"] == pytest.approx(scores[1]["scores"], rel=1e-4)
