"""Programs for TPUs and GPUs that were compiled, and not run: one table.

    python -m fedjax_fm.experiments.bench.compiled            # prints it
    python -m fedjax_fm.experiments.bench.compiled PAGE       # writes it into a page

Needs libtpu and the CUDA plugin, see `fedjax_fm.aot.topologies`. In a page the table
stands between two comments, `<!-- compiled -->` and `<!-- end of compiled -->`.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from fedjax_fm.aot import command
from fedjax_fm.aot.finetuning import Setup
from fedjax_fm.aot.report import Report
from fedjax_fm.experiments.bench.pages import check_places, put_into

HEAD = (
    "program", "machines", "clients a round", "arguments", "temporaries",
    "needed of", "donated", "sent over clients", "floor", "seconds",
)  # fmt: skip


class Row(NamedTuple):
    """A program of the table.

    Attributes:
      says: what it is.
      topology: for which machines.
      setup: what is fine-tuned.
      how: arguments of `command.compiled`.
    """

    says: str
    topology: str
    setup: Setup
    how: dict[str, Any]


def _minilm(cohort: int, population: int) -> Setup:
    return Setup(
        model="minilm-l6",
        classes=2,
        cohort=cohort,
        population=population,
        length=32,
        steps=2,
        dtype="float32",
    )


def _llama(name: str, cohort: int, frozen: str = "dense") -> Setup:
    return Setup(model=name, cohort=cohort, batch=4, frozen=frozen)


def _smollm2(cohort: int) -> Setup:
    return Setup(model="smollm2-135m", cohort=cohort, batch=4, length=256)


SMOLLM2 = "SmolLM2-135M bf16, 4 x 256 tokens"
MINILM = "MiniLM f32, 8 x 32 tokens, 2 steps"
# The uplink keeps a residual for each client.
FED_BACK = f"{MINILM}, error feedback with top-k and 4 bits"
KEPT = {"uplink": "error_feedback(top_k(0.1) | quantize(4))"}
# what is fine-tuned, for which machines, the cohort laid out how
ROWS = tuple(
    Row(says=says, topology=topology, setup=setup, how=how)
    for says, topology, setup, how in (
        (MINILM, "v5e:2x4", _minilm(64, 256), {"block_size": 8}),
        (MINILM, "v5e:8x8", _minilm(512, 2048), {"block_size": 8}),
        (MINILM, "v5e:16x16", _minilm(4096, 8192), {"block_size": 16}),
        (MINILM, "h100:8", _minilm(64, 256), {"block_size": 8}),
        (MINILM, "a100:8", _minilm(64, 256), {"block_size": 8}),
        (FED_BACK, "v5e:2x4", _minilm(64, 4096), {"block_size": 8, **KEPT}),
        (FED_BACK, "v6e:8x8", _minilm(512, 8192), {"block_size": 8, **KEPT}),
        (FED_BACK, "v6e:16x16", _minilm(4096, 16384), {"block_size": 16, **KEPT}),
        (FED_BACK, "v5e:8x8", _minilm(512, 8192), {"block_size": 8, **KEPT}),
        (FED_BACK, "h100:8", _minilm(64, 4096), {"block_size": 8, **KEPT}),
        (SMOLLM2, "v5e:2x4", _smollm2(8), {"block_size": 1}),
        (SMOLLM2, "h100:8", _smollm2(8), {"block_size": 1}),
        (
            "Llama-3-8B NF4 and bf16, 4 x 512 tokens",
            "v5e:2x4",
            _llama("llama-3-8b", 8, "nf4"),
            {"block_size": 1},
        ),
        (
            "Llama-3-8B bf16, 4 x 512 tokens, model 4",
            "v5p:2x2x4",
            _llama("llama-3-8b", 4),
            {"block_size": 1, "model_parallel": 4},
        ),
        (
            "Llama-3-70B bf16, 4 x 512 tokens, model 8",
            "v5p:2x2x4",
            _llama("llama-3-70b", 2),
            {"block_size": 1, "model_parallel": 8},
        ),
    )
)


def cells(row: Row, found: Report) -> tuple[str, ...]:
    """One line of the table.

    Args:
      row: what was compiled.
      found: what the compiler says.
    """
    state = found.server + found.clients
    return (
        row.says,
        row.topology,
        f"{row.setup.cohort:,} of {row.setup.population:,}",
        _mb(found.arguments),
        _mb(found.temporaries),
        f"{_mb(found.needed)} of {_mb(found.memory)}",
        "the state" if found.donated >= state else _mb(found.donated),
        f"{found.sent_each_round:,}",
        f"{found.floor:,}",
        f"{found.seconds:.0f}",
    )


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f}"


def table(rows: Sequence[Row] = ROWS) -> str:
    """The table in Markdown; compiles every row.

    Args:
      rows: which.
    """
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for number, row in enumerate(rows, 1):
        print(f"{number} of {len(rows)}: {row.says}, {row.topology}", file=sys.stderr)
        found = command.compiled(row.topology, row.setup, **row.how, fast=True)
        lines.append("| " + " | ".join(cells(row, found)) + " |")
    return "\n".join(lines)


def main(words: Sequence[str]) -> None:
    """Prints the table, or writes it into a page.

    Args:
      words: of the command line.
    """
    if not words:
        print(table())
        return
    page = Path(words[0])
    check_places(page, "compiled")
    put_into(page, "compiled", table())


if __name__ == "__main__":
    main(sys.argv[1:])
