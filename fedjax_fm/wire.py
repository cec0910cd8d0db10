"""How many bytes a method of fine-tuning sends, from shapes alone.

The method is installed on the abstract model (`nnx.eval_shape`): no weights are read,
nothing is run, and the counts are those of the arrays that a run would send.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from rich.table import Table

from fedjax_fm import models, peft
from fedjax_fm.models.architectures import (
    ALIASES,
    ARCHITECTURES,
    DEFAULT_TARGETS,
    architecture,
)
from fedjax_fm.models.weights import read_config
from fedjax_fm.peft.adapter import OUTPUTS
from fedjax_fm.peft.patterns import HEADS
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.settings import nearest


class Options(NamedTuple):
    """Settings of the methods; None stands for the method's own default.

    Attributes:
      rank: of LoRA.
      targets: names of the layers that are adapted.
      bottleneck: width of an adapter.
      tokens: of prompts and prefixes.
      hidden: width of the network that makes the prefix.
      mode: of visual prompts, "deep" or "shallow".
      norms: whether adapters train the normalisations, too.
    """

    rank: int = 8
    targets: tuple[str, ...] | None = None
    bottleneck: int | None = None
    tokens: int | None = None
    hidden: int | None = None
    mode: str = "deep"
    norms: bool = False


class Wire(NamedTuple):
    """What one client sends and receives in one round without compression.

    Attributes:
      model: its name.
      peft: name of the method.
      trainable_parameters: numbers that are trained and sent.
      frozen_parameters: numbers of the backbone.
      uplink_bytes: that a client sends.
      downlink_bytes: that a client receives.
      full_bytes: of the whole model one way, as full fine-tuning sends it.
      ratio: full_bytes / uplink_bytes.
    """

    model: str
    peft: str
    trainable_parameters: int
    frozen_parameters: int
    uplink_bytes: int
    downlink_bytes: int
    full_bytes: int
    ratio: float


def _lora(fields: dict[str, Any], options: Options) -> peft.Method:
    targets = options.targets or DEFAULT_TARGETS[fields["model_type"]]
    return peft.lora(options.rank, targets=list(targets), modules_to_save=HEADS)


def _adapter(fields: dict[str, Any], options: Options) -> peft.Method:
    chosen: dict[str, Any] = {"norms": options.norms, "modules_to_save": HEADS}
    both_towers = fields["model_type"] == "clip" and fields["num_labels"] is None
    if both_towers and options.targets is None and options.bottleneck is None:
        # FedCLIP's (Lu et al., 2023, arXiv 2302.13485): two square layers on the image features.
        width = fields.get("projection_dim", models.CLIPConfig().projection_dim)
        return peft.houlsby(width, targets=["visual_projection"], **chosen)
    targets = OUTPUTS if options.targets is None else list(options.targets)
    width = 64 if options.bottleneck is None else options.bottleneck
    return peft.houlsby(width, targets=targets, **chosen)


def _bitfit(fields: dict[str, Any], options: Options) -> peft.Method:
    if options.targets is None:
        return peft.bitfit(modules_to_save=HEADS)
    some = [_biases_of(target) for target in options.targets]
    if fields["num_labels"] is not None:
        some.append(peft.head(HEADS))
    return peft.combine(*some)


def _biases_of(target: str) -> peft.Method:
    """Trains the biases of the modules whose path ends in `target`."""

    def is_bias(path: str) -> bool:
        return f".{path}".endswith(f".{target}.bias")

    return peft.by_path(is_bias, f"bitfit of {target}")


def _prompt(fields: dict[str, Any], options: Options) -> peft.Method:
    tokens = 20 if options.tokens is None else options.tokens
    return peft.prompt_tuning(tokens, modules_to_save=HEADS)


def _prefix(fields: dict[str, Any], options: Options) -> peft.Method:
    tokens = 16 if options.tokens is None else options.tokens
    return peft.prefix_tuning(tokens, hidden=options.hidden, modules_to_save=HEADS)


def _vpt(fields: dict[str, Any], options: Options) -> peft.Method:
    if fields["model_type"] not in ("clip", "dinov2", "vit"):
        raise ValueError(
            f"visual prompts need an image encoder, and a {fields['model_type']} has none"
        )
    at = "vision_model" if fields["model_type"] == "clip" else None
    tokens = 10 if options.tokens is None else options.tokens
    mode: Any = options.mode
    return peft.vpt(tokens, mode, at=at, modules_to_save=HEADS)


def _ia3(fields: dict[str, Any], options: Options) -> peft.Method:
    if options.targets is None:
        return peft.ia3(modules_to_save=HEADS)
    targets = list(options.targets)
    return peft.ia3(targets=targets, feedforward=None, modules_to_save=HEADS)


def _full(fields: dict[str, Any], options: Options) -> peft.Method:
    return peft.full()


def _head(fields: dict[str, Any], options: Options) -> peft.Method:
    return peft.head(HEADS)


# Which settings a method reads.
TAKES = {
    "adapter": {"targets", "bottleneck", "norms"},
    "bitfit": {"targets"},
    "full": set(),
    "head": set(),
    "ia3": {"targets"},
    "lora": {"rank", "targets"},
    "prefix": {"tokens", "hidden"},
    "prompt": {"tokens"},
    "vpt": {"tokens", "mode"},
}
METHODS: dict[str, Callable[[dict[str, Any], Options], peft.Method]] = {
    "adapter": _adapter,
    "bitfit": _bitfit,
    "full": _full,
    "head": _head,
    "ia3": _ia3,
    "lora": _lora,
    "prefix": _prefix,
    "prompt": _prompt,
    "vpt": _vpt,
}


def fields_of(model: str) -> dict[str, Any]:
    """The `config.json` of a known architecture, or of a folder that holds one.

    Args:
      model: name of an architecture, a hub id, or a folder.

    Returns:
      {field: value}.

    Raises:
      UsageError: neither; names the nearest architecture.
    """
    found = architecture(model)
    if found is not None:
        return found
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        fields = read_config(folder)
        kind = fields.get("model_type") if isinstance(fields, dict) else None
        if not isinstance(kind, str):
            raise UsageError(
                f"{folder / 'config.json'} is not the configuration of a model: "
                "it has no model_type"
            )
        return fields
    if folder.is_dir():
        raise UsageError(f"{folder} holds no config.json")
    name = model.rsplit("/", 1)[-1].lower()
    raise UsageError(nearest(name, {*ARCHITECTURES, *ALIASES}, "model"))


def _count(tree: Any) -> tuple[int, int]:
    """(numbers, bytes) of a tree of shapes."""
    numbers = n_bytes = 0
    for leaf in jax.tree.leaves(tree):
        size = math.prod(leaf.shape)
        numbers += size
        n_bytes += size * leaf.dtype.itemsize
    return numbers, n_bytes


def wire(
    model: str,
    method: str,
    classes: int | None = None,
    options: Options = Options(),  # noqa: B008
) -> Wire:
    """Counts what one client sends and receives in one round.

    Args:
      model: an architecture ("roberta-base"), its hub id, or a folder with a
        config.json.
      method: one of `METHODS`.
      classes: of the architecture's classification head, which every method trains and
        sends; default: no head.
      options: settings of the method.

    Returns:
      Parameters and bytes.

    Raises:
      UsageError: an unknown model or method (names the nearest one), a method that does
        not fit the model, or a setting that it does not read.

    Example:
      >>> found = wire("distilbert-base", "lora", options=Options(rank=4))
      >>> found.trainable_parameters, found.uplink_bytes
      (73728, 294912)
    """
    if method not in METHODS:
        raise UsageError(nearest(method, METHODS, "method"))
    fields = {**fields_of(model), "num_labels": classes}
    _refuse_what_is_not_read([method], options)
    if method == "head" and classes is None:
        raise UsageError(
            f"head on {model}: say how many classes the head has (--classes K)"
        )

    def build() -> nnx.Module:
        return models.from_config(fields, num_labels=classes)

    def split() -> tuple[nnx.State, nnx.State]:
        built = build()  # refuses an architecture before a method looks for its targets
        return peft.apply(built, METHODS[method](fields, options))[1:]

    try:
        delta, backbone = jax.eval_shape(split)
    except (ValueError, KeyError) as error:
        raise UsageError(f"{method} on {model}: {error}") from error
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        if architecture(model) is not None:
            raise
        raise UsageError(
            f"{model}/config.json describes no model that can be built: "
            f"{type(error).__name__}: {error}"
        ) from error
    abstract = nnx.eval_shape(build)
    _, whole = _count(nnx.state(abstract, nnx.Param))
    trainable, sent = _count(delta)
    frozen, _ = _count(backbone)
    return Wire(
        model=model,
        peft=method,
        trainable_parameters=trainable,
        frozen_parameters=frozen,
        uplink_bytes=sent,
        downlink_bytes=sent,
        full_bytes=whole,
        ratio=whole / sent,
    )


def _refuse_what_is_not_read(methods: list[str], options: Options) -> None:
    """Raises UsageError for a setting that none of the methods reads."""
    defaults = Options()
    for name in Options._fields:
        is_read = any(name in TAKES[method] for method in methods)
        if is_read or getattr(options, name) == getattr(defaults, name):
            continue
        takers = sorted(method for method in METHODS if name in TAKES[method])
        raise UsageError(
            f"--{name} is a setting of {', '.join(takers)}; "
            f"{', '.join(methods)} does not read it"
        )


def rows(
    model: str, method: str | None, classes: int | None, options: Options
) -> tuple[list[Wire], list[str]]:
    """Counts of one method, or of all that fit the model.

    Args:
      model: as for `wire`.
      method: one of `METHODS`; None for all of them.
      classes: as for `wire`.
      options: each method takes those that it reads.

    Returns:
      (counts, a sentence for each method that does not fit).

    Raises:
      UsageError: as `wire`, or `targets` without a method.
    """
    if method is not None:
        return [wire(model, method, classes, options)], []
    fields_of(model)
    if options.targets is not None:
        raise UsageError("--targets belongs to one method; say which: --peft NAME")
    found, refused = [], []
    for name in ("full", *sorted(METHODS.keys() - {"full"})):
        own = {key: getattr(options, key) for key in TAKES[name]}
        try:
            found.append(wire(model, name, classes, Options(**own)))
        except UsageError as error:
            if name == "full":  # it fits every model that can be built
                raise
            refused.append(str(error).split("; ")[0])
    return found, refused


def as_json(row: Wire) -> str:
    """One JSON object.

    Args:
      row: from `wire`.
    """
    return json.dumps(row._asdict())


def as_table(rows: list[Wire]) -> Table:
    """A table for reading.

    Args:
      rows: of one model.

    Returns:
      The table; MB are 10^6 bytes.
    """
    caption = "computed from shapes, not run; f32, one client, one round, one way, no compression"
    table = Table(title=rows[0].model, caption=caption)
    for column in ("method", "trained", "of all", "MB up", "MB down", "full / sent"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        all_of_them = row.trainable_parameters + row.frozen_parameters
        share = row.trainable_parameters / all_of_them
        sizes = (
            f"{row.uplink_bytes / 1e6:,.3f}",
            f"{row.downlink_bytes / 1e6:,.3f}",
            f"{row.ratio:,.1f}",
        )
        table.add_row(row.peft, f"{row.trainable_parameters:,}", f"{share:.4%}", *sizes)
    return table
