"""One accelerator for a few minutes: is it right, how fast, how much memory.

    fedjax-fm bench accelerator --minutes 8 --json

What matters most comes first, each line is written as soon as it is known, and what
there is no time for says so. Weights are random, in the shapes of the models named.
Tokens a second count those of all adapters; the share is of the card's peak for dense
bf16 products, with 4 FLOP for each weight and token (LoRA needs no gradient of frozen
weights) and what attention's products need; what is computed twice counts once.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import fedjax_fm as ffm
from fedjax_fm import kernels, wire
from fedjax_fm.aot import finetuning
from fedjax_fm.aot.finetuning import Setup
from fedjax_fm.engine.target import Target, memory_of, this_machine
from fedjax_fm.experiments.bench.workloads import WORKLOADS
from fedjax_fm.kernels.dispatch import compiled_for
from fedjax_fm.models.attention import computed_by

# FLOP/s of dense bf16 products, by the makers' data sheets.
PEAKS = {
    "H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "L40S": 362e12,
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v6 lite": 918e12,
}  # fmt: skip
ROUNDS = 3  # that are timed, after one that is not
SMALL = Setup(
    model="smollm2-135m", cohort=1, population=1, examples=2, batch=2, length=16
)


class Check(NamedTuple):
    """One line of the answer.

    Attributes:
      name: of it.
      seconds: that it may take; it is left out where fewer are left.
      run: measures, `() -> {name: value}`.
    """

    name: str
    seconds: float
    run: Callable[[], dict[str, Any]]


def checks(smoke: bool) -> list[Check]:
    """All lines, what matters most first.

    Args:
      smoke: tiny sizes, to see that everything works.
    """
    found = [
        Check(name="kernels", seconds=30, run=same_kernels),
        Check(name="rounds", seconds=60, run=same_rounds),
        Check(
            name="mlp-1000: a round of 1,000 small clients",
            seconds=30,
            run=lambda: small_clients(smoke),
        ),
    ]
    for setup, seconds, attention in setups(smoke):
        found.append(
            Check(
                name=f"{setup.model}, {setup.cohort} adapters, attention {attention}",
                seconds=seconds,
                run=_finetuning_check(setup, attention),
            )
        )
    peer = Check(
        name="HF PEFT, smollm2-135m, 1 adapter", seconds=60, run=lambda: peft(smoke)
    )
    return [*found[:4], peer, *found[4:]]


def _finetuning_check(setup: Setup, attention: str) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        return fine_tuned(setup, attention)

    return run


def setups(smoke: bool) -> Iterator[tuple[Setup, float, str]]:
    """(what is fine-tuned, seconds that it may take, whose attention)."""
    if smoke:
        yield dataclasses.replace(SMALL, length=8), 1, "xla"
        return
    plan = (
        ("smollm2-135m", 1, 40, "xla"),
        ("smollm2-135m", 1, 40, "cudnn"),
        ("smollm2-135m", 8, 40, "xla"),
        ("smollm2-135m", 64, 50, "xla"),
        ("qwen2.5-7b", 1, 90, "xla"),
        ("qwen2.5-0.5b", 8, 50, "xla"),
        ("qwen2.5-1.5b", 8, 60, "xla"),
        ("smollm2-135m", 512, 90, "xla"),
        ("llama-3-8b", 8, 120, "xla"),
        ("qwen2.5-7b", 1, 90, "cudnn"),
    )
    for model, adapters, seconds, attention in plan:
        setup = Setup(
            model=model,
            cohort=adapters,
            population=adapters,
            examples=8,
            batch=4,
            length=512,
            remat="full" if model in ("qwen2.5-7b", "llama-3-8b") else "dots",
        )
        yield setup, seconds, attention


# Is it right?


def same_kernels() -> dict[str, Any]:
    """Whether kernels give the CPU's bits."""
    cpu, here = jax.devices("cpu")[0], jax.devices()[0]
    x = np.random.default_rng(0).normal(size=1 << 18).astype(np.float32)

    def selected(x):
        return kernels.top_k_mask(x, 5000)

    def quantised(x):
        return kernels.stochastic_quantize(x, jax.random.key(0), norm="max")

    def bits(x):
        return kernels.random_bits(jax.random.key(3), x.shape[0])

    found = {}
    for function in (selected, quantised, bits):
        with compiled_for("cpu"):
            expected = jax.jit(function)(jax.device_put(x, cpu))
        given = jax.jit(function)(jax.device_put(x, here))
        pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(given), strict=True)
        found[function.__name__] = all(np.array_equal(a, b) for a, b in pairs)
    return {"same bits": found}


def same_rounds() -> dict[str, Any]:
    """How far two rounds of LoRA are from the CPU's, with products in f32."""
    deltas = []
    setup = dataclasses.replace(
        SMALL, model="minilm-l6", classes=2, cohort=4, population=4, dtype="float32"
    )
    cpu = jax.devices("cpu")[0]
    targets = (
        Target(
            name="cpu",
            devices=(cpu,),
            platform="cpu",
            memory=memory_of(cpu),
            is_here=True,
        ),
        this_machine(),
    )
    with jax.default_matmul_precision("highest"):
        for target in targets:
            simulator, delta = finetuning.simulator(
                setup, target, weights=True, devices=1, block_size=2
            )
            state, _ = simulator.run(simulator.init(delta), 2)
            deltas.append(jax.tree.map(np.asarray, state.delta))
    pairs = zip(*map(jax.tree.leaves, deltas), strict=True)
    largest = max(float(np.abs(a - b).max()) for a, b in pairs)
    return {"largest difference": largest, "tolerance": 1e-4, "same": largest < 1e-4}


