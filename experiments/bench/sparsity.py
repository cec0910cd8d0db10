"""What pruning and smaller models save, measured on this machine: one table.

    python -m fedjax_fm.experiments.bench.sparsity            # prints it
    python -m fedjax_fm.experiments.bench.sparsity --smoke    # a tiny model
    python -m fedjax_fm.experiments.bench.sparsity PAGE       # writes it into a page

A client trains one step a round. Bytes are the lengths of packed buffers, of the second
round, when masks are known; masks that travel are also written by the arithmetic coder,
and read again. Operations are those of the round's matrix products, loops counted by
their length; the compiler's own count, beside it, takes a loop over layers once, so that
it compares nothing but models of one depth. Memory is what it says of the compiled
round. Seconds are medians. In a page the table stands between `<!-- sparsity -->` and
`<!-- end of sparsity -->`.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import fedjax_fm as ffm
from fedjax_fm import sparsity, trees
from fedjax_fm.experiments.bench.floor import best_rate, processor, products_of
from fedjax_fm.experiments.bench.pages import check_places, put_into
from fedjax_fm.experiments.bench.sparsity_cases import (
    KERNELS,
    MASKED,
    ROWS,
    STACKED,
    Case,
    Row,
    Sizes,
    adapted,
)
from fedjax_fm.experiments.fedpm.bits import MODEL_BITS, coded

HEAD = (
    "method", "kind", "parameters", "bytes down", "bytes up", "mask, coded",
    "GFLOP", "as compiled", "MB", "ms a round", "of FedAvg", "of the floor's rate",
)  # fmt: skip
CODED = 20_000  # entries of a mask that the arithmetic coder writes


class Measured(NamedTuple):
    """What one row gives.

    Attributes:
      parameters: that are trained and not zero.
      down, up: bytes of a client in a round.
      coded: bits an entry of the mask by the arithmetic coder, with its law; None where
        no mask travels.
      compiled: operations of the compiled round, a loop over layers counted once.
      memory: bytes that the compiled round needs.
      seconds: of a round.
      products: operations of its matrix products, all layers counted.
      rate: the best FLOP/s of such products on this machine; None: not measured.
    """

    parameters: int
    down: int
    up: int
    coded: float | None
    compiled: float
    memory: int
    seconds: float
    products: int
    rate: float | None


def measured(
    made: Case, sizes: Sizes, repeats: int, with_floor: bool = True
) -> Measured:
    """Compiles a case, and runs it.

    Args:
      made: the method on a model.
      sizes: of the model.
      repeats: rounds that are timed.
      with_floor: whether the rate of matrix products is measured.
    """
    how: dict[str, Any] = {"backbone": made.backbone, "cohort_size": 1, "devices": 1}
    simulator = ffm.Simulator(made.method, sizes.population(), **how)
    compiled = simulator.compile(made.delta)
    costs = compiled.program.cost_analysis()
    state, _ = simulator.run(simulator.init(made.delta), 1)
    state, metrics = simulator.run(state, 1)
    products = products_of(simulator, made.delta)
    return Measured(
        parameters=kept_parameters(made.delta, metrics),
        down=int(metrics["downlink_bytes"][-1]),
        up=int(metrics["uplink_bytes"][-1]),
        coded=coded_bits(state.carry),
        compiled=float(costs["flops"]),
        memory=compiled.needed or 0,
        seconds=seconds_of(simulator, state, repeats),
        products=sum(products.values()),
        rate=best_rate(products).flop_per_second if with_floor else None,
    )


def kept_parameters(delta: Any, metrics: Any) -> int:
    """Entries that are trained and not zero.

    Args:
      delta: the trainable tree.
      metrics: of the last rounds; `density` is of the encoder's kernels.
    """
    density = metrics.get("density")
    if density is None:
        return trees.size(delta)
    pruned = trees.size(sparsity.Layers(KERNELS, STACKED).weights(delta))
    return round(trees.size(delta) - pruned * (1 - float(density[-1])))


def coded_bits(carry: Any) -> float | None:
    """Bits an entry of the mask that travels, by the arithmetic coder.

    Args:
      carry: of a state: the server's masks, or those of the clients.
    """
    for owner in (carry.server, carry.clients):
        if masks := getattr(owner, "masks", None):
            first = next(iter(masks.values()))
            flags = np.asarray(first).reshape(-1)[:CODED]
            return (coded(flags) + MODEL_BITS) / flags.size
    return None


def seconds_of(simulator: ffm.Simulator, state: Any, repeats: int) -> float:
    """The median of some rounds.

    Args:
      simulator: that has run.
      state: where it stands.
      repeats: rounds.
    """
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        state, _ = simulator.run(state, 1)
        jax.block_until_ready(state.carry)
        found.append(time.perf_counter() - began)
    return float(np.median(found))


def cells(row: Row, found: Measured, dense: Measured) -> tuple[str, ...]:
    """One line of the table.

    Args:
      row: what was measured.
      found: what it gave.
      dense: the first row's.
    """
    share = "-"
    if found.rate is not None:
        floor = found.products / found.rate
        share = f"{100 * floor / found.seconds:.0f} %"
    return (
        row.name,
        row.kind,
        f"{found.parameters:,}",
        f"{found.down:,}",
        f"{found.up:,}",
        "-" if found.coded is None else f"{found.coded:.3f} bits",
        f"{found.products / 1e9:.2f}",
        f"{found.compiled / 1e9:.2f}",
        f"{found.memory / 1e6:.0f}",
        f"{1e3 * found.seconds:.0f}",
        f"{found.seconds / dense.seconds:.2f}",
        share,
    )


def table(sizes: Sizes, repeats: int, with_floor: bool = True) -> str:
    """The table in Markdown, and what follows from it; measures every row.

    Args:
      sizes: of the model.
      repeats: rounds of each row that are timed.
      with_floor: whether rates of matrix products are measured.
    """
    found = {}
    for row in ROWS:
        case = row.make(sizes)
        found[row.name] = measured(case, sizes, repeats, with_floor)
        print(f"{row.name}: {1e3 * found[row.name].seconds:.0f} ms", flush=True)
    dense = found[ROWS[0].name]
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for row in ROWS:
        lines.append("| " + " | ".join(cells(row, found[row.name], dense)) + " |")
    return "\n".join([*lines, "", *sentences(found, sizes)])


def sentences(found: dict[str, Measured], sizes: Sizes) -> list[str]:
    """What stands below the table.

    Args:
      found: by name of the row.
      sizes: of the model.
    """
    whole, cut = (found[row.name] for row in ROWS[-4:-2])
    fastest = min(found[row.name].seconds for row in ROWS if row.kind == MASKED)
    packed = packed_share(sizes)
    return [
        f"On {processor()}; {sizes.layers} layers of width {sizes.hidden}, {sizes.batch} x "
        f"{sizes.length} tokens, {100 * sizes.density:.0f} % of the encoder's kernels kept. "
        f"Taken out, heads and units make a round {whole.seconds / cut.seconds:.2f} times "
        f"as fast as masked ones. The fastest of the masked methods takes "
        f"{fastest / found[ROWS[0].name].seconds:.2f} of FedAvg's time: masked, not "
        f"faster. 2 of 4 entries, packed, take {100 * packed:.1f} % of the dense bytes.",
    ]


def packed_share(sizes: Sizes) -> float:
    """Bytes of the encoder's kernels with 2 of every 4 entries, of all of them.

    Args:
      sizes: of the model.
    """
    layers = sparsity.Layers(KERNELS, STACKED)
    weights = layers.weights(adapted(sizes.model()).delta)
    packed = {k: sparsity.pack_vector_wise(x, 2, 4) for k, x in weights.items()}
    return trees.nbytes(packed) / trees.nbytes(weights)


def main(words: Sequence[str] | None = None) -> None:
    """Prints the table, or writes it into a page.

    Args:
      words: of the command line; None: those of the process.
    """
    parser = argparse.ArgumentParser(description="What smaller models save.")
    parser.add_argument("page", nargs="?", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a tiny model")
    parser.add_argument("--repeats", type=int, default=9, help="rounds that are timed")
    given = parser.parse_args(words)
    if given.page is not None:
        check_places(given.page, "sparsity")
    if given.smoke:
        tiny = Sizes(layers=4, hidden=16, heads=2, batch=2, length=4)
        found = table(tiny, 1, with_floor=False)
    else:
        found = table(Sizes(), given.repeats)
    if given.page is None:
        print(found)
    else:
        put_into(given.page, "sparsity", found)


if __name__ == "__main__":
    main()
