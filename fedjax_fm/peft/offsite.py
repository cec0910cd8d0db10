"""Offsite-tuning: adapters at both ends of a model whose middle clients never see whole.

Xiao, Lin, Han, 2023, Offsite-Tuning: Transfer Learning without Full Model, arXiv
2302.04870; layers are picked as in FATE-LLM and FS-LLM.

    model     = first layers | M middle layers           | last layers
    emulator  = first layers | round(M (1 - r)) of them  | last layers
    clients train first and last layers around the emulator; then these are plugged into
    the model
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.models.stacked import Segments, Shared
from fedjax_fm.peft.adapted import Adapted
from fedjax_fm.peft.layers import cut_runs, n_layers, on_layers, stacks
from fedjax_fm.peft.method import Method, full
from fedjax_fm.peft.targets import get_module, replace_module
from fedjax_fm.types import Tree

Rounding = Literal["nearest", "down"]


class Emulated(NamedTuple):
    """A model with fewer middle layers.

    Attributes:
      model: what clients are given.
      layers: numbers of the whole model's layers that it has.
      first: layers before the middle.
      last: layers behind it.
    """

    model: nnx.Module
    layers: tuple[int, ...]
    first: int
    last: int

    def ends(self) -> list[int]:
        """The layers that are trained, for `peft.on_layers`: the first and last ones."""
        return [*range(self.first), *range(-self.last, 0)]


def emulated(
    model: nnx.Module,
    *,
    first: int = 2,
    last: int = 2,
    dropped: float = 0.2,
    rounding: Rounding = "nearest",
) -> Emulated:
    """The emulator that drops middle layers, evenly.

        layers first + round(i (M - 1) / (m - 1)), i = 0..m-1, m = round(M (1 - r))

    The arrays really shrink, and what is left is faster; it predicts worse than the
    model until the ends are trained.

    Args:
      model: with one stack of layers.
      first: layers before the middle, at least 1.
      last: layers behind it, at least 1.
      dropped: r, share of the M middle layers that is left out, 0 <= r < 1; 0.2 or 0.5
        in FS-LLM.
      rounding: of i times the stride, "nearest" as in FATE-LLM or "down" as in FS-LLM.

    Returns:
      The emulator, a new model; the arrays of the ends are the model's.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds, not
        exactly one stack, or no middle layer that is left.

    References:
      Xiao et al. 2023, arXiv 2302.04870.

    Example:
      >>> from fedjax_fm import models, peft
      >>> sizes = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 8}
      >>> sizes |= {"num_attention_heads": 2, "intermediate_size": 8}
      >>> model = models.BertModel(models.BertConfig(**sizes), nnx.Rngs(0))
      >>> small = peft.emulated(model, first=1, last=1, dropped=0.5)
      >>> small.layers
      (0, 1, 3, 6, 7)
    """
    checks.whole("first", first, least=1)
    checks.whole("last", last, least=1)
    checks.real("dropped", dropped, least=0, below=1)
    checks.choice("rounding", rounding, ("nearest", "down"))
    path, stack = _uncut(model)
    n = n_layers(stack)
    middle = n - first - last
    kept = round(middle * (1 - dropped))
    if kept < 1:
        raise ValueError(
            f"of {n} layers, first={first} and last={last} leave {middle} in the "
            f"middle, of which dropped={dropped} keeps {max(kept, 0)}; expected one at "
            "least"
        )
    layers = [first + at for at in _evenly(middle, kept, rounding)]
    front, whole, back = cut_runs(stack, _labels(n, first, last)).parts
    chosen = _rows(whole, [at - first for at in layers])
    copy = nnx.clone(model)
    replace_module(copy, path, Segments([front, chosen, back]))
    return Emulated(
        model=copy,
        layers=(*range(first), *layers, *range(n - last, n)),
        first=first,
        last=last,
    )


def tuned_ends(emulator: Emulated) -> Method:
    """Trains the first and last layers of an emulator in full.

    Args:
      emulator: of `emulated`.

    Returns:
      The method, for `peft.apply(emulator.model, ...)`; another one in these layers is
      `peft.on_layers(method, emulator.ends())`.

    Example:
      >>> from fedjax_fm import models, peft
      >>> sizes = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 4}
      >>> sizes |= {"num_attention_heads": 2, "intermediate_size": 8}
      >>> model = models.BertModel(models.BertConfig(**sizes), nnx.Rngs(0))
      >>> small = peft.emulated(model, first=1, last=1)
      >>> adapted = peft.apply(small.model, peft.tuned_ends(small))
      >>> parts = nnx.to_pure_dict(adapted.delta)["encoder"]["layer"]["parts"]
      >>> sorted(parts)
      [0, 2]
    """
    return on_layers(full(), emulator.ends())


def plugged(model: nnx.Module, emulator: Emulated, tuned: nnx.Module) -> nnx.Module:
    """The whole model with the ends that were trained around an emulator.

    Args:
      model: whole, of which the emulator was made.
      emulator: of `emulated`.
      tuned: the emulator with its trained ends, `adapted.model(state.delta)`.

    Returns:
      A new model: its middle is the whole model's, its ends and all that lies outside
      of the layers the trained one's.

    Raises:
      ValueError: a model of another number of layers, or not exactly one stack.

    Example:
      >>> from fedjax_fm import models, peft
      >>> sizes = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 4}
      >>> sizes |= {"num_attention_heads": 2, "intermediate_size": 8}
      >>> model = models.BertModel(models.BertConfig(**sizes), nnx.Rngs(0))
      >>> small = peft.emulated(model, first=1, last=1, dropped=0.5)
      >>> whole = peft.plugged(model, small, small.model)
      >>> [part.stacked_layers for part in whole.encoder.layer.parts]
      [1, 2, 1]
    """
    _, stack = _uncut(model)
    own_path, own = _stack_of(tuned)
    n = n_layers(stack)
    expected = (*range(emulator.first), *range(n - emulator.last, n))
    ends = emulator.layers[: emulator.first] + emulator.layers[-emulator.last :]
    if ends != expected or n_layers(own) != len(emulator.layers):
        raise ValueError(
            f"the emulator has the layers {emulator.layers}, which are not those of a "
            f"model of {n} and of a trained one of {n_layers(own)}"
        )
    whole = cut_runs(stack, _labels(n, emulator.first, emulator.last)).parts
    cut = cut_runs(own, _labels(n_layers(own), emulator.first, emulator.last)).parts
    first = _until(cut, emulator.first)
    last = _until(reversed(list(cut)), emulator.last)[::-1]
    copy = nnx.clone(tuned)
    replace_module(copy, own_path, Segments([*first, whole[1], *last]))
    return copy


class PluggedIn(NamedTuple):
    """A whole model that takes what was trained around its emulator; made by `plug_in`.

    Tasks take it in the place of an adapted model.

    Attributes:
      graphdef: of the whole model.
      whole: its arrays.
      emulator: of `emulated`.
      adapted: from `peft.apply(emulator.model, ...)`.
    """

    graphdef: nnx.GraphDef
    whole: nnx.State
    emulator: Emulated
    adapted: Adapted

    @property
    def backbone(self) -> tuple[Tree, Tree]:
        """What is frozen, for evaluations: the emulator's, and the whole model."""
        return self.adapted.backbone, self.whole

    def model(self, delta: Tree, backbone: tuple[Tree, Tree] | None = None) -> Any:
        """The whole model with trained ends.

        Args:
          delta: what clients have trained, such as `state.delta`.
          backbone: None: `self.backbone`.
        """
        around, whole = self.backbone if backbone is None else backbone
        tuned = self.adapted.model(delta, around)
        return plugged(nnx.merge(self.graphdef, whole), self.emulator, tuned)


