"""Gives the name `kernels` to the package that it belongs to.

With this repository's root on the path, Python finds this folder under that name.
"""

import sys
import types
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def give_way(name: str) -> None:
    """Puts the package that `name` belongs to in our place in `sys.modules`.

    That is Hugging Face's `kernels`, which transformers looks for. Where it is not
    installed, an empty module takes its place: it has no version, as transformers
    expects of what is not there, and every other name raises an error that says where
    ours is. There is never a second copy of our modules.

    Args:
      name: the `__name__` of the package that was imported from this folder.

    Raises:
      ImportError: `name` is that of a package inside another one.
    """
    if "." in name:
        raise ImportError(
            f"import this package as fedjax_fm.kernels, not as {name!r}: two "
            "copies would not be equal"
        )
    root = Path(__file__).resolve().parent.parent
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
    spec = PathFinder.find_spec(name, elsewhere)
    sys.modules.pop(f"{name}.other_name", None)
    if spec is None or spec.loader is None or not spec.has_location:
        sys.modules[name] = _empty(name)
        return
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)


def _empty(name: str) -> types.ModuleType:
    """A package without submodules, whose errors say where ours is."""

    def refuse(wanted: str) -> object:
        if wanted.startswith("__"):  # what Python and others ask of any module
            raise AttributeError(f"module {name!r} has no attribute {wanted!r}")
        raise ImportError(
            f"{name}.{wanted}: the package {name!r} is not installed; the folder "
            "of that name in the repository of fedjax_fm is imported as "
            "fedjax_fm.kernels"
        )

    module = types.ModuleType(name, f"Stands for {name!r}, which is not installed.")
    module.__path__ = []
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__getattr__ = refuse  # type: ignore[attr-defined]
    return module
