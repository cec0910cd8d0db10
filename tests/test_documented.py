"""Every exported name is documented: each parameter by name, an example where it is a part to build with."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import pytest
from style_tool import style

import fedjax_fm
import fedjax_fm.kernels

# What people build with: functions that return one of these show an example that runs.
PARTS = {"Algorithm", "Channel", "Sampler", "Method", "Noise", "Reduce"}


def packages():
    """Every module of the package that says what it exports."""
    names = ["fedjax_fm"]
    for root in (fedjax_fm, fedjax_fm.kernels):
        names += [
            found.name
            for found in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")
            if ".experiments" not in found.name and not found.name.endswith("__main__")
        ]
    modules = [importlib.import_module(name) for name in sorted(set(names))]
    return [module for module in modules if hasattr(module, "__all__")]


def exported():
    """{dotted name: object}, each object once, under its shortest name."""
    found = {}
    for module in packages():
        for name in module.__all__:
            value = getattr(module, name)
            ours = getattr(value, "__module__", "").startswith("fedjax_fm")
            if ours and (inspect.isfunction(value) or inspect.isclass(value)):
                found.setdefault(value, f"{module.__name__}.{name}")
    return {name: value for value, name in found.items()}


EXPORTED = exported()
FUNCTIONS = {name: x for name, x in EXPORTED.items() if inspect.isfunction(x)}
CLASSES = {name: x for name, x in EXPORTED.items() if inspect.isclass(x)}


def parameters(function):
    """The names that a caller may give."""
    names = inspect.signature(function).parameters
    return [name for name in names if name not in ("self", "cls")]


def undocumented(function, text):
    """Parameters without an entry in this text."""
    return [
        name for name in parameters(function) if not style.is_documented(name, text)
    ]


def fields(cls):
    """The fields of a NamedTuple or a dataclass that people see; () for other classes."""
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return [name for name in cls._fields if not name.startswith("_")]
    if dataclasses.is_dataclass(cls):
        return [f.name for f in dataclasses.fields(cls) if not f.name.startswith("_")]
    return []


def has_comment(cls, field):
    """Whether a comment stands behind the field or right above it."""
    lines = inspect.getsource(cls).splitlines()
    for number, line in enumerate(lines):
        if re.match(rf"\s+{field}\s*:", line):
            below = "\n".join(lines[number : number + 5])
            own = below.split("\n    " + " " * (len(line) - len(line.lstrip()) - 4), 1)[
                0
            ]
            if "#" in line or "#" in own or lines[number - 1].lstrip().startswith("#"):
                return True
            if (
                line.rstrip().endswith("(")
                and "#" in below.split(")")[0] + below.split(")")[1][:40]
            ):
                return True
    return False


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_parameters_of_functions(name):
    function = FUNCTIONS[name]
    text = inspect.getdoc(function) or ""
    assert text, f"{name} has no docstring"
    assert not (missing := undocumented(function, text)), f"{name}: {missing}"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_fields_and_methods_of_classes(name):
    cls = CLASSES[name]
    text = cls.__doc__ or ""
    generated = text.startswith(f"{cls.__name__}(")
    assert text, f"{name} has no docstring"
    assert not generated, f"{name} has no docstring of its own"
    missing = [
        field
        for field in fields(cls)
        if not style.is_documented(field, text)
        and f"`{field}" not in text
        and not has_comment(cls, field)
    ]
    is_protocol = getattr(cls, "_is_protocol", False)
    own = "__init__" in vars(cls) and not is_protocol
    if own and not fields(cls) and not issubclass(cls, Exception):
        missing += undocumented(cls.__init__, text)
    for method, value in vars(cls).items():
        function = (
            value.__func__ if isinstance(value, classmethod | staticmethod) else value
        )
        if method.startswith("_") or not inspect.isfunction(function):
            continue
        said = (
            inspect.getdoc(getattr(cls, method)) or ""
        )  # also of the class that it overrides
        missing += [method] if not said else []
        missing += [f"{method}({p})" for p in undocumented(function, said)]
    assert not missing, f"{name}: {missing}"


def returns_a_part(function):
    """Whether what is returned is something to build with."""
    annotation = inspect.signature(function).return_annotation
    return getattr(annotation, "__name__", str(annotation)).split(".")[-1] in PARTS


@pytest.mark.parametrize(
    "name", sorted(n for n, f in FUNCTIONS.items() if returns_a_part(f))
)
def test_examples_of_what_one_builds_with(name):
    text = inspect.getdoc(FUNCTIONS[name]) or ""
    assert "Example" in text, f"{name} has no example"
    assert ">>>" in text, f"{name} has no example that runs"


def test_planted():
    def one(first, second, *rest, third=3, **others):
        """One sentence.

        Args:
          first, second: of both.
          third: with a default.
        """

    assert undocumented(one, inspect.getdoc(one)) == ["rest", "others"]
