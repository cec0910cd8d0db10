"""`fedjax-fm bench profile WORKLOAD`: where a round's time goes.

The profiler times each operation of the compiled round; the frames of Python that made
it, which the program carries, say what it is for. An operation that XLA has fused from
several counts where its last part comes from. Seconds are of one core: the mean over
the devices that work side by side.
"""

import glob
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich import box
from rich.console import Console
from rich.table import Table

from fedjax_fm.aot import hlo
from fedjax_fm.experiments.bench import floor
from fedjax_fm.experiments.bench.command import choose, shown_seconds
from fedjax_fm.experiments.bench.workloads import WORKLOADS
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.terminal import for_tables

# What an operation is for, by words in its frames' files and functions, innermost first.
PLACES = (
    ("LoRA and other adapters", ("fedjax_fm/peft/",)),
    ("attention", ("models/attention.py", "ttention.__call__", "attend")),
    ("norms", ("normalization.py", "Norm")),
    ("activations", ("models/activations.py", "gelu", "relu", "silu")),
    ("batches read", ("engine/data.py", "population/permutation.py")),
    ("channels", ("fedjax_fm/channels/", "fedjax_fm/kernels/", "/kernels/")),
    ("optimizer", ("/optax/_src/", "/optax/transforms/", "fedjax_fm/trees.py")),
    ("layers read and stored by the loop over them", ("models/stacked.py",)),
    ("loss and head", ("/optax/losses/", "language_modeling.py", "losses.py")),
    ("models, the rest", ("fedjax_fm/models/", "/flax/", "bench/workloads/")),
)
FORWARD = "products, forward"
BACKWARD = "products, backward"
SMALL = "attention, its small products"
REST = "the engine and the rest"
WAITING = "waiting, and between operations"
MOVED = 1 << 20  # bytes that are changed in place to see the rate of memory
OFTEN = 100  # times in one call


class Row(NamedTuple):
    """What one kind of work costs in a round.

    Attributes:
      kind: of the work.
      seconds: on one core.
      flop: of its products, on one core.
      nbytes: read and written, on one core.
      floor: seconds that these would need.
    """

    kind: str
    seconds: float
    flop: float
    nbytes: float
    floor: float


class Profile(NamedTuple):
    """Where the time of a workload's round goes."""

    workload: str
    processor: str
    seconds: float  # of the round, without the profiler
    rate: floor.Rate
    bytes_per_second: float
    rows: list[Row]


def profile(name: str, *, smoke: bool = False) -> Profile:
    """Times one round of a workload by what its operations are for.

    Args:
      name: of the workload.
      smoke: tiny sizes.

    Raises:
      UsageError: an unknown workload; names the nearest one.
    """
    (workload,) = choose([name])
    data = workload.make(smoke)
    simulator, delta = workload.simulator(data)
    seconds, counted = _traced(simulator, delta)
    program = hlo.parsed(compiled_text(simulator, delta))
    rate = floor.best_rate(floor.products_of(simulator, delta))
    moved = bytes_per_second()
    n_devices = len(jax.devices())
    rows = list(_rows(program, counted, n_devices=n_devices, rate=rate, moved=moved))
    busy = sum(row.seconds for row in rows)
    waited = max(seconds - busy, 0.0)
    rows.append(Row(kind=WAITING, seconds=waited, flop=0.0, nbytes=0.0, floor=0.0))
    return Profile(
        workload=name,
        processor=floor.processor(),
        seconds=seconds,
        rate=rate,
        bytes_per_second=moved,
        rows=sorted(rows, key=lambda row: -row.seconds),
    )


class Counted(NamedTuple):
    """Seconds and executions of each operation, over all devices."""

    seconds: dict[str, float]
    times: Counter[str]


def _traced(simulator: Any, delta: Any) -> tuple[float, Counted]:
    """(seconds of a round, what the profiler saw of one)."""
    state = simulator.init(delta)

    def one_round() -> None:
        after, _ = simulator.run(state, 1)
        jax.block_until_ready(after.carry)

    one_round()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            one_round()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        counted = _counted(jax.profiler.ProfileData.from_file(path))
    return floor.fastest(one_round), counted


def _counted(found: Any) -> Counted:
    """An operation's own time: what runs inside of it on its thread is taken off."""
    seconds, times = defaultdict[str, float](float), Counter[str]()
    for plane in found.planes:
        for line in plane.lines:
            open_ones: list[tuple[float, str]] = []  # ends and names
            for event in sorted(line.events, key=lambda one: one.start_ns):
                name = dict(event.stats).get("hlo_op")
                if name is None:
                    continue
                while open_ones and open_ones[-1][0] <= event.start_ns:
                    open_ones.pop()
                spent = event.duration_ns / 1e9
                if open_ones:
                    seconds[open_ones[-1][1]] -= spent
                seconds[name] += spent
                times[name] += 1
                open_ones.append((event.start_ns + event.duration_ns, name))
    return Counted(seconds, times)


