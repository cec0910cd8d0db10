"""The command `fedjax-fm`.

What only tells (`--version`, `list`, every `--help`) imports neither JAX nor anything that computes.
"""

import dataclasses
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fedjax_fm.runs.errors import Interrupted, UsageError, UserError
from fedjax_fm.runs.terminal import never_fails, say, say_error

if TYPE_CHECKING:
    from fedjax_fm.runs.experiment import Experiment
    from fedjax_fm.runs.folder import RunFolder

_Name = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")]
_Count = Annotated[int | None, tyro.conf.arg(metavar="N")]
_Folder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]
_Settings = Annotated[
    list[tuple[str, ...]], tyro.conf.UseAppendAction, tyro.conf.arg(name="set", metavar="KEY=VALUE ...")
]


def list_experiments() -> None:
    """List the experiments that can be run."""
    from rich.console import Console

    from fedjax_fm.runs import experiment as registry

    console = Console()
    for name in registry.names():
        console.print(name, style="bold", end="  ", markup=False, highlight=False)
        say(console, registry.find(name).summary)
    say(console, "\nstart one: fedjax-fm run NAME   (--smoke: about a minute)")


def run(
    name: _Name = None,
    /,
    rounds: _Count = None,
    clients: _Count = None,
    seed: _Count = None,
    out: _Folder = None,
    smoke: bool = False,
    full: bool = False,
    settings: _Settings = [],  # noqa: B006  (never changed; tyro wants a default of the type)
    resume: _Folder = None,
) -> None:
    """Run an experiment; it leaves a folder with metrics, a checkpoint and report.html.

    Args:
        name: the experiment; see `fedjax-fm list`.
        rounds: number of rounds.
        clients: clients that train.
        seed: names every random choice of the run.
        out: the run's folder; default runs/NAME-SEED.
        smoke: a small version, about a minute, to see that everything works.
        full: the whole study, several seeds and all arms; may take an hour.
        settings: any other setting, for example `--set rank=4 partition=dirichlet`.
        resume: go on with an interrupted run in this folder, with the settings it was started with.
    """
    flags = {"rounds": rounds, "clients": clients, "seed": seed}
    flags = {flag: value for flag, value in flags.items() if value is not None}
    pairs = [pair for pairs in settings for pair in pairs]
    if resume is not None:
        changed = [f"--{flag}" for flag in (*flags, *(["out"] if out is not None else []))]
        changed += ["--smoke"] * smoke + ["--full"] * full + ["--set"] * bool(settings)
        if changed:
            raise UsageError(f"--resume goes on with the run's own settings; leave out {', '.join(changed)}")
        found, config, folder = _begun(resume, name)
    else:
        found, config = _chosen(name, smoke, full, flags, pairs)
        from fedjax_fm.runs.folder import RunFolder

        place = out if out is not None else Path("runs") / f"{found.name}-{config.seed}"
        folder = RunFolder.create(place, dataclasses.asdict(config), found.name)
    _run(found, config, folder, is_new=resume is None)


def _begun(path: Path, name: str | None) -> "tuple[Experiment, Any, RunFolder]":
    """The experiment, configuration and folder of a run that goes on."""
    from fedjax_fm.runs import experiment as registry
    from fedjax_fm.runs.folder import RunFolder

    folder = RunFolder.open(path)
    fields = dict(folder.config)
    found = registry.find(fields.pop("experiment"))
    if name not in (None, found.name):
        raise UsageError(f"{path} is a run of {found.name!r}, not of {name!r}")
    return found, registry.restored(found.config, fields, str(path / "config.json")), folder


def _chosen(
    name: str | None, smoke: bool, full: bool, flags: dict[str, int], pairs: list[str]
) -> "tuple[Experiment, Any]":
    """The experiment and its configuration, as the command line has them."""
    from fedjax_fm.runs import experiment as registry

    if name is None:
        raise UsageError(f"say which experiment: {', '.join(registry.names())}")
    if smoke and full:
        raise UsageError("--smoke and --full exclude each other")
    if twice := sorted({pair.partition("=")[0].strip() for pair in pairs} & flags.keys()):
        raise UsageError(f"--{twice[0]} and --set {twice[0]}=... are the same setting; give one")
    found = registry.find(name)
    config = found.config()
    config = config.smoke() if smoke else config.full() if full else config
    config = registry.replace(config, **flags)
    return found, registry.override(config, pairs)


def _run(found: "Experiment", config: Any, folder: "RunFolder", is_new: bool) -> None:
    """Runs it; a new folder in which nothing was computed when an error came does not stay in the way."""
    from rich.console import Console

    console = Console()
    say(console, f"{found.name} in {folder.path}")
    try:
        found.run(config, folder, console)
    except (Interrupted, KeyboardInterrupt) as stop:
        say(console, f"\n{str(stop) or 'stopped'}. Go on with: fedjax-fm run --resume {folder.path}")
        sys.exit(130)
    except Exception:
        if is_new and folder.is_empty:
            folder.remove()
        raise


