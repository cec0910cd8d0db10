"""What a method of fine-tuning puts on the wire, from shapes alone.

No weights, no memory, nothing run.

The method is installed on the abstract model (`nnx.eval_shape`), so the counts are
those of the arrays that a run would send, not of a formula.
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
    """Settings of the methods; None where the method's own default holds."""

    rank: int = 8
    targets: tuple[str, ...] | None = None
    bottleneck: int | None = None
    tokens: int | None = None
    hidden: int | None = None  # width of the prefix's reparameterising network
    mode: str = "deep"  # of vpt
    norms: bool = False  # adapters: train the normalisations too


class Wire(NamedTuple):
    """Traffic of one client in one round without compression, and what it is made of."""

    model: str
    peft: str
    trainable_parameters: int
    frozen_parameters: int
    uplink_bytes: int
    downlink_bytes: int
    full_bytes: int  # of the whole model one way, as full fine-tuning would send it
    ratio: float  # full_bytes / uplink_bytes


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
    return peft.houlsby(
        64 if options.bottleneck is None else options.bottleneck,
        targets=targets,
        **chosen,
    )


def _bitfit(fields: dict[str, Any], options: Options) -> peft.Method:
    if options.targets is None:
        return peft.bitfit(modules_to_save=HEADS)
    some = [_biases_of(target) for target in options.targets]
    return (
        peft.combine(*some)
        if fields["num_labels"] is None
        else peft.combine(*some, peft.head(HEADS))
    )


def _biases_of(target: str) -> peft.Method:
    """Trains the biases of the modules whose path ends in `target`."""
    return peft.by_path(
        lambda path: f".{path}".endswith(f".{target}.bias"), f"bitfit of {target}"
    )


def _prompt(fields: dict[str, Any], options: Options) -> peft.Method:
    return peft.prompt_tuning(
        20 if options.tokens is None else options.tokens, modules_to_save=HEADS
    )


def _prefix(fields: dict[str, Any], options: Options) -> peft.Method:
    tokens = 16 if options.tokens is None else options.tokens
    return peft.prefix_tuning(tokens, hidden=options.hidden, modules_to_save=HEADS)


def _vpt(fields: dict[str, Any], options: Options) -> peft.Method:
    if fields["model_type"] not in ("clip", "vit"):
        raise ValueError(
            f"visual prompts need an image encoder, and a {fields['model_type']} has none"
        )
    at = "vision_model" if fields["model_type"] == "clip" else None
    tokens = 10 if options.tokens is None else options.tokens
    # pyright: ignore[reportArgumentType]
    return peft.vpt(tokens, options.mode, at=at, modules_to_save=HEADS)


def _ia3(fields: dict[str, Any], options: Options) -> peft.Method:
    chosen = (
        {}
        if options.targets is None
        else {"targets": list(options.targets), "feedforward": None}
    )
    return peft.ia3(**chosen, modules_to_save=HEADS)


# Which settings a method reads; "rank" is left out where its default is meant.
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
    "full": lambda fields, options: peft.full(),
    "head": lambda fields, options: peft.head(HEADS),
    "ia3": _ia3,
    "lora": _lora,
    "prefix": _prefix,
    "prompt": _prompt,
    "vpt": _vpt,
}


def fields_of(model: str) -> dict[str, Any]:
    """The `config.json` of a known architecture, or of a folder that holds one.

    Raises:
      UsageError: neither; names the nearest architecture.
    """
    found = architecture(model)
    if found is not None:
        return found
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        fields = read_config(folder)
        if not isinstance(fields, dict) or not isinstance(
            fields.get("model_type"), str
        ):
            raise UsageError(
                f"{folder / 'config.json'} is not the configuration of a model: "
                "it has no model_type"
            )
        return fields
    if folder.is_dir():
        raise UsageError(f"{folder} holds no config.json")
    raise UsageError(
        nearest(model.rsplit("/", 1)[-1].lower(), {*ARCHITECTURES, *ALIASES}, "model")
    )


def _count(tree: Any) -> tuple[int, int]:
    """(numbers, bytes) of a tree of shapes."""
    leaves = jax.tree.leaves(tree)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    return sum(sizes), sum(
        size * leaf.dtype.itemsize for size, leaf in zip(sizes, leaves, strict=True)
    )


def wire(
    model: str,
    method: str,
    classes: int | None = None,
    options: Options = Options(),  # noqa: B008
) -> Wire:
    """Counts what one client sends and receives in one round.

    Args:
      model: an architecture ("roberta-base"), its hub id, or a folder with a config.json.
      method: one of `METHODS`; prompts and prefixes send what is trained, the head included.
      classes: adds the architecture's classification head, which every method trains.

    Raises:
      UsageError: an unknown model or method (names the nearest one), or a method that
        does not fit the model.
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
        return peft.apply(build(), METHODS[method](fields, options))[1:]

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
    whole = _count(nnx.state(nnx.eval_shape(build)))[1]
    (trainable, sent), (frozen, _) = _count(delta), _count(backbone)
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
    """UsageError for a setting that none of the methods reads."""
    for name, default in Options()._asdict().items():
        if getattr(options, name) != default and not any(
            name in TAKES[method] for method in methods
        ):
            takers = ", ".join(
                sorted(method for method in METHODS if name in TAKES[method])
            )
            raise UsageError(
                f"--{name} is a setting of {takers}; {', '.join(methods)} does not read it"
            )


def rows(
    model: str, method: str | None, classes: int | None, options: Options
) -> tuple[list[Wire], list[str]]:
    """(counts, why others are not there) of one method, or of all that fit the model."""
    if method is not None:
        return [wire(model, method, classes, options)], []
    fields_of(model)
    if options.targets is not None:
        raise UsageError("--targets belongs to one method; say which: --peft NAME")
    found, refused, reasons = [], [], []
    for name in ("full", *sorted(METHODS.keys() - {"full"})):
        try:
            default = {
                key: value
                for key, value in Options()._asdict().items()
                if key not in TAKES[name]
            }
            found.append(wire(model, name, classes, options._replace(**default)))
        except UsageError as error:
            refused.append(str(error).split("; ")[0])
            reasons.append(str(error).removeprefix(f"{name} on {model}: "))
    if not found:
        raise UsageError(f"{model}: {'; '.join(dict.fromkeys(reasons))}")
    return found, refused


def as_json(row: Wire) -> str:
    """One JSON object."""
    return json.dumps(row._asdict())


def as_table(rows: list[Wire]) -> Table:
    """The counts for reading; bytes in MB = 10^6 bytes."""
    caption = "computed from shapes, not run; f32, one client, one round, one way, no compression"
    table = Table(title=rows[0].model, caption=caption)
    for column in ("method", "trained", "of all", "MB up", "MB down", "full / sent"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        share = row.trainable_parameters / (
            row.trainable_parameters + row.frozen_parameters
        )
        sizes = (
            f"{row.uplink_bytes / 1e6:,.3f}",
            f"{row.downlink_bytes / 1e6:,.3f}",
            f"{row.ratio:,.1f}",
        )
        table.add_row(row.peft, f"{row.trainable_parameters:,}", f"{share:.4%}", *sizes)
    return table
