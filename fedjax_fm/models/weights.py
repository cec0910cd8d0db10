"""Hugging Face safetensors into an nnx module, by name."""

import contextlib
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open

from fedjax_fm.axes import place_of
from fedjax_fm.models.locate import INDEX, WEIGHTS

# The last word of a parameter's path: (Hugging Face's word, whether torch stores the
# transpose).
_LAST = {
    "kernel": ("weight", True),
    "scale": ("weight", False),
    "embedding": ("weight", False),
    "bias": ("bias", False),
}
_OTHER_FORMATS = (".bin", ".h5", ".msgpack", ".pt", ".pth", ".ckpt", ".index", ".onnx")
# safetensors' names of numbers. What is not in _FLOATS cannot be read as weights.
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_FLOATS = tuple(_DTYPES.values())
_DTYPES |= {f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)} | {
    f"U{bits}": f"uint{bits}" for bits in (8, 16, 32)
}
_DTYPES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool"}
# Norms in checkpoints converted from TensorFlow.
_OLD_WORDS = {"weight": "gamma", "bias": "beta"}


# What reading an index of shards raises where it is none.
_NO_INDEX = (
    json.JSONDecodeError,
    UnicodeDecodeError,
    KeyError,
    TypeError,
    AttributeError,
)


class WeightError(ValueError):
    """A checkpoint is corrupt or does not fit the model."""


class Naming(NamedTuple):
    """How Hugging Face names a model's parameters, where it is not our dotted paths.

    Attributes:
      stacked: modules whose parameters have a leading layer axis here and a number in
        their names there.
      prefixes: what checkpoints may put before, or leave out of, a name ("bert.").
      renamed: (our beginning of a path, theirs) where more than the layer number
        differs.
      in_out: last names of modules whose kernels are stored as [in, out], not as the
        transpose.
      new: beginnings of paths that get initial values where the checkpoint lacks them.
      ignored: regular expressions of tensor names that are no parameters of ours.
      embedding: the path of the table of tokens, which a head may share; see `heads`.
      copies: names of tensors that are copies of that table, if they are stored at all;
        one of them stands for it where it is not.

    Example:
      >>> naming = Naming(stacked=("encoder.layer",))
      >>> naming.tensor(("encoder", "layer", "output", "dense", "kernel"), layer=3)
      ('encoder.layer.3.output.dense.weight', True)
    """

    stacked: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    renamed: tuple[tuple[str, str], ...] = ()
    in_out: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor is no parameter of ours.

        Args:
          name: of the tensor.
        """
        return any(re.search(pattern, name) for pattern in self.ignored)

    def stack_of(self, path: tuple[str, ...]) -> str | None:
        """The stacked module that a parameter belongs to, None if to none.

        Args:
          path: of the parameter.
        """
        dotted = "." + ".".join(path)
        return next((stack for stack in self.stacked if f".{stack}." in dotted), None)

    def tensor(self, path: tuple[str, ...], layer: int | None) -> tuple[str, bool]:
        """The name of a parameter's tensor, and whether it is stored transposed.

        Args:
          path: of the parameter.
          layer: its number in a stack; None: the name without one.

        Returns:
          (name, transposed).
        """
        word, transposed = _LAST.get(path[-1], (path[-1], False))
        if len(path) > 1 and path[-2] in self.in_out:
            transposed = False
        name = "." + ".".join((*path[:-1], word))
        for ours, theirs in self.renamed:
            name = name.replace(f".{ours}.", f".{theirs}.", 1)
        stack = self.stack_of(path)
        if layer is not None and stack is not None:
            name = name.replace(f".{stack}.", f".{stack}.{layer}.", 1)
        return name[1:], transposed


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's config.json.

    Args:
      folder: of the model.

    Raises:
      FileNotFoundError: there is no config.json.
      WeightError: it is not JSON, or holds no object.
    """
    path = folder / "config.json"
    if not path.is_file():
        there = sorted(p.name for p in folder.iterdir())
        raise FileNotFoundError(f"{folder} has no config.json; found {there}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(fields, dict):
        raise WeightError(
            f"{path} is no configuration: expected an object of fields, got "
            f"{type(fields).__name__}"
        )
    return fields


def checkpoint_name(
    path: tuple[str, ...], stacked: str, layer: int | None
) -> tuple[str, bool]:
    """The name of a parameter's tensor in a model with one stack; see `Naming.tensor`.

    Args:
      path: of the parameter.
      stacked: the stacked module.
      layer: its number in the stack; None: the name without one.

    Example:
      >>> checkpoint_name(("model", "layers", "mlp", "kernel"), "model.layers", 0)
      ('model.layers.0.mlp.weight', True)
    """
    return Naming(stacked=(stacked,)).tensor(path, layer)


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights: model.safetensors, or its shards.

    The shards are those that model.safetensors.index.json lists.

    Args:
      folder: of the model.

    Raises:
      FileNotFoundError: neither is there, or a shard is missing.
      WeightError: the index cannot be read.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    there = sorted(path.name for path in folder.iterdir())
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"{folder} has no {WEIGHTS}; found {there}{_how_to_convert(there)}"
        )
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        shards = sorted(set(index["weight_map"].values()))
    except _NO_INDEX as error:
        raise WeightError(
            f"{folder / INDEX} is no index of shards ({error!r}); download it again"
        ) from error
    missing = [shard for shard in shards if shard not in there]
    if missing or not shards:
        raise FileNotFoundError(
            f"{folder / INDEX} lists {len(shards)} shards, of which these are "
            f"missing: {missing}"
        )
    return [folder / shard for shard in shards]


