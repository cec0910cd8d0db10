"""An adapted model's trained arrays as the tensors of PEFT's adapter_model.safetensors: names, and views to read or fill.

`lora_A.weight` is (r, in) and `lora_B.weight` (out, r), transposed to ours; `ia3_l` is (out, 1), or (1, in) in a
feed-forward layer; a prefix is one matrix (p, layers * 2 * heads * head_dim) of alternating keys and values.
"""

from collections.abc import Callable
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
from fedjax_fm.peft.targets import named_modules

KINDS = {"LORA": (LoRALinear, DoRALinear), "IA3": (IA3Linear,), "PROMPT_TUNING": (Prompt,), "PREFIX_TUNING": (Prefix,)}


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
        self.variables = {".".join(path): variable for path, variable in parameter_paths(model).items()}
        inside = tuple(f"{path}." for path in self.modules)
        own = {p for p in self.variables if p.startswith(inside) and not p.removeprefix(_first(p, inside)).count(".")}
        self.saved = self._whole_modules(trained - own)
        self.views: dict[str, np.ndarray] = {}
        if self.kind == "PREFIX_TUNING":
            self._prefix()
        else:
            for path, module in self.modules.items():
                self._adapter(path, module)
        prompt = self.kind in ("PROMPT_TUNING", "PREFIX_TUNING")
        for path in sorted(trained - own):
            for layer, (name, transposed) in enumerate(self.names.parameter(path)):
                view = self._array(path) if self.names.layers(path) is None else self._array(path)[layer]
                self.views[f"base_model.{'' if prompt else 'model.'}{name}"] = view.T if transposed else view

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
                    self.views[f"base_model.model.{name}.{word}"] = shaped(row)

    def _stacked(self, path: str, leaf: str) -> bool:
        # A shared lora_a has no layers: every layer's tensor is a view of the one array.
        own_axes = 2 if leaf.startswith("lora_") else 1
        return self._array(f"{path}.{leaf}").ndim > own_axes

    def _prefix(self) -> None:
        """One matrix for all layers, in their order."""
        order, parts = [], []
        for path in self.modules:
            layers = self.names.layers(path)
            keys, values = (self._array(f"{path}.{leaf}") for leaf in ("keys", "values"))
            both = np.stack([keys, values], axis=-4)  # [..., 2, p, heads, head_dim]
            order += [path] if layers is None else [f"{path} {layer}" for layer in layers]
            parts.append(both if layers is not None else both[None])
        whole = np.concatenate(parts)  # [layers, 2, p, heads, head_dim]
        n_layers, _, n_tokens, heads, width = whole.shape
        matrix = np.ascontiguousarray(whole.transpose(2, 0, 1, 3, 4)).reshape(n_tokens, n_layers * 2 * heads * width)
        self.views["prompt_embeddings"] = matrix

        def split() -> None:
            back, start = matrix.reshape(n_tokens, n_layers, 2, heads, width).transpose(1, 2, 0, 3, 4), 0
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
            if path and inside and inside <= trained and not any(path.startswith(f"{w}.") for w in whole):
                whole.append(path)
        covered = {p for p in trained if p.startswith(tuple(f"{path}." for path in whole))}
        problems = sorted(trained - covered) + [p for p in whole if p.startswith(adapters) or self.names.layers(p)]
        if problems:
            raise ValueError(
                f"PEFT's format holds {self.kind} and whole modules beside it, but these are trained too: {problems[:8]}; "
                "save the whole model instead"
            )
        return whole


def _first(path: str, prefixes: tuple[str, ...]) -> str:
    return max((prefix for prefix in prefixes if path.startswith(prefix)), key=len)


def _leaves(module: Any) -> list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    """(our leaf, PEFT's word, one layer's array as a view in PEFT's shape)."""
    if isinstance(module, IA3Linear):
        return [("ia3", "ia3_l", (lambda x: x[None, :]) if module.on_input else (lambda x: x[:, None]))]
    turned = lambda x: x.T
    leaves = [("lora_a", "lora_A.weight", turned), ("lora_b", "lora_B.weight", turned)]
    if isinstance(module, DoRALinear):
        leaves.append(("magnitude", "lora_magnitude_vector", lambda x: x))
    return leaves


def _adapters(model: nnx.Module) -> tuple[str, dict[str, Any]]:
    """(PEFT's name, {path: adapter module}) of the one method that a model carries."""
    found = {
        kind: {path: m for path, m in sorted(named_modules(model)) if type(m) in kinds} for kind, kinds in KINDS.items()
    }
    found = {kind: modules for kind, modules in found.items() if modules}
    if len(found) != 1:
        raise ValueError(f"PEFT's format holds one of {sorted(KINDS)}, but the model has {sorted(found) or 'none'}")
    return next(iter(found.items()))