def plug_in(model: nnx.Module, emulator: Emulated, adapted: Adapted) -> PluggedIn:
    """The owner's side of offsite-tuning: scores of the whole model, between rounds too.

    Clients never see its middle, so that the emulator's scores are all that they know;
    these are those that count.

    Args:
      model: whole, of which the emulator was made.
      emulator: of `emulated`.
      adapted: from `peft.apply(emulator.model, ...)`, what clients train.

    Returns:
      What tasks take: `tasks.classification(plug_in(...))` reads the same delta, beside
      the backbone `plug_in(...).backbone`.

    Raises:
      ValueError: the emulator is not of this model.

    References:
      Xiao et al. 2023, arXiv 2302.04870, "plug-in performance".

    Example:
      >>> import fedjax_fm as ffm
      >>> from fedjax_fm import models, peft
      >>> sizes = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 4}
      >>> sizes |= {"num_attention_heads": 2, "intermediate_size": 8}
      >>> config = models.LlamaConfig(**sizes)
      >>> model = models.LlamaForCausalLM(config, nnx.Rngs(0))
      >>> small = peft.emulated(model, first=1, last=1, dropped=0.5)
      >>> adapted = peft.apply(small.model, peft.tuned_ends(small))
      >>> owner = peft.plug_in(model, small, adapted)
      >>> ids = jnp.ones((2, 3), jnp.int32)
      >>> rows = {"input_ids": ids, "attention_mask": ids, "labels": ids}
      >>> task = ffm.tasks.language_modeling(owner)
      >>> ffm.evaluate(task, adapted.delta, owner.backbone, rows)["loss"].shape
      (2,)
    """
    _uncut(model)
    plugged(model, emulator, emulator.model)  # refuses one of another model
    graphdef, whole = nnx.split(model)
    return PluggedIn(graphdef=graphdef, whole=whole, emulator=emulator, adapted=adapted)