def _how_to_convert(there: list[str]) -> str:
    """Advice about weights in other formats; nothing where there are none."""
    others = [name for name in there if name.endswith(_OTHER_FORMATS)]
    if not others:
        return ""
    return (
        f". {others[0]} is of another format, which is not read; write "
        "safetensors once: "
        "transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), "
        "or the class that config.json names, and copy tokenizer.json"
    )


class Tensors:
    """The tensors of open safetensors files; only what is asked for is read.

    Args:
      files: one or several.
      stack: closes them.

    Raises:
      WeightError: a file is corrupt, or two hold a tensor of one name.
    """

    def __init__(self, files: list[Path], stack: contextlib.ExitStack):
        self.source: dict[str, Any] = {}
        for path in files:
            try:
                opened = stack.enter_context(safe_open(path, "np"))
            except SafetensorError as error:
                size = path.stat().st_size
                raise WeightError(
                    f"{path} ({size} bytes) is truncated or corrupt: {error}. "
                    "Delete it and fetch it again."
                ) from error
            names = list(opened.keys())
            twice = sorted(set(names) & set(self.source))
            if twice:
                raise WeightError(
                    f"{path} holds {twice[0]} once more; the shards are not of "
                    "one model, fetch them again"
                )
            self.source |= dict.fromkeys(names, opened)

    def kind(self, name: str) -> str:
        """NumPy's name of a tensor's dtype, or safetensors' own where NumPy has none.

        Args:
          name: of the tensor.
        """
        kind = str(self.source[name].get_slice(name).get_dtype())
        return _DTYPES.get(kind, kind)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the head of its file.

        Args:
          name: of the tensor.
        """
        return tuple(self.source[name].get_slice(name).get_shape())

    def read_part(
        self, name: str, transposed: bool, index: tuple[slice, ...]
    ) -> np.ndarray:
        """A part of one tensor; nothing else of it is read, if it is a matrix.

        Args:
          name: of the tensor.
          transposed: whether `index` is that of the transpose.
          index: a slice for each dimension.
        """
        if not transposed:
            return self.source[name].get_slice(name)[index]
        if len(self.shape(name)) == 2:
            return self.source[name].get_slice(name)[index[::-1]].T
        whole = self.read(name)  # a convolution over patches
        return whole.reshape(whole.shape[0], -1).T[index]

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers.

        Args:
          one: a tensor's name.
          other: another's.
        """
        first, second = self.read(one), self.read(other)
        if first.shape != second.shape:
            return False
        # Bytes are compared far faster than numbers of 16 bits.
        if first.dtype == second.dtype:
            first = first.reshape(-1).view(np.uint8)
            second = second.reshape(-1).view(np.uint8)
        return np.array_equal(first, second)

    def read(self, name: str) -> np.ndarray:
        """One whole tensor.

        Args:
          name: of the tensor.

        Raises:
          WeightError: it cannot be read.
        """
        try:
            return self.source[name].get_tensor(name)
        except SafetensorError as error:
            raise WeightError(
                f"the tensor {name} cannot be read: {error}. Fetch the files again."
            ) from error


class InMemory(Tensors):
    """Tensors that are read already, as those of open safetensors files.

    Args:
      tensors: {name: array}.
    """

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.source = tensors

    def kind(self, name: str) -> str:
        """NumPy's name of a tensor's dtype."""
        return self.source[name].dtype.name

    def read(self, name: str) -> np.ndarray:
        """One whole tensor."""
        return self.source[name]


