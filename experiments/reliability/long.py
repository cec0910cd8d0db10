"""A long run: what the process holds after more and more rounds."""

from collections.abc import Sequence

from fedjax_fm.experiments.reliability.bench import Bench
from fedjax_fm.experiments.reliability.growth import Sample
from fedjax_fm.experiments.reliability.outcome import (
    Broke,
    ends_well,
)

ROUNDS, LOOKS, CHECKPOINTS = 2000, 10, 100
MOST_GROWTH = 0.02  # of the memory
MOST_THREADS = 10  # that pools of Orbax and XLA may still begin

HEAD = ("round", "resident memory", "", "open files", "threads", "compiled", "arrays")


def held(bench: Bench) -> list[Sample]:
    """What a run of 2,000 rounds and 100 checkpoints holds at ten looks.

    Args:
      bench: of the method; a small one does a tenth of it.

    Raises:
      Broke: see `check`.
    """
    share = 10 if bench.small else 1
    rounds, looks = ROUNDS // share, ROUNDS // share // LOOKS
    every = ROUNDS // CHECKPOINTS
    ended = ends_well(bench.run("long", rounds, every=every, sampled=looks))
    samples = [Sample(**one) for one in ended.samples]
    check(samples)
    return samples


def check(samples: Sequence[Sample]) -> None:
    """Raises Broke if more is held at the last look than at the third.

    By then everything has happened several times. Memory may still grow by 2 %, and
    pools may begin ten threads.

    Args:
      samples: at least four.
    """
    begin, end = samples[2], samples[-1]
    for name in ("files", "compiled", "arrays"):
        before, after = getattr(begin, name), getattr(end, name)
        if after > before:
            raise Broke(f"{name}: {before} at round {begin.round}, {after} at the end")
    if end.threads > begin.threads + MOST_THREADS:
        raise Broke(f"threads: {begin.threads}, then {end.threads}")
    if end.memory > (1 + MOST_GROWTH) * begin.memory:
        raise Broke(f"memory: {begin.memory:,} bytes, then {end.memory:,}")


def table(method: str, samples: Sequence[Sample]) -> list[str]:
    """Lines of Markdown, with a bar of the memory.

    Args:
      method: its name.
      samples: of its long run.
    """
    lines = [
        f"{method}:",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
    ]
    most = max(one.memory for one in samples)
    for one in samples:
        bar = "█" * round(20 * one.memory / most)
        lines.append(
            f"| {one.round:,} | {one.memory / 1e6:.1f} MB | {bar} | {one.files} | "
            f"{one.threads} | {one.compiled} | {one.arrays} |"
        )
    return lines
