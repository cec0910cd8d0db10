"""What `fedjax-fm finetune` does."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from fedjax_fm import callbacks
from fedjax_fm.finetune import answers, arms, plan, report
from fedjax_fm.finetune import data as of_data
from fedjax_fm.finetune.data import Data
from fedjax_fm.finetune.outputs import check_merge, sources, write_card
from fedjax_fm.finetune.settings import FILE, Settings, as_toml, read_toml
from fedjax_fm.finetune.templates import OneQuestion
from fedjax_fm.models.locate import provenance
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.runs.lock import held
from fedjax_fm.runs.provenance import environment
from fedjax_fm.runs.settings import replace
from fedjax_fm.runs.terminal import say
from fedjax_fm.study import cells, results
from fedjax_fm.study.cells import Cells

if TYPE_CHECKING:
    from rich.console import Console

NAME = "finetune"


def resolved(settings: Settings) -> Settings:
    """The same settings with whole paths, so that they can be read from anywhere.

    Args:
      settings: as they were given.

    Raises:
      UsageError: no model, no data, or seeds that repeat.
    """
    for name in ("model", "data"):
        if not getattr(settings, name):
            raise UsageError(f"say which {name}: --{name} ... (see --help)")
    if not settings.seeds or len(set(settings.seeds)) != len(settings.seeds):
        raise UsageError(f"expected seeds without repetition, got {settings.seeds}")
    changes = {}
    for name in ("model", "data", "template"):
        place = Path(getattr(settings, name)).expanduser()
        if place.exists():
            changes[name] = str(place.resolve())
    return replace(settings, **changes)


def begin(settings: Settings) -> RunFolder:
    """Reads data and model, and makes the folder if both make sense.

    Args:
      settings: resolved.

    Returns:
      The folder, with config.json, finetune.toml, finetune.json and provenance.json.

    Raises:
      UsageError: settings, data or a model that make no sense.
      RunFolderError: the folder exists.
    """
    data = of_data.load(settings, settings.seeds[0], "final")
    plan.simulator_of(settings, data)  # refuses what the method does not take
    check_merge(settings, data)
    if settings.track:
        callbacks.track(settings.out, to=settings.track)  # refuses what is not there
    check_model(settings, data)
    study = arms.make(settings, data.prepared, Path(settings.out))
    cells.check(study, settings)
    fields = {**dataclasses.asdict(settings), "kind": data.prepared.examples.kind}
    folder = RunFolder.create(settings.out, fields, NAME)
    folder.write_text(FILE, as_toml(settings))
    folder.write_json(report.FACTS, plan.facts(settings, data))
    origin = sources(settings, data.prepared.source.sha256)
    folder.write_json("provenance.json", {**environment(), **origin})
    cells.begin(NAME, settings, folder, f"fedjax-fm finetune {FILE}")
    return folder


def check_model(settings: Settings, data: Data) -> None:
    """Raises UsageError unless the model reads the examples; nothing is computed.

    Args:
      settings: of the run.
      data: of its first seed.
    """
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(data.adapted.delta)}
    if settings.baselines and "bfloat16" in kinds:
        raise UsageError(
            f"--peft {settings.peft} trains weights in bfloat16, whose sums lose the "
            "small steps of the centralised baseline; give --dtype float32 or "
            "--no-baselines"
        )
    batch = {name: rows[:1] for name, rows in data.train[0].items()}
    model = (data.adapted.delta, data.adapted.backbone)
    try:
        jax.eval_shape(data.task.loss, *model, batch, None)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{settings.model} does not read these examples, of up to "
            f"{settings.max_length} tokens (--max-length): {error}"
        ) from error
    if not data.prompts:
        return
    assert data.prepared.chat is not None
    if isinstance(data.prepared.chat, OneQuestion):
        return  # an encoder-decoder has no longest text
    longest = max(len(data.prepared.chat.prompt_ids(one[:-1])) for one in data.prompts)
    room = answers.room_for(longest, settings.new_tokens)
    try:
        jax.eval_shape(lambda: data.adapted.model(*model).empty_cache(1, room))
    except ValueError as error:
        raise UsageError(
            f"no room for answers of {settings.new_tokens} tokens (--new-tokens) behind "
            f"prompts of up to {longest}: {error}; --answers 0 shows none"
        ) from error


def reopened(place: Path) -> tuple[RunFolder, Settings]:
    """A run that was begun before, and its settings.

    Args:
      place: of its folder.

    Returns:
      (folder, settings).

    Raises:
      UsageError: the folder is of a study, or its data have changed since.
      RunFolderError: it is no run's folder, or damaged.
    """
    folder = RunFolder.open(place)
    if folder.config["experiment"] != NAME:
        raise UsageError(
            f"{place} is a run of the study {folder.config['experiment']!r}; go on with "
            f"fedjax-fm run --resume {place}"
        )
    settings = replace(Settings(), **read_toml(folder.path / FILE))
    return folder, replace(settings, out=str(place))


def go(folder: RunFolder, settings: Settings, console: "Console") -> Path:
    """Computes what is missing of a run, and writes its pages and its model card.

    Args:
      folder: of the run.
      settings: of the run.
      console: where progress is shown.

    Returns:
      The path of report.html.

    Raises:
      UsageError: data or weights are not those that the run began with.
      RunFolderError: another process is at work in the folder.
    """
    facts = folder.read_json(report.FACTS)
    for line in report.told(facts):
        say(console, line)
    check_weights(settings, facts)
    ready = of_data.prepare(settings)
    was = facts["plan"]["data_sha256"]
    check_same(settings.data, was, ready.source.sha256)
    study = arms.make(settings, ready, folder.path)
    computed = Cells(study, settings, folder, console)
    with held(folder.path):
        folder.up_to_date()
        computed.tune()
        computed.run(cells.all_seeds(folder))
        folder.write_json("results.json", results.assemble(computed))
        page = report.write(folder)
    found = results.read(folder)
    write_card(folder, settings, report.lines(found, facts) | report.scores(found))
    return page


def check_weights(settings: Settings, facts: dict[str, Any]) -> None:
    """Raises UsageError if the model's weights are not those that a run began with.

    Args:
      settings: of the run.
      facts: of its finetune.json.
    """
    found = provenance(settings.model)["sha256"]
    check_same(settings.model, facts["plan"]["model_sha256"], found)


def check_same(name: str, was: str, found: str) -> None:
    """Raises UsageError for a file whose hash has changed.

    Args:
      name: of the file.
      was: its SHA-256 when the run began.
      found: its SHA-256 now.
    """
    if was != found:
        raise UsageError(
            f"{name} has changed since this run began: SHA-256 was {was}, is {found}"
        )


def shown(folder: RunFolder) -> list[str]:
    """What a run has left, for the terminal.

    Args:
      folder: of a run that is done.
    """
    saved = folder.read_json("model/saved.json")
    found = []
    if saved["adapter"]:
        found.append(f"adapter: {folder.path / 'model' / 'adapter'} (opens in HF PEFT)")
    else:
        found.append(f"no adapter folder: {saved['why_not']}")
    if (folder.path / "model" / "clients").is_dir():
        found.append(
            f"each client's own model: {folder.path / 'model' / 'clients'}; the adapter is what "
            "the server has of it"
        )
    found += [
        f"merged model: {folder.path / 'model' / name}" for name in saved["merged"]
    ]
    return found


def settings_from(file: Path | None, changes: dict[str, Any]) -> Settings:
    """Settings of a TOML file, over which those of the command line win.

    Args:
      file: or None.
      changes: {setting: value} of the command line.
    """
    fields = read_toml(file) if file is not None else {}
    return replace(Settings(), **{**fields, **changes})
