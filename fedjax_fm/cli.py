"""The command `fedjax-fm`."""

import dataclasses
import importlib
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from fedjax_fm.engine import RoundError
from fedjax_fm.runs import experiment as registry
from fedjax_fm.runs.checkpoint import CheckpointError
from fedjax_fm.runs.experiment import UsageError
from fedjax_fm.runs.folder import RunFolder, RunFolderError
from fedjax_fm.runs.loop import Interrupted

_Name = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")]
_Count = Annotated[int | None, tyro.conf.arg(metavar="N")]
_Folder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]
_Settings = Annotated[
    list[tuple[str, ...]], tyro.conf.UseAppendAction, tyro.conf.arg(name="set", metavar="KEY=VALUE ...")
]


def list_experiments() -> None:
    """List the experiments that can be run."""
    console = Console()
    for name in registry.names():
        console.print(f"[bold]{name}[/bold]  {registry.find(name).summary}", highlight=False, soft_wrap=True)
    console.print("\nstart one: fedjax-fm run NAME   (--smoke: about a minute)", highlight=False, soft_wrap=True)


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
    console = Console()
    if resume is not None:
        given = {"--rounds": rounds, "--clients": clients, "--seed": seed, "--out": out}
        changed = [flag for flag, value in given.items() if value is not None]
        changed += ["--smoke"] * smoke + ["--full"] * full + ["--set"] * bool(settings)
        if changed:
            raise UsageError(f"--resume goes on with the run's own settings; leave out {', '.join(changed)}")
        folder = RunFolder.open(resume)
        fields = dict(folder.config)
        found = registry.find(fields.pop("experiment"))
        if name not in (None, found.name):
            raise UsageError(f"{resume} is a run of {found.name!r}, not of {name!r}")
        config = registry.replace(found.config(), **fields)
    else:
        if name is None:
            raise UsageError(f"say which experiment: {', '.join(registry.names())}")
        if smoke and full:
            raise UsageError("--smoke and --full exclude each other")
        found = registry.find(name)
        config = found.config()
        config = config.smoke() if smoke else config.full() if full else config
        flags = {"rounds": rounds, "clients": clients, "seed": seed}
        config = registry.replace(config, **{k: v for k, v in flags.items() if v is not None})
        config = registry.override(config, [pair for pairs in settings for pair in pairs])
        out = out or Path("runs") / f"{found.name}-{config.seed}"
        folder = RunFolder.create(out, dataclasses.asdict(config), found.name)
    console.print(f"{found.name} in {folder.path}", highlight=False, soft_wrap=True)
    try:
        found.run(config, folder, console)
    except (Interrupted, KeyboardInterrupt) as stop:
        why = str(stop) or "stopped"
        console.print(f"\n{why}. Go on with: fedjax-fm run --resume {folder.path}", highlight=False, soft_wrap=True)
        sys.exit(130)


def report(folder: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Make report.html anew from a run's folder, and print its main figures.

    Args:
        folder: a folder that `fedjax-fm run` made.
    """
    opened = RunFolder.open(folder)
    page = registry.find(opened.config["experiment"]).report(opened)
    console = Console()
    for name, text in opened.read_json("results.json").get("comparisons", {}).items():
        console.print(f"{name}: {text}", highlight=False, soft_wrap=True)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)


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
            PyTorch that is installed here; lax.top_k and jax.random need no flag).
        only: workloads or kernels; default all.
        repeats: timed calls, of which the median is shown.
        json: one JSON object a line instead of a table.
        smoke: tiny sizes, to see that everything works.
        cache: folder of the other libraries' environments.
    """
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
    options = counting.Options(rank, chosen, bottleneck, tokens, hidden, mode, norms)
    rows, refused = counting.rows(model, peft, classes, options)
    if json:
        for row in rows:
            print(counting.as_json(row))
        return
    console = Console()
    console.print(counting.as_table(rows))
    for line in refused:
        console.print(line, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> None:
    """Entry point; turns expected errors into one line and exit code 2."""
    commands = {"list": list_experiments, "run": run, "report": report, "wire": wire, "bench": bench}
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="fedjax-fm",
            description="Federated fine-tuning of foundation models, simulated on JAX.",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (
        UsageError,
        RunFolderError,
        CheckpointError,
        RoundError,
        FileNotFoundError,
        ValueError,
        FloatingPointError,
    ) as error:
        if os.environ.get("FEDJAX_FM_TRACEBACK"):
            raise
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