def report(folder: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Make report.html anew from a run's folder, and print its main figures.

    Args:
        folder: a folder that `fedjax-fm run` made.
    """
    from rich.console import Console

    from fedjax_fm.runs import experiment as registry
    from fedjax_fm.runs.folder import RunFolder

    opened = RunFolder.open(folder)
    page = registry.find(opened.config["experiment"]).report(opened)
    console = Console()
    for name, text in opened.read_json("results.json").get("comparisons", {}).items():
        say(console, f"{name}: {text}")
    say(console, f"report: {page}")


def bench(
    what: Annotated[Literal["engine", "kernels"], tyro.conf.Positional],
    /,
    peers: bool = False,
    only: list[str] = [],  # noqa: B006
    repeats: int = 5,
    json: bool = False,
    smoke: bool = False,
    cache: Path = Path("~/.cache/fedjax_fm/peers"),
) -> None:
    """Time this machine: whole rounds beside the time of their matrix products, or array kernels beside one read and write.

    Args:
        what: engine: whole rounds of several workloads; kernels: selection, quantising and packing on one core.
        peers: also time other libraries, in turn with ours, each in a virtual environment made for it (kernels: the
            PyTorch that is installed here; lax.top_k and jax.random need no flag). For engine this takes a clone of the
            repository, which alone has the scripts of the other libraries.
        only: workloads or kernels; default all.
        repeats: timed calls, of which the median is shown.
        json: one JSON object a line instead of a table.
        smoke: tiny sizes, to see that everything works.
        cache: folder of the other libraries' environments.
    """
    importlib.import_module("fedjax_fm.engine")  # its number of devices is said here, and not to the peers' processes
    if repeats < 1:
        raise UsageError(f"expected repeats >= 1, got repeats={repeats}")
    if what == "kernels":
        kernels = importlib.import_module("fedjax_fm.experiments.bench.kernels")
        sys.exit(kernels.run(only, peers=peers, repeats=repeats, as_json=json, smoke=smoke))
    command = importlib.import_module("fedjax_fm.experiments.bench.command")
    sys.exit(command.engine(only, peers=peers, repeats=repeats, as_json=json, smoke=smoke, cache=cache))


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
    """Count what one client sends and receives in a round of fine-tuning: computed from shapes, nothing is run.

    Args:
        model: an architecture such as roberta-base or llama-3-8b, a hub id, or a folder with a config.json.
        peft: full, lora, adapter, bitfit, prompt, prefix, vpt, ia3 or head; default all that fit the model.
        classes: adds the architecture's classification head with that many classes; it is trained and sent in full.
        rank: of lora.
        targets: names of the layers that are adapted, with commas between them; default query and value (lora), all
            output projections (adapter), all biases (bitfit), keys, values and feed-forward layers (ia3).
        bottleneck: of adapter; default 64, and for both towers of CLIP the adapter of FedCLIP on the image features.
        tokens: of prompt (default 20), prefix (16) and vpt (10).
        hidden: width of a network that makes the prefix, which is then sent too; default none.
        mode: of vpt.
        norms: adapter trains the layers' normalisations too.
        json: one JSON object (a line a method) instead of a table.
    """
    counting = importlib.import_module("fedjax_fm.wire")
    chosen = None if targets is None else tuple(part.strip() for part in targets.split(",") if part.strip())
    if chosen == ():
        raise UsageError(f"--targets takes names of layers with commas between them, got {targets!r}")
    options = counting.Options(rank, chosen, bottleneck, tokens, hidden, mode, norms)
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


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_experiments,
    "run": run,
    "report": report,
    "wire": wire,
    "bench": bench,
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point; turns what the user can mend into one line and exit code 2. A traceback is a bug of ours.

    Args:
      arguments: default those of the process.
    """
    never_fails(sys.stdout, sys.stderr)
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["--version"]:
        print(f"fedjax-fm {importlib.metadata.version('fedjax-fm')}")
        return
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="fedjax-fm",
            description="Federated fine-tuning of foundation models, simulated on JAX. fedjax-fm --version says which.",
            args=words,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        sys.stdout.flush()
    except BrokenPipeError:  # `fedjax-fm list | head`: who read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("FEDJAX_FM_TRACEBACK") or not _is_users(error):
            raise
        say_error(error)
        sys.exit(2)


def _is_users(error: Exception) -> bool:
    """Whether the message is for the user; ours and the system's, and values that a library has refused."""
    if isinstance(error, (UserError, ValueError, FloatingPointError, OSError)):
        return True
    rounds = sys.modules.get("fedjax_fm.engine.errors")  # no round has run where that is not imported
    return rounds is not None and isinstance(error, rounds.RoundError)


if __name__ == "__main__":
    main()
