"""What a parameter-efficient method is, and how it splits a model into what is trained
and what is frozen.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from fedjax_fm.models.quantized import Frozen
from fedjax_fm.peft.adapted import Adapted
from fedjax_fm.peft.patterns import HEADS, AnyOf, check_names, matches, refuse_unmatched
from fedjax_fm.peft.targets import get_module, named_modules, plain_names, tied_head


class Method(NamedTuple):
    """`install(model, key) -> paths`.

    Adds modules in place and returns the paths of the trainable parameters.
    """

    name: str
    install: Callable[[nnx.Module, jax.Array], set[tuple]]


def parameter_paths(model: nnx.Module) -> dict[tuple, nnx.Variable]:
    """{path of strings: variable} of every parameter; the variables are the model's own."""
    paths = [
        tuple(map(str, path))
        for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))
    ]
    return {path: get_module(model, ".".join(path)) for path in paths}


def refuse_quantised(
    model: nnx.Module, chosen: Callable[[str], Any], name: str
) -> None:
    """Raises where a choice of parameters by their dotted paths takes in weights that
    are quantised.
    """
    blocks = [
        ".".join(map(str, path))
        for path, _ in nnx.to_flat_state(nnx.state(model, Frozen))
    ]
    blocks = [path for path in blocks if chosen(path)]
    if blocks:
        raise ValueError(
            f"{name} would train quantised weights, which have no gradient "
            f"({blocks[0]} and {len(blocks) - 1} more); load dense weights, or "
            "train what sits beside them (lora)"
        )


def head_paths(
    model: nnx.Module, modules: Sequence[str], name: str = "modules_to_save"
) -> set[tuple]:
    """Paths of all parameters below the modules whose paths end in one of `modules`.

    Raises:
      ValueError: an entry that no module has, or a module without parameters; an
        `AnyOf` may find none.
    """
    plain = plain_names(model)
    roots = {
        path: plain(path)
        for path, _ in named_modules(model)
        if path and matches(plain(path), list(modules))
    }

    def inside(path):
        return any(path.startswith(f"{root}.") for root in roots)

    refuse_quantised(model, inside, f"modules {list(modules)}")
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
    unmatched = [
        [module]
        for module in modules
        if not any(matches(owner, [module]) for owner in owners)
    ]
    refuse_unmatched(
        name,
        unmatched,
        "module with parameters",
        sorted(owners),
        tied_head(model, unmatched),
    )


def apply(model: nnx.Module, method: Method, key: jax.Array | None = None) -> Adapted:
    """Splits a copy of `model` for training by `method`.

    Args:
      key: names the random initial values; default `jax.random.key(0)`.

    Returns:
      The parts, which unpack into (graphdef, delta, backbone): `delta` holds what is
      trained and sent, `backbone` all the rest, `adapted.model(delta)` is the adapted
      model.

    Raises:
      ValueError: the model changes while it is called (`nnx.BatchNorm`, `nnx.Dropout`),
        which the backbone, one for all clients, must not; or the method does not fit
        it.
    """
    _check_method("method", method)
    _refuse_inner_state(model)
    model = nnx.clone(model)
    trainable = method.install(model, jax.random.key(0) if key is None else key)
    unknown = trainable - set(parameter_paths(model))
    if unknown or not trainable:
        raise ValueError(
            f"{method.name} leaves nothing to train, or names unknown parameters: {sorted(unknown)}"
        )
    graphdef, delta, backbone = nnx.split(
        model, lambda path, _: tuple(map(str, path)) in trainable, ...
    )
    return Adapted(graphdef=graphdef, delta=delta, backbone=backbone)


def _check_method(name: str, method: Any) -> None:
    if not isinstance(method, Method):
        shown = getattr(method, "__name__", type(method).__name__)
        raise TypeError(
            f"expected {name} a peft.Method, what peft.lora(...) and its like "
            f"return, got {name}={shown}"
        )


def _refuse_inner_state(model: nnx.Module) -> None:
    """Raises for modules that write to the model when it is called."""
    for path, module in named_modules(model):
        if isinstance(module, nnx.BatchNorm) and not module.use_running_average:
            raise ValueError(
                f"BatchNorm at {path!r} changes its running statistics when the "
                "model is called, but the backbone is one for all clients; use "
                "nnx.GroupNorm or nnx.LayerNorm, or model.eval() before "
                "peft.apply, which keeps the statistics as they are"
            )
        if (
            isinstance(module, nnx.Dropout)
            and not module.deterministic
            and module.rate > 0
        ):
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
      modules: endings of modules' paths; by default the heads that Hugging Face's classifiers have.

    Raises:
      ValueError: by `apply`, on a model that lacks one of `modules`, or has no head at all.
    """
    check_names("modules", modules)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        paths = head_paths(model, AnyOf(modules))
        if not paths:
            names = sorted(path for path, _ in named_modules(model) if path)
            raise ValueError(
                f"no module ends in one of {list(modules)}; there are {', '.join(names)}"
            )
        return head_paths(model, modules, "modules")

    return Method("head", install)


def by_path(predicate: Callable[[str], Any], name: str = "by_path") -> Method:
    """Trains the parameters whose dotted path `predicate` accepts
    ('encoder.layer.output.dense.kernel').
    """

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        plain = plain_names(model)
        refuse_quantised(model, lambda path: predicate(plain(path)), name)
        paths = {
            path for path in parameter_paths(model) if predicate(plain(".".join(path)))
        }
        if not paths:
            there = sorted({plain(".".join(path)) for path in parameter_paths(model)})
            raise ValueError(
                f"{name} matches no parameter; there are {', '.join(there)}"
            )
        return paths

    return Method(name, install)


def full() -> Method:
    """Trains every parameter."""
    return by_path(lambda path: True, "full")


def combine(*methods: Method) -> Method:
    """Several methods at once: their trained parameters together.

    They are installed in order, and a later one sits closer to the weights:
    `combine(ia3(), lora(...))` scales the sum of base and update, `combine(lora(...),
    ia3())` the base only.
    """
    if not methods:
        raise ValueError("combine() needs at least one method")
    for method in methods:
        _check_method("methods", method)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        for number, method in enumerate(methods):
            # The first one draws what it would draw alone.
            paths = method.install(
                model, jax.random.fold_in(key, number) if number else key
            )
            variables = parameter_paths(model)
            unknown = paths - set(variables)
            if unknown:
                raise ValueError(
                    f"{method.name} names unknown parameters: {sorted(unknown)}"
                )
            # paths change when a later method wraps a module; a mark stays, on slices
            # too
            for path in paths:
                variables[path].set_metadata(is_trained=True)
        trained = {
            p: v
            for p, v in parameter_paths(model).items()
            if v.get_metadata().get("is_trained")
        }
        for variable in trained.values():
            variable.del_metadata("is_trained")
        return set(trained)

    return Method("+".join(method.name for method in methods), install)