def _until(parts: Iterable[Any], layers: int) -> list[Any]:
    """The first parts, until as many layers are there."""
    found, n_found = [], 0
    for part in parts:
        if n_found < layers:
            found.append(part)
            n_found += part.stacked_layers
    return found


def _uncut(model: nnx.Module) -> tuple[str, Any]:
    """(path, stack) of the one stack of a model, in one piece."""
    path, stack = _stack_of(model)
    if isinstance(stack, Segments):
        raise ValueError(
            f"{path} is cut into runs of layers already; take the model as it was before"
        )
    return path, stack


def _stack_of(model: nnx.Module) -> tuple[str, Any]:
    """(path, stack) of the one stack of a model."""
    found = stacks(model)
    if len(found) != 1:
        raise ValueError(
            f"expected a model with one stack of layers, {type(model).__name__} has "
            f"{sorted(found) or 'none'}"
        )
    (path,) = found
    stack = get_module(model, path)
    if isinstance(stack, nnx.List):
        raise ValueError(f"{path} is a list of modules, not a stack of layers")
    return path, stack


def _labels(n: int, first: int, last: int) -> list[int]:
    """0 for the first layers, 1 for the middle, 2 for the last ones."""
    return [0] * first + [1] * (n - first - last) + [2] * last


def _evenly(n: int, kept: int, rounding: Rounding) -> list[int]:
    """Some of n numbers, with the first and, if there are two, the last."""
    if kept == 1:
        return [0]
    stride = (n - 1) / (kept - 1)
    rounded = round if rounding == "nearest" else int
    return [rounded(i * stride) for i in range(kept)]


def _rows(part: Any, layers: list[int]) -> Any:
    """Some layers of a stacked module."""
    graphdef, shared, state = nnx.split(part, Shared, ...)
    index = jnp.array(layers)
    rows = jax.tree.map(lambda leaf: leaf[index], state)
    piece = nnx.merge(graphdef, shared, rows)
    piece.stacked_layers = len(layers)
    return piece