def compiled_text(simulator: Any, delta: Any) -> str:
    """The compiled program of a workload's rounds.

    Args:
      simulator: of the workload.
      delta: the trainable tree.
    """
    programs = simulator.programs
    state = simulator.init(delta).carry
    operands = (programs.backbone, programs.data, jnp.int32(1), simulator.key)
    return programs.fused.lower(state, *operands).compile().as_text()


def _rows(
    program: hlo.Program,
    counted: Counted,
    *,
    n_devices: int,
    rate: floor.Rate,
    moved: float,
) -> Iterator[Row]:
    """The costs of each kind, as of one of the devices."""
    seconds, flop, nbytes = (defaultdict[str, float](float) for _ in range(3))
    for name, spent in counted.seconds.items():
        if name not in program.operations:  # of another program than the rounds
            continue
        kind = kind_of(program, name)
        seconds[kind] += spent
        flop[kind] += program.flop(name) * counted.times[name]
        if program.operations[name].opcode not in ("while", "conditional", "call"):
            nbytes[kind] += program.nbytes(name) * counted.times[name]
    for kind, spent in seconds.items():
        of_products = flop[kind] / rate.flop_per_second
        of_memory = nbytes[kind] / moved
        yield Row(
            kind=kind,
            seconds=spent / n_devices,
            flop=flop[kind] / n_devices,
            nbytes=nbytes[kind] / n_devices,
            floor=max(of_products, of_memory),
        )


def kind_of(program: hlo.Program, name: str) -> str:
    """What an operation is for.

    Args:
      program: that it is of.
      name: of the operation.
    """
    frames = program.stack(name)
    if program.products(name):
        return _kind_of_product(frames, program.operations[name].place)
    for frame in frames:
        for kind, marks in PLACES:
            if _is_marked(frame, marks):
                return kind
    return REST


def _kind_of_product(frames: list[hlo.Frame], place: str) -> str:
    """What a product is for: its innermost frame says whose weights it reads."""
    adapters, attention = PLACES[0], PLACES[1]
    if frames and _is_marked(frames[0], adapters[1]):
        return adapters[0]
    of_heads = frames and _is_marked(frames[0], attention[1])
    if of_heads or "BTNH" in place:  # jax.nn.dot_product_attention's axes
        return SMALL
    return BACKWARD if "transpose(" in place else FORWARD


def _is_marked(frame: hlo.Frame, marks: tuple[str, ...]) -> bool:
    where = f"{frame.file} {frame.function}"
    return any(mark in where for mark in marks)


def bytes_per_second() -> float:
    """The rate at which all devices together read and write arrays in their caches.

    A round's arrays mostly stay there; main memory is slower, and no bound.
    """
    numbers = jnp.ones(MOVED // 4)
    parts = [jax.device_put(numbers, device) for device in jax.devices()]
    changed = jax.jit(_changed_often, donate_argnums=0)

    def change_all() -> None:
        parts[:] = [changed(part) for part in parts]
        jax.block_until_ready(parts)

    change_all()
    return 2 * MOVED * OFTEN * len(parts) / floor.fastest(change_all)


def _changed_often(x: jax.Array) -> jax.Array:
    def change(_: int, x: jax.Array) -> jax.Array:
        return x + 1

    return jax.lax.fori_loop(0, OFTEN, change, x)


# What is printed


def in_json(found: Profile) -> str:
    """One JSON object.

    Args:
      found: from `profile`.
    """
    fields = found._asdict()
    fields["rate"] = found.rate._asdict()
    fields["rows"] = [row._asdict() for row in found.rows]
    return json.dumps(fields)


def table(found: Profile) -> Table:
    """A table of the kinds of work.

    Args:
      found: from `profile`.
    """
    rate = found.rate
    made = Table(
        box=box.SIMPLE,
        title=f"{found.workload}: {shown_seconds(found.seconds)} a round",
        caption=f"{found.processor}. Seconds of one core. Floor: products at "
        f"{rate.flop_per_second / 1e9:.0f} GFLOP/s ({rate.engine}, all cores), arrays in "
        f"caches at {found.bytes_per_second / 1e9:.0f} GB/s.",
    )
    made.add_column("work", no_wrap=True)
    for heading in ("time", "share", "GFLOP", "GB", "floor"):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        made.add_row(
            row.kind,
            shown_seconds(row.seconds),
            f"{100 * row.seconds / found.seconds:.1f} %",
            f"{row.flop / 1e9:.3g}",
            f"{row.nbytes / 1e9:.3g}",
            shown_seconds(row.floor),
        )
    return made


def run(name: str | None, *, as_json: bool, smoke: bool) -> int:
    """Prints the profile of a workload.

    Args:
      name: of the workload.
      as_json: one JSON object instead of a table.
      smoke: tiny sizes.

    Returns:
      The exit code, 0.

    Raises:
      UsageError: no workload, or an unknown one.
    """
    if name is None:
        known = ", ".join(WORKLOADS)
        raise UsageError(f"bench profile needs a workload, one of {known}")
    console = Console(stderr=True)
    with console.status(f"measuring {name}"):
        found = profile(name, smoke=smoke)
    if as_json:
        print(in_json(found))
    else:
        for_tables().print(table(found))
    return 0
