"""An adapted model's trained arrays as the tensors of PEFT's adapter_model.safetensors.

Names, and views to read or fill.

`lora_A.weight` is (r, in) and `lora_B.weight` (out, r), transposed to ours; `ia3_l` is
(out, 1), or (1, in) in a feed-forward layer; a prefix is one matrix (p, layers * 2 *
heads * head_dim) of alternating keys and values.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm.peft.dora import DoRALinear
from fedjax_fm.peft.ia3 import IA3Linear
from fedjax_fm.peft.lora import LoRALinear
from fedjax_fm.peft.method import parameter_paths
from fedjax_fm.peft.names import Names
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
    """The tensors of an adapted model.

    Attributes:
      kind: PEFT's name of the method.
      modules: {path: module} of its adapters.
      saved: paths of the modules that are trained in full.
      views: {tensor name: NumPy array}; writing into one changes what `finish` puts into the model.
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
        inside = tuple(f"{path}." for path in (*self.modules, *self.tokens))
        own = {
            p
            for p in self.variables
            if p.startswith(inside) and not p.removeprefix(_first(p, inside)).count(".")
        }
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
            self.views[f"{self.prefix}{name}.token_adapter.trainable_tokens_delta"] = (
                self._array(f"{path}.rows")
            )
        for path in sorted((trained | self._taken_along()) - own):
            self.views |= {
                f"{self.prefix}{name}": view for name, view in self._torch_views(path)
            }
        if self.tied_head is not None:
            self.views[f"{self.prefix}lm_head.weight"] = self._array(self.tied_head)

    @property
    def prefix(self) -> str:
        """What PEFT puts before the base model's names."""
        return (
            "base_model."
            if self.kind in ("PROMPT_TUNING", "PREFIX_TUNING")
            else "base_model.model."
        )

    def base_views(self, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """{tensor name: view} of those base weights that have one of these names, as
        PEFT stores the weights of wrapped modules and of resized embeddings.
        """
        found = {}
        for path in self.variables:
            names = {name for name, _ in self.names.parameter(path)}
            stored = {
                f"{self.prefix}{spelling}": name
                for name in names
                for spelling in (name, _wrapped(name))
            }
            if stored.keys() & set(wanted):
                views = dict(self._torch_views(path))
                found |= {
                    spelling: views[name]
                    for spelling, name in stored.items()
                    if spelling in wanted
                }
        return found

    def saved_endings(self) -> list[str]:
        """The shortest endings that pick the saved modules where PEFT compares names.

        It does not ask for a dot.
        """
        everything = {
            name for path in self.names.modules for name in self.names.module(path)
        }
        saved: dict[str, set[str]] = {}
        for path in self.saved:
            saved.setdefault(self.names.unnumbered(path), set()).update(
                self.names.module(path)
            )
        found = set()
        for unnumbered, own in saved.items():
            words = unnumbered.split(".")
            tries = (".".join(words[-n:]) for n in range(1, len(words) + 1))
            alone = (
                end
                for end in tries
                if {name for name in everything if name.endswith(end)} == own
            )
            found |= own if (ending := next(alone, None)) is None else {ending}
        return sorted(found)

    def _taken_along(self) -> set[str]:
        """Frozen parameters of modules that the endings of the saved ones pick, too.

        "pre_classifier" by "classifier".
        """
        endings = tuple(self.saved_endings())
        picked = [
            p
            for p in self.names.modules
            if endings and all(n.endswith(endings) for n in self.names.module(p))
        ]
        return {
            path
            for path in self.variables
            if path.startswith(tuple(f"{owner}." for owner in picked))
        }

    def _torch_views(self, path: str) -> list[tuple[str, np.ndarray]]:
        """(tensor name, view as torch stores it) of a parameter, one for each layer."""
        array, layers = self._array(path), self.names.layers(path)
        found = []
        for number, (name, transposed) in enumerate(self.names.parameter(path)):
            view = array if layers is None else array[number]
            found.append((name, view.T if transposed else view))
        return found

    def _tied_head(self) -> str | None:
        """The saved embedding's table, where a tied head reads it."""
        if not is_tied(self.model):
            return None
        tables = [
            f"{p}.embedding"
            for p in self.saved
            if getattr(get_module(self.model, p), "embedding", None) is not None
        ]
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
        if path not in self.arrays:
            self.arrays[path] = np.array(self.variables[path][...])
        return self.arrays[path]

    def _adapter(self, path: str, module: Any) -> None:
        if self.kind == "PROMPT_TUNING":
            self.views["prompt_embeddings"] = self._array(f"{path}.embedding")
        else:
            for layer, name in enumerate(self.names.module(path)):
                for leaf, word, shaped in _leaves(module):
                    array = self._array(f"{path}.{leaf}")
                    row = array[layer] if self._stacked(path, leaf) else array
                    self.views[f"{self.prefix}{name}.{word}"] = shaped(row)

    def _stacked(self, path: str, leaf: str) -> bool:
        # A shared lora_a has no layers: every layer's tensor is a view of the one array.
        own_axes = 2 if leaf.startswith("lora_") else 1
        return self._array(f"{path}.{leaf}").ndim > own_axes

    def _prefix(self) -> None:
        """One matrix for all layers, in their order."""
        order, parts = [], []
        for path in self.modules:
            layers = self.names.layers(path)
            keys, values = (
                self._array(f"{path}.{leaf}") for leaf in ("keys", "values")
            )
            both = np.stack([keys, values], axis=-4)  # [..., 2, p, heads, head_dim]
            order += (
                [path] if layers is None else [f"{path} {layer}" for layer in layers]
            )
            parts.append(both if layers is not None else both[None])
        whole = np.concatenate(parts)  # [layers, 2, p, heads, head_dim]
        n_layers, _, n_tokens, heads, width = whole.shape
        matrix = np.ascontiguousarray(whole.transpose(2, 0, 1, 3, 4)).reshape(
            n_tokens, n_layers * 2 * heads * width
        )
        self.views["prompt_embeddings"] = matrix

        def split() -> None:
            back, start = (
                matrix.reshape(n_tokens, n_layers, 2, heads, width).transpose(
                    1, 2, 0, 3, 4
                ),
                0,
            )
            for path, part in zip(self.modules, parts, strict=True):
                rows = back[start : start + len(part)]
                for number, leaf in enumerate(("keys", "values")):
                    array = self._array(f"{path}.{leaf}")
                    array[...] = rows[:, number].reshape(array.shape)
                start += len(part)

        self.finishers = [split]

    def _whole_modules(self, trained: set[str]) -> list[str]:
        """The largest modules of which all is trained; refuses single parameters."""
        adapters = tuple(f"{path}." for path in self.modules)
        whole = []
        for path, _ in sorted(named_modules(self.model)):
            inside = {p for p in self.variables if p.startswith(f"{path}.")}
            if (
                path
                and inside
                and inside <= trained
                and not any(path.startswith(f"{w}.") for w in whole)
            ):
                whole.append(path)
        covered = {
            p for p in trained if p.startswith(tuple(f"{path}." for path in whole))
        }
        held: dict[str, set[int]] = {}
        for path in whole:
            held.setdefault(self.names.plain(path), set()).update(
                self.names.layers(path) or ()
            )
        partly = [p for p in whole if held[self.names.plain(p)] != self._all_layers(p)]
        problems = sorted(trained - covered) + [
            p for p in whole if p.startswith(adapters) or p in partly
        ]
        if problems:
            raise ValueError(
                f"PEFT's format holds {self.kind} and whole modules beside it, "
                f"but these are trained too: {problems[:8]}; save the whole model "
                "instead"
            )
        return whole

    def _all_layers(self, path: str) -> set[int]:
        """The numbers of all layers of the stack that a module lies in; none outside of stacks."""
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
    return max((prefix for prefix in prefixes if path.startswith(prefix)), key=len)


def _leaves(module: Any) -> list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    """(our leaf, PEFT's word, one layer's array as a view in PEFT's shape)."""
    if isinstance(module, IA3Linear):
        return [
            (
                "ia3",
                "ia3_l",
                (lambda x: x[None, :]) if module.on_input else (lambda x: x[:, None]),
            )
        ]

    def turned(x):
        return x.T

    leaves = [("lora_a", "lora_A.weight", turned), ("lora_b", "lora_B.weight", turned)]
    if isinstance(module, DoRALinear):
        leaves.append(("magnitude", "lora_magnitude_vector", lambda x: x))
    return leaves


def _adapters(model: nnx.Module) -> tuple[str, dict[str, Any]]:
    """(PEFT's name, {path: adapter module}) of the one method that a model carries."""
    found = {
        kind: {path: m for path, m in sorted(named_modules(model)) if type(m) in kinds}
        for kind, kinds in KINDS.items()
    }
    found = {kind: modules for kind, modules in found.items() if modules}
    if len(found) != 1:
        raise ValueError(
            f"PEFT's format holds one of {sorted(KINDS)}, but the model has "
            f"{sorted(found) or 'none'}"
        )
    return next(iter(found.items()))
