"""Methods, and how they split a model into a trained and a frozen part."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from fedjax_fm.models.quantized import Frozen
from fedjax_fm.peft.adapted import Adapted
from fedjax_fm.peft.patterns import HEADS, AnyOf, check_names, matches, refuse_unmatched
from fedjax_fm.peft.targets import (
    dotted,
    get_module,
    named_modules,
    plain_names,
    tied_head,
    unmatched_by,
)


class Method(NamedTuple):
    """A way to adapt a model, for `apply`; made by `lora` and the other functions here.

    Attributes:
      name: for messages and records.
      install: `(model, key) -> {path of a trained parameter}`. It adds modules to the
        model in place. A path is a tuple of strings; `key` draws initial values.

    Example:
      A method of your own, which trains the biases that are there:

      >>> import jax.numpy as jnp
      >>> from fedjax_fm import peft
      >>> def install(model, key):
      ...     return {path for path in parameter_paths(model) if path[-1] == "bias"}
      >>> method = peft.Method("biases", install)
      >>> adapted = peft.apply(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), method)
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'bias': (3,)}
    """

    name: str
    install: Callable[[nnx.Module, jax.Array], set[tuple]]


def parameter_paths(model: nnx.Module) -> dict[tuple, nnx.Variable]:
    """Lists every parameter of a model.

    Args:
      model: adapted or not.

    Returns:
      {path as a tuple of strings: variable}; the variables are the model's own.

    Example:
      >>> sorted(parameter_paths(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
      [('bias',), ('kernel',)]
    """
    paths = _paths_of(model, nnx.Param)
    return {tuple(path.split(".")): get_module(model, path) for path in paths}


def _paths_of(model: nnx.Module, kind: type) -> list[str]:
    """The dotted paths of all variables of one kind."""
    flat = nnx.to_flat_state(nnx.state(model, kind))
    return [dotted(path) for path, _ in flat]


def refuse_quantised(
    model: nnx.Module, chosen: Callable[[str], Any], name: str
) -> None:
    """Raises where quantised weights are chosen to be trained.

    Args:
      model: with or without quantised weights.
      chosen: `f(dotted path of a variable) -> whether it is chosen`.
      name: of the choice, for the message.

    Raises:
      ValueError: one of the chosen variables is quantised.
    """
    blocks = [path for path in _paths_of(model, Frozen) if chosen(path)]
    if blocks:
        raise ValueError(
            f"{name} would train quantised weights, which have no gradient "
            f"({blocks[0]} and {len(blocks) - 1} more); load dense weights, or "
            "train what sits beside them (lora)"
        )


def head_paths(
    model: nnx.Module, modules: Sequence[str], name: str = "modules_to_save"
) -> set[tuple]:
    """Lists all parameters below the modules whose paths end in one of `modules`.

    Args:
      model: adapted or not.
      modules: endings of plain paths.
      name: of the parameter, for messages.

    Returns:
      Paths as tuples of strings.

    Raises:
      ValueError: an entry that no module has, or a module without parameters. An
        `AnyOf` may find none.
    """
    plain = plain_names(model)
    paths = [path for path, _ in named_modules(model) if path]
    endings = list(modules)
    starts = tuple(f"{path}." for path in paths if matches(plain(path), endings))

    def inside(path: str) -> bool:
        return path.startswith(starts)

    refuse_quantised(model, inside, f"modules {endings}")
    found = {path for path in parameter_paths(model) if inside(".".join(path))}
    if not isinstance(modules, AnyOf):
        _refuse_unheld(model, modules, name)
    return found


def _refuse_unheld(model: nnx.Module, modules: Sequence[str], name: str) -> None:
    """Raises for entries that no module with parameters has."""
    plain = plain_names(model)
    owners = {
        plain(".".join(path[:length]))
        for path in parameter_paths(model)
        for length in range(1, len(path))
    }
    there = sorted(owners)
    unmatched = unmatched_by(there, list(modules))
    hint = tied_head(model, unmatched)
    refuse_unmatched(name, unmatched, "module with parameters", there, hint=hint)


def apply(model: nnx.Module, method: Method, key: jax.Array | None = None) -> Adapted:
    """Adapts a copy of a model and splits it into a trained and a frozen part.

    Args:
      model: any flax.nnx module; it is not changed.
      method: what is added and trained, such as `lora(...)`.
      key: draws initial values; default `jax.random.key(0)`.

    Returns:
      The parts, which unpack into `graphdef, delta, backbone`. `delta` is trained and
      sent, `backbone` is frozen, `adapted.model(delta)` is the adapted model.

    Raises:
      TypeError: `method` is not a `Method`.
      ValueError: the method does not fit the model; or the model changes when it is
        called (`nnx.BatchNorm`, `nnx.Dropout`), which is refused because all clients
        share one backbone.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(layer=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["layer"]))
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'layer': {'lora_a': (4, 2), 'lora_b': (2, 3)}}
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.backbone))
      {'layer': {'base': {'bias': (3,), 'kernel': (4, 3)}}}
      >>> adapted.model().layer(jnp.ones((5, 4))).shape
      (5, 3)
    """
    _check_method("method", method)
    _refuse_inner_state(model)
    model = nnx.clone(model)
    key = jax.random.key(0) if key is None else key
    trainable = method.install(model, key)
    unknown = trainable - set(parameter_paths(model))
    if unknown or not trainable:
        raise ValueError(
            f"{method.name} leaves nothing to train, or names unknown parameters: "
            f"{sorted(unknown)}"
        )
    names = {".".join(path) for path in trainable}
    graphdef, delta, backbone = nnx.split(
        model, lambda path, _: dotted(path) in names, ...
    )
    return Adapted(graphdef=graphdef, delta=delta, backbone=backbone)


def _check_method(name: str, method: Any) -> None:
    """Raises TypeError for anything but a `Method`, such as the function `lora`."""
    if not isinstance(method, Method):
        shown = getattr(method, "__name__", type(method).__name__)
        raise TypeError(
            f"expected {name} a peft.Method, what peft.lora(...) and its like "
            f"return, got {name}={shown}"
        )


def _refuse_inner_state(model: nnx.Module) -> None:
    """Raises ValueError for modules that write to the model when it is called."""
    for path, module in named_modules(model):
        if isinstance(module, nnx.BatchNorm) and not module.use_running_average:
            raise ValueError(
                f"BatchNorm at {path!r} changes its running statistics when the "
                "model is called, but the backbone is one for all clients; use "
                "nnx.GroupNorm or nnx.LayerNorm, or model.eval() before "
                "peft.apply, which keeps the statistics as they are"
            )
        if not isinstance(module, nnx.Dropout):
            continue
        if not module.deterministic and module.rate > 0:
            raise ValueError(
                f"Dropout at {path!r} counts its draws in the model, but the "
                "backbone is one for all clients; use "
                "fedjax_fm.models.randomness.dropout, which draws from the key "
                "of the loss, or model.eval() before peft.apply, which turns it "
                "off"
            )


def head(modules: Sequence[str] = HEADS) -> Method:
    """Trains the classification head only (linear probing).

    Args:
      modules: endings of modules' paths; by default the names that Hugging Face's
        classifiers use for their heads.

    Returns:
      The method.

    Raises:
      TypeError: `modules` is not a list of names.
      ValueError: by `apply`, for a model that lacks one of `modules`, or has no head.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import peft
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Dict(
      ...     body=nnx.Linear(4, 8, rngs=rngs), classifier=nnx.Linear(8, 3, rngs=rngs)
      ... )
      >>> adapted = peft.apply(model, peft.head())
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'classifier': {'bias': (3,), 'kernel': (8, 3)}}
    """
    check_names("modules", modules)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        paths = head_paths(model, AnyOf(modules))
        if not paths:
            names = sorted(path for path, _ in named_modules(model) if path)
            listed = ", ".join(names)
            raise ValueError(
                f"no module ends in one of {list(modules)}; there are {listed}"
            )
        return head_paths(model, modules, "modules")

    return Method("head", install)


def by_path(predicate: Callable[[str], Any], name: str = "by_path") -> Method:
    """Trains the parameters that a function of their paths chooses.

    Args:
      predicate: `f(dotted path) -> bool`, called with plain paths such as
        "encoder.layer.output.dense.kernel".
      name: of the method, for messages.

    Returns:
      The method.

    Raises:
      ValueError: by `apply`, if no parameter is chosen, or a quantised one.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(norm=nnx.LayerNorm(4, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.by_path(lambda path: path.endswith("scale")))
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'norm': {'scale': (4,)}}
    """

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        plain = plain_names(model)
        refuse_quantised(model, lambda path: predicate(plain(path)), name)
        named = {path: plain(".".join(path)) for path in parameter_paths(model)}
        paths = {path for path, its_name in named.items() if predicate(its_name)}
        if not paths:
            there = sorted(set(named.values()))
            raise ValueError(
                f"{name} matches no parameter; there are {', '.join(there)}"
            )
        return paths

    return Method(name, install)


def full() -> Method:
    """Trains every parameter of the model, none of which may be quantised.

    Returns:
      The method; the backbone is empty but for variables that are no parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import peft
      >>> adapted = peft.apply(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), peft.full())
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'bias': (3,), 'kernel': (4, 3)}
    """
    return by_path(lambda path: True, "full")


def combine(*methods: Method) -> Method:
    """Applies several methods to one model and trains the parameters of all.

    They are installed in order, and a later one is closer to the weights:
    `combine(ia3(), lora(...))` scales the sum of base and update, `combine(lora(...),
    ia3())` the base only.

    Args:
      *methods: at least one.

    Returns:
      The method; its name is theirs, joined by "+".

    Raises:
      TypeError: an argument is not a `Method`.
      ValueError: there is none; by `apply`, what they raise.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(layer=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> both = peft.combine(peft.lora(2, targets=["layer"]), peft.bitfit())
      >>> adapted = peft.apply(model, both)
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'layer': {'base': {'bias': (3,)}, 'lora_a': (4, 2), 'lora_b': (2, 3)}}
    """
    if not methods:
        raise ValueError("combine() needs at least one method")
    for method in methods:
        _check_method("methods", method)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        for number, method in enumerate(methods):
            # The first one draws what it would draw alone.
            own_key = jax.random.fold_in(key, number) if number else key
            paths = method.install(model, own_key)
            variables = parameter_paths(model)
            unknown = paths - set(variables)
            if unknown:
                raise ValueError(
                    f"{method.name} names unknown parameters: {sorted(unknown)}"
                )
            # Paths change when a later method wraps a module; a mark stays, also on
            # slices of a stack.
            for path in paths:
                variables[path].set_metadata(is_trained=True)
        trained = set()
        for path, variable in parameter_paths(model).items():
            if variable.get_metadata().get("is_trained"):
                trained.add(path)
                variable.del_metadata("is_trained")
        return trained

    return Method("+".join(method.name for method in methods), install)
