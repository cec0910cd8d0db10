"""The tensors of PEFT's adapter_model.safetensors, as views of a model's arrays.

`lora_A.weight` is [r, in] and `lora_B.weight` [out, r], the transposes of the arrays
here. `ia3_l` is [out, 1], or [1, in] in a feed-forward layer. A prefix is one matrix
[p, layers * 2 * heads * head_dim] of alternating keys and values.
"""

from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm.peft.dora import DoRALinear
from fedjax_fm.peft.ia3 import IA3Linear
from fedjax_fm.peft.lora import LoRALinear
from fedjax_fm.peft.method import parameter_paths
from fedjax_fm.peft.names import Names, endings_of
from fedjax_fm.peft.prefix import Prefix
from fedjax_fm.peft.prompt import Prompt
from fedjax_fm.peft.targets import get_module, is_tied, named_modules
from fedjax_fm.peft.tokens import token_modules

KINDS = {
    "LORA": (LoRALinear, DoRALinear),
    "IA3": (IA3Linear,),
    "PROMPT_TUNING": (Prompt,),
    "PREFIX_TUNING": (Prefix,),
}


class AdapterTensors:
    """The tensors of an adapted model, to be read or filled.

    Args:
      model: adapted by one method of PEFT's.
      trained: dotted paths of its trained parameters.

    Attributes:
      kind: PEFT's name of the method.
      modules: {path: module} of its adapters.
      saved: paths of the modules that are trained in full.
      tied_head: the path of a saved embedding's table that a tied head reads, or None.
      views: {tensor name: NumPy array}; what is written into one gets into the model by
        `finish`.

    Raises:
      ValueError: PEFT's format cannot hold what is trained.
    """

    def __init__(self, model: nnx.Module, trained: set[str]):
        self.model, self.names = model, Names(model)
        self.kind, self.modules = _adapters(model)
        self.arrays: dict[str, np.ndarray] = {}
        self.finishers: list[Callable[[], None]] = []
        self.variables = {
            ".".join(path): variable
            for path, variable in parameter_paths(model).items()
        }
        self.tokens = token_modules(model)
        if self.tokens and self.kind != "LORA":
            raise ValueError(
                "PEFT's format holds trained tokens beside LoRA, not beside "
                f"{self.kind}: {list(self.tokens)}"
            )
        own = self._own_leaves()
        self.saved = self._whole_modules(trained - own)
        self.tied_head = self._tied_head()
        self.views: dict[str, np.ndarray] = {}
        if self.kind == "PREFIX_TUNING":
            self._prefix()
        else:
            for path, module in self.modules.items():
                self._adapter(path, module)
        for path in self.tokens:
            name = self.names.module(path)[0]
            tensor = f"{self.prefix}{name}.token_adapter.trainable_tokens_delta"
            self.views[tensor] = self._array(f"{path}.rows")
        for path in sorted((trained | self._taken_along()) - own):
            for name, view in self._torch_views(path):
                self.views[f"{self.prefix}{name}"] = view
        if self.tied_head is not None:
            self.views[f"{self.prefix}lm_head.weight"] = self._array(self.tied_head)

    @property
    def prefix(self) -> str:
        """The beginning of all names that come from the base model."""
        virtual = self.kind in ("PROMPT_TUNING", "PREFIX_TUNING")
        return "base_model." if virtual else "base_model.model."

    def base_views(self, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """Finds base weights by the names under which PEFT may store them.

        PEFT stores the weights of wrapped modules and of resized embeddings.

        Args:
          wanted: names of tensors.

        Returns:
          {tensor name: view} of those that are base weights.
        """
        found, wanted = {}, set(wanted)
        for path in self.variables:
            stored = {}
            for name, _ in self.names.parameter(path):
                stored[f"{self.prefix}{name}"] = name
                stored[f"{self.prefix}{_wrapped(name)}"] = name
            here = stored.keys() & wanted
            views = dict(self._torch_views(path)) if here else {}
            found |= {spelling: views[stored[spelling]] for spelling in here}
        return found

    def saved_endings(self) -> list[str]:
        """Finds the shortest endings that pick the saved modules and no others.

        PEFT compares names without regard to dots.

        Returns:
          The endings, sorted, for `modules_to_save`; whole names where no ending does.
        """
        names = self.names
        everything = {name for path in names.modules for name in names.module(path)}
        saved: dict[str, set[str]] = defaultdict(set)
        for path in self.saved:
            saved[names.unnumbered(path)].update(names.module(path))
        found: set[str] = set()
        for unnumbered, own in saved.items():
            alone = own
            for ending in endings_of(unnumbered):
                if {name for name in everything if name.endswith(ending)} == own:
                    alone = {ending}
                    break
            found |= alone
        return sorted(found)

    def _own_leaves(self) -> set[str]:
        """Paths of the parameters that adapters and trained tokens have themselves."""
        inside = tuple(f"{path}." for path in (*self.modules, *self.tokens))
        found = set()
        for path in self.variables:
            if path.startswith(inside):
                leaf = path.removeprefix(_first(path, inside))
                if "." not in leaf:
                    found.add(path)
        return found

    def _taken_along(self) -> set[str]:
        """Frozen parameters of modules that the saved endings pick, too.

        An example is "pre_classifier", which ends in "classifier".
        """
        endings = tuple(self.saved_endings())
        if not endings:
            return set()
        picked = []
        for path in self.names.modules:
            names = self.names.module(path)
            if all(name.endswith(endings) for name in names):
                picked.append(f"{path}.")
        return {path for path in self.variables if path.startswith(tuple(picked))}

    def _torch_views(self, path: str) -> list[tuple[str, np.ndarray]]:
        """(tensor name, view as torch stores it), one for each layer of a parameter."""
        array, layers = self._array(path), self.names.layers(path)
        found = []
        for number, (name, transposed) in enumerate(self.names.parameter(path)):
            view = array if layers is None else array[number]
            found.append((name, view.T if transposed else view))
        return found

    def _tied_head(self) -> str | None:
        """The path of a saved embedding's table, where a tied head reads it."""
        if not is_tied(self.model):
            return None
        tables = []
        for path in self.saved:
            module = get_module(self.model, path)
            if getattr(module, "embedding", None) is not None:
                tables.append(f"{path}.embedding")
        if tables and self.kind != "LORA":
            raise ValueError(
                f"PEFT's {self.kind} trains {tables[0]} without the head that is "
                "tied to it; use peft.untie(model) first"
            )
        return tables[0] if tables else None

    def finish(self) -> None:
        """Puts the arrays into the model."""
        for finisher in self.finishers:
            finisher()
        for path, array in self.arrays.items():
            variable = self.variables[path]
            variable[...] = jnp.asarray(array, variable.dtype)

    def _array(self, path: str) -> np.ndarray:
        """A parameter's values, one array however often it is asked for."""
        if path not in self.arrays:
            self.arrays[path] = np.array(self.variables[path][...])
        return self.arrays[path]

    def _adapter(self, path: str, module: Any) -> None:
        """Adds the views of one adapter."""
        if self.kind == "PROMPT_TUNING":
            self.views["prompt_embeddings"] = self._array(f"{path}.embedding")
            return
        leaves = _leaves(module)
        for layer, name in enumerate(self.names.module(path)):
            for leaf, word, shaped in leaves:
                array = self._array(f"{path}.{leaf}")
                row = array[layer] if self._stacked(path, leaf) else array
                self.views[f"{self.prefix}{name}.{word}"] = shaped(row)

    def _stacked(self, path: str, leaf: str) -> bool:
        """Whether a leaf has an axis of layers."""
        # A shared lora_a has no layers: all layers' tensors are views of one array.
        own_axes = 2 if leaf.startswith("lora_") else 1
        return self._array(f"{path}.{leaf}").ndim > own_axes

    def _prefix(self) -> None:
        """Adds one matrix for all layers, in their order."""
        parts = []
        for path in self.modules:
            keys, values = self._array(f"{path}.keys"), self._array(f"{path}.values")
            both = np.stack([keys, values], axis=-4)  # [..., 2, p, heads, head_dim]
            is_stacked = self.names.layers(path) is not None
            parts.append(both if is_stacked else both[None])
        whole = np.concatenate(parts)  # [layers, 2, p, heads, head_dim]
        n_layers, _, n_tokens, heads, width = whole.shape
        token_first = np.ascontiguousarray(np.moveaxis(whole, 2, 0))
        matrix = token_first.reshape(n_tokens, n_layers * 2 * heads * width)
        self.views["prompt_embeddings"] = matrix

        def split() -> None:
            """Puts the matrix back into the keys and values of the layers."""
            back = np.moveaxis(matrix.reshape(token_first.shape), 0, 2)
            start = 0
            for path, part in zip(self.modules, parts, strict=True):
                rows = back[start : start + len(part)]
                for number, leaf in enumerate(("keys", "values")):
                    array = self._array(f"{path}.{leaf}")
                    array[...] = rows[:, number].reshape(array.shape)
                start += len(part)

        self.finishers = [split]

    def _whole_modules(self, trained: set[str]) -> list[str]:
        """The largest modules that are trained in full; refuses single parameters."""
        adapters = tuple(f"{path}." for path in self.modules)
        whole: list[str] = []
        for path, _ in sorted(named_modules(self.model)):
            inside = {p for p in self.variables if p.startswith(f"{path}.")}
            above = tuple(f"{other}." for other in whole)
            is_trained = bool(inside) and inside <= trained
            if path and is_trained and not path.startswith(above):
                whole.append(path)
        starts = tuple(f"{path}." for path in whole)
        covered = {path for path in trained if path.startswith(starts)}
        held: dict[str, set[int]] = defaultdict(set)
        for path in whole:
            held[self.names.plain(path)].update(self.names.layers(path) or ())
        problems = sorted(trained - covered)
        for path in whole:
            partly = held[self.names.plain(path)] != self._all_layers(path)
            if partly or path.startswith(adapters):
                problems.append(path)
        if problems:
            raise ValueError(
                f"PEFT's format holds {self.kind} and whole modules beside it, "
                f"but these are trained too: {problems[:8]}; save the whole model "
                "instead"
            )
        return whole

    def _all_layers(self, path: str) -> set[int]:
        """The numbers of all layers of a module's stack; none outside of stacks."""
        stack, layers = self.names.layers_of(path)
        if layers is None:
            return set()
        inside = [self.names.layers_of(other) for other in self.names.modules]
        return {
            number for where, own in inside if where == stack for number in own or ()
        }


def _wrapped(name: str) -> str:
    """The name of a tensor inside of PEFT's wrapper."""
    module, _, word = name.rpartition(".")
    return f"{module}.base_layer.{word}"


def _first(path: str, prefixes: tuple[str, ...]) -> str:
    """The longest of the prefixes with which a path starts."""
    return max((prefix for prefix in prefixes if path.startswith(prefix)), key=len)


def _leaves(module: Any) -> list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    """(leaf, PEFT's name of it, a function to PEFT's shape) of an adapter."""
    if isinstance(module, IA3Linear):
        return [("ia3", "ia3_l", _as_row if module.on_input else _as_column)]
    leaves: list[Any] = [
        ("lora_a", "lora_A.weight", np.transpose),
        ("lora_b", "lora_B.weight", np.transpose),
    ]
    if isinstance(module, DoRALinear):
        leaves.append(("magnitude", "lora_magnitude_vector", np.asarray))
    return leaves


def _as_row(vector: np.ndarray) -> np.ndarray:
    """A view [1, n] of a vector."""
    return vector[None, :]


def _as_column(vector: np.ndarray) -> np.ndarray:
    """A view [n, 1] of a vector."""
    return vector[:, None]


def _adapters(model: nnx.Module) -> tuple[str, dict[str, Any]]:
    """(PEFT's name, {path: adapter}) of the one method that a model has."""
    modules = sorted(named_modules(model))
    found = {}
    for kind, kinds in KINDS.items():
        own = {path: module for path, module in modules if type(module) in kinds}
        if own:
            found[kind] = own
    if len(found) != 1:
        raise ValueError(
            f"PEFT's format holds one of {sorted(KINDS)}, but the model has "
            f"{sorted(found) or 'none'}"
        )
    (item,) = found.items()
    return item
