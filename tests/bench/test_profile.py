"""Where a round's time goes: what is read out of compiled programs, and the floor's rate."""

import json
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from fedjax_fm.aot import hlo
from fedjax_fm.cli import main
from fedjax_fm.experiments.bench import floor, profile
from fedjax_fm.experiments.bench.workloads import WORKLOADS


def compiled(fn, *operands):
    return hlo.parsed(jax.jit(fn).lower(*operands).compile().as_text())


def all_flop(program):
    outside = [
        name
        for names in program.computations.values()
        for name in names
        if program.operations[name].opcode in ("dot", "convolution")
    ]
    return sum(program.flop(name) for name in outside)


def test_flop_of_products_and_convolutions_in_closed_form():
    left, right = jnp.ones((3, 5, 7)), jnp.ones((7, 11))
    assert all_flop(compiled(jnp.matmul, left, right)) == 2 * 3 * 5 * 7 * 11
    batched = compiled(jnp.matmul, left, jnp.ones((3, 7, 11)))
    assert all_flop(batched) == 2 * 3 * 5 * 7 * 11

    def convolved(images, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "VALID", dimension_numbers=dimensions
        )

    program = compiled(convolved, jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4)))
    assert all_flop(program) == 2 * (2 * 6 * 6 * 4) * (3 * 3 * 3)


def test_frames_lead_back_to_the_code():
    def doubled(x):
        return jnp.sin(x) * 2

    program = compiled(doubled, jnp.ones(8))
    functions = {
        frame.function.rsplit(".", 1)[-1]
        for name in program.operations
        for frame in program.stack(name)
        if frame.file.endswith("test_profile.py")
    }
    assert "doubled" in functions


def test_bytes_of_an_operation():
    program = compiled(lambda x, y: x + y, jnp.ones(100), jnp.ones(100))
    (add,) = (n for n, o in program.operations.items() if o.opcode in ("fusion", "add"))
    assert program.nbytes(add) == 3 * 400


def kinds(name):
    """FLOP by kind of a workload's program, a passage of each loop counted once."""
    workload = WORKLOADS[name]
    simulator, delta = workload.simulator(workload.make(True))
    simulator.init(delta)
    program = hlo.parsed(profile.compiled_text(simulator, delta))
    fused = {
        one
        for name, operation in program.operations.items()
        if operation.opcode == "fusion"
        for one in program.inside(name)[1:]
    }
    found = Counter()
    for name in set(program.operations) - fused:
        found[profile.kind_of(program, name)] += program.flop(name)
    return found


def test_products_are_told_apart_by_what_they_are_for():
    """MiniLM's smoke size: d = 32, 2 heads, 3 clients of 8 texts of 8 tokens, rank 2."""
    found = kinds("lora-minilm")
    rows, d, rank = 3 * 8 * 8, 32, 2
    layer = 2 * rows * 12 * d * d
    once_a_text = 2 * 3 * 8 * (d * d + d * 2)  # pooler and classifier
    assert found[profile.FORWARD] == layer + once_a_text
    classifiers_gradient = 2 * 3 * 8 * d * 2
    assert found[profile.BACKWARD] == layer + once_a_text + classifiers_gradient
    factor = 2 * rows * d * rank
    # Two layers of two factors: forward, again, and twice backward, A's input once more.
    assert 12 * factor <= found["LoRA and other adapters"] <= 20 * factor
    scores = 2 * rows * 8 * d
    assert found[profile.SMALL] == 7 * scores  # forward 2, scores again, backward 4
    assert found["attention"] == found[profile.REST] == 0


def test_shares_of_shapes_follow_the_loops():
    def looped(x, w):
        def body(x, w):
            return x @ w, None

        x, _ = jax.lax.scan(body, x, w)
        return x @ jnp.ones((6, 3))

    traced = jax.jit(looped).trace(jnp.ones((4, 6)), jnp.ones((5, 6, 6)))
    found = Counter()
    floor._count(traced.jaxpr.jaxpr, 1, found)
    assert found == {(4, 6, 6): 5 * 2 * 4 * 36, (4, 6, 3): 2 * 4 * 18}


def test_the_floor_takes_the_fastest_library_for_each_shape(monkeypatch):
    rates = {"XLA": [10.0, 40.0], "PyTorch": [20.0, 10.0]}

    def rates_of(engine, cores, shapes):
        share = 1 if cores == "all" else 0.5
        return [share * rate for rate in rates[engine]]

    monkeypatch.setattr(floor, "_installed", lambda: list(rates))
    monkeypatch.setattr(floor, "rates_of", rates_of)
    found = floor.best_rate(Counter({(1, 1, 1): 300, (2, 2, 2): 100}))
    assert found.flop_per_second == pytest.approx(400 / (300 / 20 + 100 / 40))
    assert found.one_core == pytest.approx(found.flop_per_second / 2)
    assert found.engine == "PyTorch"


def test_rates_are_measured_in_a_process_of_their_own():
    for engine in ("XLA", "numpy"):
        (one,) = floor.rates_of(engine, "1", ((64, 64, 64),))
        assert 1e7 < one < 1e13
    with pytest.raises(RuntimeError, match="nothing on all cores"):
        floor.rates_of("nothing", "all", ((1, 1, 1),))


def test_processor():
    name, cores, widest = floor.processor().rsplit(", ", 2)
    assert name
    assert cores.endswith(" cores")
    assert widest in (*floor.SETS, "unknown set")


def printed(*words):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "profile", *words])
    return stopped.value.code


def test_for_real(capsys, monkeypatch):
    rate = floor.Rate(flop_per_second=1e10, one_core=5e9, engine="numpy")
    monkeypatch.setattr(floor, "best_rate", lambda products: rate)
    assert printed("mlp-1000", "--smoke", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rate"]["engine"] == "numpy"
    seconds = {row["kind"]: row["seconds"] for row in found["rows"]}
    assert seconds[profile.FORWARD] > 0
    assert seconds[profile.BACKWARD] > 0
    flop = sum(row["flop"] for row in found["rows"]) * len(jax.devices())
    workload = WORKLOADS["mlp-1000"]
    assert flop == pytest.approx(workload.flop(workload.make(True)), rel=0.25)


def test_wrong_words(capsys):
    assert printed() == 2
    assert "needs a workload" in " ".join(capsys.readouterr().err.split())
    assert printed("lora-mini", "--smoke") == 2
    assert "did you mean 'lora-minilm'" in " ".join(capsys.readouterr().err.split())