class ReadAtOnce:
    """A model's file whose tensors are all in memory, under Hugging Face's names."""

    _tensors: dict[str, np.ndarray]

    def tensors(self) -> Tensors:
        """The tensors under Hugging Face's names."""
        return InMemory(self._tensors)

    def names(self) -> list[str]:
        """The tensors' names, as Hugging Face has them."""
        return list(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """One tensor.

        Args:
          name: as Hugging Face has it.
        """
        return self._tensors[name]


class _Checkpoint:
    """Open tensors, with what was read of them and what did not fit."""

    def __init__(
        self,
        tensors: Tensors,
        naming: Naming,
        key: jax.Array,
        paths: list[tuple[str, ...]],
        mesh: Mesh | None,
    ):
        self.tensors, self.naming, self.key = tensors, naming, key
        self.mesh = mesh
        self.used: set[str] = set()
        self.problems: list[str] = []
        # A head is new as a whole or not at all.
        there = [
            ".".join(path)
            for path in paths
            if self.find(naming.tensor(path, None)[0]) is not None
        ]
        self.new = tuple(
            new for new in naming.new if not any(path.startswith(new) for path in there)
        )

    def find(self, name: str) -> str | None:
        """The checkpoint's name of a tensor, with or without a prefix, or None."""
        stem, _, word = name.rpartition(".")
        spellings = [name]
        if word in _OLD_WORDS:
            spellings.append(f"{stem}.{_OLD_WORDS[word]}")
        candidates = [
            candidate
            for spelling in spellings
            for prefix in self.naming.prefixes
            for candidate in (prefix + spelling, spelling.removeprefix(prefix))
        ]
        embedding = self.naming.embedding
        if embedding and name == self.naming.tensor(embedding, None)[0]:
            candidates += self.naming.copies
        return next((c for c in candidates if c in self.tensors.source), None)

    def compare_copies(self) -> None:
        """Notes tensors that should be copies of the embedding and are not."""
        if not self.naming.embedding:
            return
        name_of_table, _ = self.naming.tensor(self.naming.embedding, None)
        table = self.find(name_of_table)
        if table is None:
            return
        for name in self.naming.copies:
            stored = name in self.tensors.source and not self.naming.is_ignored(name)
            if name == table or not stored:
                continue
            self.used.add(name)
            if not self.tensors.equal(name, table):
                self.problems.append(
                    f"{name} is no copy: it differs from {table}, which this "
                    "model uses in its place"
                )

    def read(
        self, name: str, transposed: bool, shape: tuple[int, ...]
    ) -> np.ndarray | None:
        """One tensor of that shape.

        None with an entry in `problems` if it has another, or holds no floats.
        """
        self.used.add(name)
        kind = self.tensors.kind(name)
        if kind not in _FLOATS:
            scales = (
                "; their scales are tensors of their own: take a checkpoint of 16 bits "
                "or more"
            )
            why = (
                scales if kind.upper().startswith(("FLOAT8", "F8", "F4", "F6")) else ""
            )
            self.problems.append(
                f"{name}: expected floating point numbers, got {kind}{why}"
            )
            return None
        array = self.tensors.read(name)
        # The kernel of a convolution over patches is that of a linear layer on flat
        # patches.
        if transposed:
            array = array.reshape(array.shape[0], -1).T
        if array.shape != shape:
            self.problems.append(f"{name}: expected shape {shape}, got {array.shape}")
            return None
        return array

    def fits(self, name: str, transposed: bool, shape: tuple[int, ...]) -> bool:
        """Whether a tensor has floats of that shape, from its head alone.

        If not, `problems` has an entry.
        """
        self.used.add(name)
        kind, there = self.tensors.kind(name), self.tensors.shape(name)
        if kind not in _FLOATS:
            self.problems.append(f"{name}: expected floating point numbers, got {kind}")
            return False
        if transposed:
            there = (math.prod(there[1:]), there[0])
        if there != shape:
            self.problems.append(f"{name}: expected shape {shape}, got {there}")
        return there == shape

    def in_parts(
        self,
        found: list[tuple[str, bool]],
        stacked: bool,
        shape: tuple[int, ...],
        dtype: Any,
        place: NamedSharding,
    ) -> jax.Array | None:
        """One parameter of which each device's part is read by itself.

        Args:
          found: (tensor, whether it is stored transposed) of each layer.
          stacked: whether there are layers; else `found` has one tensor.
          shape: of the parameter.
          dtype: of the parameter.
          place: how it lies.

        Returns:
          The array; None with an entry in `problems` if a tensor does not fit.
        """
        inner = shape[1:] if stacked else shape
        if not all([self.fits(*one, inner) for one in found]):
            return None
        read: dict[
            str, np.ndarray
        ] = {}  # devices with other clients have the same part

        def part(index: Any) -> np.ndarray:
            if str(index) not in read:
                read[str(index)] = self._part(found, stacked, index).astype(dtype)
            return read[str(index)]

        return jax.make_array_from_callback(shape, place, part)

    def _part(
        self, found: list[tuple[str, bool]], stacked: bool, index: tuple[slice, ...]
    ) -> np.ndarray:
        if not stacked:
            return self.tensors.read_part(*found[0], index)
        layers = [self.tensors.read_part(*one, index[1:]) for one in found[index[0]]]
        return np.stack(layers)

    def parameter(
        self, number: int, path: tuple[str, ...], shape: tuple[int, ...], dtype: Any
    ) -> jax.Array | None:
        """One parameter, its layers stacked.

        None with an entry in `problems` if it does not fit.
        """
        stacked = self.naming.stack_of(path) is not None
        layers = range(shape[0]) if stacked else (None,)
        wanted = [self.naming.tensor(path, layer) for layer in layers]
        found = [(self.find(name), transposed) for name, transposed in wanted]
        missing = [
            name
            for (name, _), (there, _) in zip(wanted, found, strict=True)
            if there is None
        ]
        place = None if self.mesh is None else place_of(path, shape, self.mesh)
        if missing and ".".join(path).startswith(self.new):
            return _placed(self.initial(number, path, shape, dtype), place)
        if missing:
            self.problems.append(f"missing {missing[0]}")
            return None
        if place is not None:
            tensors = [(str(name), transposed) for name, transposed in found]
            return self.in_parts(tensors, stacked, shape, dtype, place)
        if not stacked:
            array = self.read(str(found[0][0]), found[0][1], shape)
            return None if array is None else jnp.asarray(array, dtype)
        # Layer by layer into one buffer of the final dtype: never more than one
        # parameter twice.
        buffer = None
        for layer, (name, transposed) in enumerate(found):
            array = self.read(str(name), transposed, shape[1:])
            if array is None:  # of another shape, which may be beyond all memory
                return None
            buffer = np.empty(shape, dtype) if buffer is None else buffer
            buffer[layer] = array
        return jnp.asarray(buffer)

    def initial(
        self, number: int, path: tuple[str, ...], shape: tuple[int, ...], dtype: Any
    ) -> jax.Array:
        """What a parameter begins with that the checkpoint lacks."""
        if path[-1] == "bias":
            return jnp.zeros(shape, dtype)
        key = jax.random.fold_in(self.key, number)
        return 0.02 * jax.random.normal(key, shape, dtype)


def _placed(array: jax.Array, place: NamedSharding | None) -> jax.Array:
    """The array where it lies, of which each process puts its own part."""
    if place is None:
        return array
    here = np.asarray(array)
    return jax.make_array_from_callback(here.shape, place, lambda index: here[index])


def load_into(
    model: nnx.Module,
    folder: Path,
    naming: Naming,
    key: jax.Array,
    mesh: Mesh | None = None,
) -> nnx.Module:
    """Fills an abstract module from a folder's safetensors, one file or shards.

    Args:
      model: of `nnx.eval_shape`.
      folder: with the files.
      naming: how the files name the model's parameters.
      key: of the initial values that the checkpoint lacks and `naming.new` allows:
        normal(0.02), biases zero.
      mesh: over whose axis `model` matrices are split, each device's part read by
        itself; None: parameters are read whole.

    Returns:
      The module with its weights.

    Raises:
      FileNotFoundError: there are no safetensors.
      WeightError: a truncated file, or tensors missing, left over, of another shape or
        dtype; lists them.
    """
    files = weight_files(folder)
    with contextlib.ExitStack() as stack:
        tensors = Tensors(files, stack)
        return fill(model, tensors, naming, key, files[0], mesh)


def fill(
    model: nnx.Module,
    tensors: Tensors,
    naming: Naming,
    key: jax.Array,
    where: Path,
    mesh: Mesh | None = None,
) -> nnx.Module:
    """Fills an abstract module from open tensors.

    Args:
      model: of `nnx.eval_shape`.
      tensors: under the names that `naming` gives.
      naming: how they name the model's parameters.
      key: of initial values, see `load_into`.
      where: their file, for error messages.
      mesh: see `load_into`.

    Returns:
      The module with its weights.

    Raises:
      WeightError: as `load_into`.
    """
    graphdef, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    paths = [tuple(map(str, path)) for path, _ in flat]
    checkpoint = _Checkpoint(tensors, naming, key, paths, mesh)
    pairs = zip(paths, flat, strict=True)
    arrays = [
        checkpoint.parameter(number, path, variable.shape, variable.dtype)
        for number, (path, (_, variable)) in enumerate(pairs)
    ]
    checkpoint.compare_copies()
    names = set(tensors.source)
    extra = [name for name in names - checkpoint.used if not naming.is_ignored(name)]
    problems = checkpoint.problems + [f"left over {name}" for name in sorted(extra)]
    if problems:
        shown = "; ".join(problems[:8])
        if len(problems) > 8:
            shown += f"; and {len(problems) - 8} more"
        raise WeightError(f"{where} does not fit {type(model).__name__}: {shown}")
    leaves = [
        variable.replace(array)
        for (_, variable), array in zip(flat, arrays, strict=True)
    ]
    own_paths = [path for path, _ in flat]
    state = nnx.from_flat_state(zip(own_paths, leaves, strict=True))
    return nnx.merge(graphdef, state)