# How fast?


def small_clients(smoke: bool) -> dict[str, Any]:
    """Seconds of a round of 1,000 clients with a small network."""
    workload = WORKLOADS["mlp-1000"]
    simulator, delta = workload.simulator(workload.make(smoke))
    return _timed(simulator, delta)


def fine_tuned(setup: Setup, attention: str) -> dict[str, Any]:
    """Tokens a second, the share of the card's peak, memory and compile seconds.

    Args:
      setup: of random weights.
      attention: "xla" or "cudnn".
    """
    with computed_by(attention):
        simulator, delta = finetuning.simulator(
            setup, this_machine(), weights=True, devices=1
        )
        found = _timed(simulator, delta)
    tokens = setup.cohort * setup.steps * setup.batch * setup.length
    rate = tokens / found["seconds a round"]
    flop = flop_of_token(setup) * rate
    peak = peak_of(jax.devices()[0].device_kind)
    share = None if peak is None else flop / peak
    return found | {"tokens a second": rate, "FLOP/s": flop, "share of peak": share}


def flop_of_token(setup: Setup) -> float:
    """FLOP of a token, forward and backward.

    Args:
      setup: of a decoder.
    """
    fields = wire.fields_of(setup.model)
    width, layers = fields["hidden_size"], fields["num_hidden_layers"]
    row = wire.wire(setup.model, "lora")
    embedding = fields["vocab_size"] * width
    is_tied = fields.get("tie_word_embeddings", False)
    matrices = row.frozen_parameters - (0 if is_tied else embedding)
    # Scores and their sum of values, half of each masked; backward twice that.
    attention = 3 * 2 * setup.length * width * layers
    return 4.0 * matrices + attention


def peak_of(kind: str) -> float | None:
    """FLOP/s of a card's dense bf16 products; None for one that is not known.

    Args:
      kind: JAX's name of the device.
    """
    names = [name for name in PEAKS if name in kind]
    return PEAKS[max(names, key=len)] if names else None


def _timed(simulator: ffm.Simulator, delta: Any) -> dict[str, Any]:
    """Seconds of a round after the first, and of compiling; memory."""
    compiled = simulator.compile(delta)
    state = simulator.init(delta)
    state, _ = simulator.run(state, 1)
    begin = time.perf_counter()
    state, _ = simulator.run(state, ROUNDS)
    jax.block_until_ready(state.delta)
    seconds = (time.perf_counter() - begin) / ROUNDS
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "seconds a round": seconds,
        "compile seconds": compiled.seconds,
        "clients at once": compiled.engine.plan.block_size,
        "needed bytes": compiled.needed,
        "peak bytes": stats.get("peak_bytes_in_use"),
    }


def peft(smoke: bool) -> dict[str, Any]:
    """Tokens a second of the loop that users of Hugging Face PEFT write, same card.

    Args:
      smoke: tiny sizes.
    """
    if importlib.util.find_spec("torch") is None:
        return {"left out": "PyTorch is not installed here"}
    settings = {
        "fields": wire.fields_of("smollm2-135m"),
        "batch": 2 if smoke else 4,
        "length": 8 if smoke else 512,
        "rank": 8,
        "steps": 1 if smoke else 10,
    }
    script = Path(__file__).parent / "peers" / "peft_on_card.py"
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(settings)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


# The whole


def lines(minutes: float, smoke: bool = False) -> Iterator[dict[str, Any]]:
    """The machine, then a line for each check, as soon as it is known.

    Args:
      minutes: after which nothing more is begun.
      smoke: tiny sizes.
    """
    end = time.monotonic() + 60 * minutes
    device = jax.devices()[0]
    yield {
        "card": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "fedjax_fm": ffm.__version__,
    }
    for check in checks(smoke):
        left = end - time.monotonic()
        if left < check.seconds:
            why = (
                f"{left:.0f} s were left of the {check.seconds:.0f} s that it may take"
            )
            yield {"check": check.name, "left out": why}
            continue
        try:
            yield {"check": check.name, **check.run()}
        except Exception as error:  # the lines after it are still wanted
            said = str(error).splitlines() or [""]
            yield {"check": check.name, "failed": f"{type(error).__name__}: {said[0]}"}


def run(minutes: float, out: Path | None, as_json: bool, smoke: bool) -> int:
    """Prints the lines, and writes them into a file as they come.

    Args:
      minutes: as of `lines`.
      out: a file, a line of JSON each; None: none.
      as_json: prints JSON, too.
      smoke: as of `lines`.

    Returns:
      1 if a check failed, else 0.
    """
    has_failed = False
    for line in lines(minutes, smoke):
        text = json.dumps(line)
        print(text if as_json else _words(line), flush=True)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        has_failed |= "failed" in line
    return int(has_failed)


def _words(line: dict[str, Any]) -> str:
    def shown(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name}: {shown(value)}" for name, value in line.items())


if __name__ == "__main__":
    sys.exit(run(8, None, as_json=True, smoke="--smoke" in sys.argv))
